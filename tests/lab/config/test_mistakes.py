"""A mistake on the command line ends in one line that says what was given and what is allowed, and leaves nothing."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.config.schema import TrainConfig, check
from lab.config.targets import SLOTS, check_slot
from model.examples import Examples
from utils import UserError

PROJECT = Path(__file__).resolve().parents[3]


def vectors(split: str, root: str, *, num_features: int = 4) -> Examples | None:
    """A classification dataset that is no images."""
    generator = torch.Generator().manual_seed(0)
    return Examples(torch.randn(90, num_features, generator=generator), torch.arange(90) % 3, ["a", "b", "c"])


def numbers(split: str, root: str) -> Examples | None:
    """A regression dataset."""
    generator = torch.Generator().manual_seed(0)
    return Examples(torch.randn(90, 4, generator=generator), torch.randn(90, 2, generator=generator))


def bad_labels(split: str, root: str) -> Examples | None:
    """Labels that count from 1."""
    return Examples(torch.zeros(90, 4), torch.arange(90) % 3 + 1, ["a", "b", "c"])


def unannotated(split, root):  # type: ignore[no-untyped-def]
    """No dataset, as far as its annotations tell."""
    return vectors(split, root)


def assert_one_line(outcome: Outcome, *parts: str, code: int = 2) -> None:
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert len([line for line in outcome.err.splitlines() if line.strip()]) == 1, outcome.err
    assert not outcome.out.strip()
    for part in parts:
        assert part in outcome.err, outcome.err


DATA = "data._target_=test_mistakes."
# What was typed -> what the answer must hold: the key, what was given, what to do.
UNKNOWN = {
    "trainer.epoch=3": ["trainer.epoch", "did you mean trainer.epochs?"],
    "+trainer.lrr=1": ["trainer.lrr"],
    "+trainer.epoch=3": ["trainer.epoch", "did you mean trainer.epochs?"],
    "++trainer.precison=bf16": ["trainer.precison", "did you mean trainer.precision?"],
    "optimizer.learning_rate=1": ["optimizer.learning_rate"],
    "+optimizer.momentun=0.9": ["optimizer.momentun"],
    "lr=0.1": ["lr", "did you mean optimizer.lr?"],
    "epochs=3": ["epochs", "did you mean trainer.epochs?"],
    "batch_size=3": ["batch_size", "did you mean data.batch_size?"],
    "model.hidden_size=[3]": ["model.hidden_size", "did you mean model.hidden_sizes?"],
    "+model.depth=3": ["model.depth"],
    "data.batchsize=8": ["data.batchsize", "did you mean data.batch_size?"],
    "+data.shuffel=true": ["data.shuffel"],
    "+scheduler.warmup=3": ["scheduler.warmup"],
    "optimizer._target_=torch.optim.SGD": ["optimizer.betas", "optimizer._target_", "~optimizer.betas"],
    "+sede=3": ["sede", "did you mean seed?"],
    "sede=3": ["sede", "did you mean seed?"],
    "+foo.bar=3": ["foo"],
    "+seed.x=3": ["seed"],
    "~seed": ["seed"],
    "~trainer.epochs": ["trainer.epochs"],
    "~optimizer": ["optimizer"],
    "~model._target_": ["model._target_"],
    "modle=cnn": ["modle", "did you mean model?"],
    "optimiser=adam": ["optimiser", "did you mean optimizer?"],
    "model=cnnn": ["model=cnnn", "did you mean cnn?", "resnet"],
    "optimizer=adm": ["optimizer=adm", "did you mean adam"],
    "data=imagenet": ["data=imagenet", "mnist"],
    "scheduler=": ["scheduler"],
    "model=../model/cnn": ["model"],
    "model=[mlp,cnn]": ["model"],
    "data=[0]": ["data=[0]", "mnist"],
}
WRONG_TYPE = {
    "trainer.epochs=many": ["trainer.epochs", "'many'", "whole number"],
    "trainer.epochs=1.5": ["trainer.epochs", "1.5", "whole number"],
    "trainer.epochs=true": ["trainer.epochs", "true", "whole number"],
    "trainer.epochs=null": ["trainer.epochs", "null"],
    "trainer.epochs=[1]": ["trainer.epochs"],
    "trainer.epochs={a:1}": ["trainer.epochs"],
    "trainer.compile=2": ["trainer.compile", "2", "true or false"],
    "trainer.compile=yess": ["trainer.compile", "'yess'"],
    "optimizer.lr=fast": ["optimizer.lr", "'fast'", "a number"],
    "optimizer.lr=[0.1]": ["optimizer.lr"],
    "optimizer.lr=true": ["optimizer.lr", "true"],
    "optimizer.lr=null": ["optimizer.lr", "null"],
    "optimizer.betas=0.9": ["optimizer.betas"],
    "optimizer.betas=[0.9]": ["optimizer.betas"],
    "optimizer.betas=[0.9,x]": ["optimizer.betas"],
    "model.hidden_sizes=128": ["model.hidden_sizes", "128", "a list"],
    "model.hidden_sizes=[128,x]": ["model.hidden_sizes"],
    "model.hidden_sizes=[1.5]": ["model.hidden_sizes"],
    "data.flip=1": ["data.flip"],
    "data.mean=0.5": ["data.mean"],
    "data.mean=[a]": ["data.mean"],
    "data.std=[0]": ["data.std"],
    "data.root=null": ["data.root"],
    "name=3": ["name", "3"],
    "name=null": ["name"],
    "trainer=3": ["trainer"],
    "model=null": ["model"],
    "data=null": ["data"],
    "seed=null": ["seed", "null"],
    "seed=x": ["seed", "'x'"],
    "resume=3": ["resume"],
    "model={a:1}": ["model"],
    "model.activation={_target_:os.system}": ["model.activation", "text"],
    "model.activation=[relu]": ["model.activation"],
}
OUT_OF_RANGE = {
    "optimizer.lr=0": ["optimizer.lr", "0", "above 0"],
    "optimizer.lr=-1": ["optimizer.lr", "-1", "above 0"],
    "optimizer.lr=nan": ["optimizer.lr", "nan"],
    "optimizer.lr=inf": ["optimizer.lr", "inf"],
    "optimizer.lr=-inf": ["optimizer.lr", "-inf"],
    "optimizer.weight_decay=nan": ["optimizer", "nan"],
    "optimizer.weight_decay=-1": ["optimizer", "-1"],
    "optimizer.betas=[0.9,2]": ["optimizer", "2"],
    "trainer.epochs=0": ["trainer.epochs", "0", "at least 1"],
    "trainer.epochs=-1": ["trainer.epochs", "-1"],
    "seed=-1": ["seed", "-1", "at least 0"],
    f"seed={2**32}": ["seed", str(2**32), str(2**32 - 1)],
    f"seed={10**22}": ["seed"],
    f"seed={'9' * 5000}": ["seed=999", "cannot be read"],
    "optimizer.lr=1e999": ["optimizer.lr", "inf"],
    "model.hidden_sizes=[99999999999999999999999]": ["model", "99999999999999999999999"],
    "model.hidden_sizes=[999999999999]": ["model", "memory"],
    "data.num_workers=1000000": ["data.num_workers", "1000000", "at most 1024"],
    "data.batch_size=0": ["data.batch_size", "0"],
    "data.batch_size=-3": ["data.batch_size", "-3"],
    "data.eval_batch_size=0": ["data.eval_batch_size"],
    "data.eval_batch_size=null": ["data.eval_batch_size"],
    "data.num_workers=-1": ["data.num_workers", "-1"],
    "data.val_fraction=0": ["data.val_fraction", "0"],
    "data.val_fraction=1": ["data.val_fraction", "1"],
    "data.val_fraction=1.5": ["data.val_fraction", "1.5"],
    "data.val_fraction=nan": ["data.val_fraction", "nan"],
    "data.limit=0": ["data.limit"],
    "data.max_batches=0": ["data.max_batches"],
    "data.crop_padding=-1": ["data.crop_padding"],
    "data.batch_size=100000": ["data.batch_size is 100000", "1299"],
    "trainer.precision=fp8": ["trainer.precision", "'fp8'", "bf16"],
    "trainer.precision=32": ["trainer.precision"],
    "trainer.max_grad_norm=0": ["trainer.max_grad_norm"],
    "trainer.max_grad_norm=-.inf": ["trainer.max_grad_norm"],
    "trainer.max_grad_norm=nan": ["trainer.max_grad_norm"],
    "trainer.log_every=0": ["trainer.log_every"],
    "trainer.patience=0": ["trainer.patience"],
    "trainer.device=gpu": ["trainer.device", "'gpu'", "cpu"],
    "trainer.device=cuda:99": ["trainer.device", "'cuda:99'"],
    "trainer.device=''": ["trainer.device"],
    "trainer.monitor=val/acuracy": ["trainer.monitor", "did you mean val/accuracy?"],
    "trainer.monitor=val/rmse": ["trainer.monitor", "val/rmse", "val/loss"],
    "trainer.monitor=test/accuracy": ["trainer.monitor", "test/accuracy"],
    "trainer.loss=crossentropy": ["trainer.loss", "crossentropy", "cross_entropy"],
    "trainer.loss=mse": ["trainer.loss", "mse", "classification"],
    "trainer.loss=nll": ["trainer.loss", "nll", "logits"],
    "model.dropout=2": ["model", "dropout", "2"],
    "model.dropout=-0.1": ["model", "dropout"],
    "model.hidden_sizes=[-3]": ["model", "-3"],
    "model.activation=rellu": ["model.activation", "'rellu'", "relu"],
    "model.output=probs": ["model.output", "'probs'", "softmax"],
    "scheduler.interval=batch": ["scheduler.interval", "'batch'", "step"],
    "data.mean=[0.1,0.2]": ["data.mean", "2 values"],
}
NAMES = {
    "name=a/b": ["name", "'a/b'"],
    "name=..": ["name", "'..'"],
    "name=../escape": ["name", "'../escape'"],
    "name=/tmp/x": ["name"],
    "name='a b'": ["name", "'a b'"],
    "name=ünïcode": ["name"],
    "name=''": ["name"],
    "name='a=b'": ["name"],
    "name='a,b'": ["name"],
    f"name={'x' * 300}": ["name", "120"],
    "name=.hidden": ["name"],
    "name='\udcff'": ["name", "\\udcff"],
    "name='\x1b[31mred'": ["name", "\\x1b[31mred"],
    "experiments_dir=''": ["experiments_dir", "empty"],
    "data.root=''": ["data.root", "empty"],
    "name='a\\n'": ["name"],
}
SYNTAX = {
    "seed=???": ["seed"],
    "optimizer.lr=???": ["optimizer.lr"],
    "name=???": ["name"],
    "data.root=${oc.env:NO_SUCH_VARIABLE}": ["data.root", "NO_SUCH_VARIABLE"],
    "optimizer.lr=${optimizer.rl}": ["optimizer.lr", "optimizer.rl"],
    "seed=${seed}": ["seed"],
    "name=${nosuch:1}": ["name", "nosuch"],
    "model.hidden_sizes=[1,2": ["model.hidden_sizes=[1,2"],
    "data.root=${oc.env:HOME": ["data.root"],
    "seed=1,2": ["seed=1,2", "-m"],
    "model=mlp,cnn": ["model=mlp,cnn", "-m"],
    "model.hidden_sizes=1,2": ["-m", "'model.hidden_sizes=[1,2]'"],
    "seed": ["seed"],
    "=3": ["=3"],
    "model.hidden_sizes=" + "[" * 300 + "]" * 300: ["model.hidden_sizes=[[[", "nested"],
    "model.hidden_sizes=" + "[" * 3000 + "]" * 3000: ["model.hidden_sizes=[[[", "nested"],
    "seed=choice(1,2)": ["seed=choice(1,2)", "--multirun"],
    "seed=int(x)": ["seed=int(x)"],
}
TARGETS = {
    "model._target_=model.net.MPL": ["model._target_", "MPL", "did you mean MLP?"],
    "model._target_=nowhere.Net": ["model._target_", "nowhere"],
    "model._target_=MLP": ["model._target_", "MLP", "dotted"],
    "model._target_=3": ["model._target_"],
    "model._target_=null": ["model._target_"],
    "model._target_=''": ["model._target_"],
    "model._target_='model..net'": ["model._target_"],
    "model._target_=.net": ["model._target_"],
    "model._target_=torch.optim.SGD": ["model._target_", "torch.optim.SGD", "torch.nn.Module"],
    "model._target_=builtins.open": ["model._target_", "builtins.open", "torch.nn.Module"],
    "model._target_=torch.hub.load": ["model._target_", "torch.hub.load", "torch.nn.Module"],
    "model._target_=os.system": ["model._target_", "os.system"],
    "optimizer._target_=pandas.read_pickle": ["optimizer._target_", "pandas"],
    "optimizer._target_=builtins.eval": ["optimizer._target_", "builtins.eval"],
    "optimizer._target_=model.net.MLP": ["optimizer._target_", "torch.optim.Optimizer"],
    "optimizer._target_=torch.optim.Adma": ["optimizer._target_", "did you mean Adam"],
    "scheduler._target_=torch.optim.Adam": ["scheduler._target_", "LRScheduler"],
    "model._target_='a\x1b[31m.b'": ["model._target_", "a\\x1b[31m"],
    "model._target_=antigravity.fly": ["model._target_", "antigravity", "standard library"],
    "model._target_=mistaken_module.Net": ["model._target_", "NameError", "mistaken_module.py, line 2"],
    "model._target_=unwritten_module.Net": ["model._target_", "unwritten_module.py, line 1"],
    "model._target_=leaving_module.Net": ["model._target_", "SystemExit"],
    "optimizer._target_=torch.optim.LBFGS": ["optimizer"],
    "data._target_=subprocess.run": ["data._target_", "subprocess.run"],
    "data._target_=torch.load": ["data._target_", "torch.load"],
    f"{DATA}unannotated": ["data._target_", "unannotated", "annotated"],
    f"{DATA}nosuch": ["data._target_", "nosuch"],
    f"{DATA}bad_labels": ["labels from 1 to 3"],
}
ALL = UNKNOWN | WRONG_TYPE | OUT_OF_RANGE | NAMES | SYNTAX | TARGETS


@pytest.fixture(scope="module", autouse=True)
def modules_with_mistakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modules of a user's own that cannot be imported."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "mistaken_module.py").write_text("x = 1\ny = undefined\n")
    (folder / "unwritten_module.py").write_text("class Net(\n")
    (folder / "leaving_module.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.mark.parametrize("argument", ALL, ids=lambda name: name[:60])
def test_a_mistake_is_one_line_and_leaves_nothing(
    argument: str, run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    outcome = run_command("train", "trainer.device=cpu", f"experiments_dir={tmp_path / 'experiments'}", argument)
    assert_one_line(outcome, *ALL[argument])
    assert list(tmp_path.iterdir()) == []


SEVERAL = {
    "a cycle of two": (["data.root=${name}", "name=${data.root}"], ["name"]),
    "a wrong value in a sweep": (["-m", "seed=0,-1"], ["seed", "-1"]),
    "a wrong name in a sweep": (["-m", "model=mlp,cnnn"], ["model=cnnn", "did you mean cnn?"]),
    "a wrong key in a sweep": (["-m", "trainer.epoch=1,2"], ["trainer.epoch", "did you mean trainer.epochs?"]),
    "lstm on vectors": (["model=lstm", f"{DATA}vectors"], ["LSTM reads images", "model=mlp"]),
    "cnn on vectors": (["model=cnn", f"{DATA}vectors"], ["CNN reads images", "model=mlp"]),
    "resnet on vectors": (["model=resnet", f"{DATA}vectors"], ["ResNet reads images", "model=mlp"]),
    "flip vectors": ([f"{DATA}vectors", "data.flip=true"], ["data.flip", "images"]),
    "unknown key of a dataset": ([f"{DATA}vectors", "+data.num_feature=3"], ["data.num_feature"]),
    "wrong value of a dataset": ([f"{DATA}vectors", "+data.num_features=x"], ["data.num_features", "'x'"]),
    "classification loss on numbers": ([f"{DATA}numbers", "trainer.loss=cross_entropy"], ["trainer.loss", "mse"]),
    "accuracy of numbers": ([f"{DATA}numbers", "trainer.monitor=val/accuracy"], ["trainer.monitor", "val/rmse"]),
    "softmax of numbers": ([f"{DATA}numbers", "model.output=softmax"], ["model.output", "classification"]),
    "softmax with the loss of logits": (["model.output=softmax", "trainer.loss=cross_entropy"], ["trainer.loss"]),
    "cnn too deep": (["model=cnn", "model.channels=[2,2,2,2]"], ["model.channels", "8x8"]),
    "cnn, even kernel": (["model=cnn", "model.kernel_size=4"], ["model.kernel_size", "4", "odd"]),
    "cnn, no channels": (["model=cnn", "model.channels=[0]"], ["model"]),
    "mlp, no units": (["model.hidden_sizes=[0]"], ["model.hidden_sizes", "0"]),
    "lstm, no size": (["model=lstm", "model.hidden_size=0"], ["model"]),
    "lstm, no layers": (["model=lstm", "model.num_layers=0"], ["model"]),
    "resnet, no channels": (["model=resnet", "model.channels=[]"], ["model", "channels"]),
    "another model's key": (["model=lstm", "model.hidden_sizes=[3]"], ["model.hidden_sizes", "model.hidden_size"]),
    "a plateau by steps": (["scheduler=plateau", "scheduler.interval=step"], ["scheduler.interval"]),
    "a schedule of length 0": (["scheduler=cosine", "scheduler.T_max=0"], ["scheduler"]),
    "a share that is none": (["scheduler=cosine", "scheduler.T_max=x%"], ["scheduler.T_max"]),
    "a step of size 0": (["scheduler=step", "scheduler.step_size=0"], ["scheduler"]),
    "a start above 1": (["scheduler=onecycle", "scheduler.pct_start=2", "optimizer=adam"], ["scheduler"]),
    "a batch above the data": (["data.batch_size=91", "data.drop_last=true"], ["data.batch_size", "90"]),
    "a share beyond all numbers": (["scheduler=cosine", f"scheduler.T_max={'9' * 400}%"], ["scheduler.T_max"]),
    "an optimiser that computes the loss again": (
        ["optimizer=sgd", "optimizer._target_=torch.optim.LBFGS", "~optimizer.weight_decay"], ["LBFGS", "closure"]
    ),
    "two presets": (["+experiment=[mnist_mlp,mnist_cnn]"], ["model"]),
    "an epoch too many": (["resume=nowhere", "trainer.epochs=+x"], ["trainer.epochs"]),
    "a root that is a file": (["data=image_folder", f"data.root={__file__}"], ["test_mistakes.py", "train/<class>"]),
    "a root below a file": (["data=mnist", f"data.root={__file__}/x"], ["test_mistakes.py", "MNIST"]),
    "a run to resume that is not there": (["resume=nowhere"], ["nowhere", "does not exist"]),
    "two unknown options": (["model=cnnn", "data=imagenet"], ["model=cnnn"]),
    "a folder of Hydra's": (["hydra.run.dir=out"], ["hydra.run.dir", "experiments_dir"]),
    "a folder of Hydra's for a sweep": (["-m", "seed=0,1", "hydra.sweep.dir=out"], ["hydra.sweep.dir", "name"]),
    "one example for batch norm": (
        ["model=fast_cnn", "model.channels=[4,4,4]", "data.limit=65"],
        ["one example", "data.drop_last=true"],
    ),
    "more parts than a batch has": (["data.batch_size=8", "trainer.accumulate=9"], ["trainer.accumulate", "9", "8"]),
}  # fmt: skip


@pytest.mark.parametrize("case", SEVERAL, ids=lambda name: name[:60])
def test_a_mistake_of_several_words_is_one_line_and_leaves_nothing(
    case: str, run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, parts = SEVERAL[case]
    flags = [argument for argument in arguments if argument.startswith("-")]
    fixed = ["trainer.device=cpu", f"experiments_dir={tmp_path / 'experiments'}", "trainer.epochs=1", "data.limit=90"]
    rest = [argument for argument in arguments if argument not in flags]
    outcome = run_command("train", *flags, *fixed, "name=x", *rest)
    assert_one_line(Outcome(outcome.code, "", outcome.err) if flags else outcome, *parts)
    if not flags:
        assert list(tmp_path.iterdir()) == []


def test_an_evaluation_takes_no_launcher(run_command: Callable[..., Outcome]) -> None:
    outcome = run_command("evaluate", "-m", "hydra/launcher=joblib", "run=x,y")
    assert_one_line(outcome, "hydra/launcher=joblib", "train.py")


@pytest.mark.parametrize("word", ["-m", "dry_run=true", "rerun=true", "resume=x"])
def test_a_search_takes_no_words_of_sweeps_and_runs(
    word: str, run_command: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = run_command("search_hyperparams", word, "search=mlp", f"experiments_dir={tmp_path}")
    assert_one_line(outcome, word.partition("=")[0], "leave it out")
    assert list(tmp_path.iterdir()) == []


def test_a_space_is_no_key(run_command: Callable[..., Outcome]) -> None:
    assert_one_line(run_command("search_hyperparams", "search.space.optimizer.lr=3"), "conf/search/")


@pytest.mark.parametrize(
    ("script", "word", "advice"),
    [
        ("evaluate", "data=mnist", "its keys are data.root"),
        ("evaluate", "model=cnn", "the keys there are run, checkpoint"),
        ("synthesize_results", "trainer=default", "the keys there are root, metric"),
    ],
)
def test_what_reads_runs_takes_no_groups(
    script: str, word: str, advice: str, run_command: Callable[..., Outcome]
) -> None:
    assert_one_line(run_command(script, f"{'run' if script == 'evaluate' else 'root'}=x", word), word[:4], advice)


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2", "RANK": "0"},
        {"WORLD_SIZE": "two", "RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "-1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1234"},
        {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1234"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "abc"},
    ],
    ids=str,
)
def test_what_no_launcher_sets_is_told(
    environment: dict[str, str], run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    outcome = run_command("train", f"experiments_dir={tmp_path}")
    assert_one_line(outcome, *(f"{key}={value}" for key, value in environment.items()), "torchrun")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["train", "-m", "seed=0,1"], "torchrun"),
        (["train", "experiment=optimizers"], "torchrun"),  # a sweep by itself
        (["search_hyperparams", "search=mlp"], "torchrun"),
        (["evaluate", "run=x"], "torchrun"),
        (["train", "trainer.devices=3"], "trainer.devices is 3, but 2 processes were started"),
    ],
    ids=str,
)
def test_launchers_are_for_single_runs(
    words: list[str], answer: str, run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for key, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(key, value)
    place = [f"experiments_dir={tmp_path}"] if words[0] != "evaluate" else []
    assert_one_line(run_command(*words, *place), answer)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_number_of_processes_without_the_number_of_this_one_is_no_launcher(
    run_train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "devices: 1" in (run_train("trainer.epochs=1", "data.limit=90") / "config.yaml").read_text()


@pytest.mark.parametrize("wrong", ["seed=-1,-2", "trainer.epochs=0,-1", "model=mlp,cnnn"])
def test_a_sweep_of_mistakes_starts_no_run(wrong: str, run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run_command("train", "-m", f"experiments_dir={tmp_path / 'experiments'}", "name=ok", wrong)
    assert_one_line(Outcome(outcome.code, "", outcome.err))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["../escape", "a/b", "'a b'"])
def test_a_sweep_of_a_wrong_name_leaves_nothing(name: str, run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run_command("train", "-m", f"experiments_dir={tmp_path / 'experiments'}", f"name={name}", "seed=0")
    assert_one_line(Outcome(outcome.code, "", outcome.err), "name")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_unknown_flag_is_named(run_command: Callable[..., Outcome]) -> None:
    outcome = run_command("train", "--nosuch")
    assert outcome.code == 2
    assert "--nosuch" in outcome.err.splitlines()[-1]


def test_the_flag_of_a_sweep_may_stand_anywhere(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    """argparse takes positional arguments from one place only; a user does not know that."""
    small = ["trainer.epochs=1", "data.limit=90", "trainer.images=false", "trainer.device=cpu"]
    outcome = run_command("train", f"experiments_dir={tmp_path}", "name=x", "-m", "seed=0,1", *small)
    assert outcome.code == 0, outcome.err
    assert len(list(tmp_path.glob("x/*/seed-*/best.pt"))) == 2


def test_resume_of_what_is_no_run(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_one_line(run_command("train", f"resume={tmp_path / 'empty'}"), "empty", "config.yaml")
    (tmp_path / "file").write_text("x")
    assert_one_line(run_command("train", f"resume={tmp_path / 'file'}"), "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_a_folder_that_cannot_be_written_is_one_line(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    outcome = run_command("train", "trainer.epochs=1", "data.limit=90", f"experiments_dir={tmp_path / 'file'}")
    assert_one_line(outcome, str(tmp_path / "file"), code=1)


@pytest.mark.parametrize("data", ["vectors", "numbers"])
def test_the_small_datasets_of_these_tests_do_train(data: str, run_train: Callable[..., Path]) -> None:
    """So that what the table refuses is refused for the reason given."""
    run = run_train(f"{DATA}{data}", "data.batch_size=20", "trainer.epochs=1")
    assert (run / "best.pt").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--cfg", "job", "model=cnn"], ["trainer.epoch=3"], ["optimizer.lr=nan", "model=cnn"]],
    ids=" ".join,
)
def test_from_another_folder_in_a_process_of_its_own(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(PROJECT / "train.py"), *arguments],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
    if arguments[0].startswith("--"):
        assert (done.returncode, done.stderr) == (0, "")
        assert "hidden_sizes" in done.stdout if arguments[0] == "--help" else "model.net.CNN" in done.stdout
    else:
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stderr.startswith("train.py: ")
        assert arguments[0].split("=")[0] in done.stderr


# -------------------------------------------------------------------------------------------- whatever a file may hold

KEYS = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=6)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "50%", "???", "${x}", "torch.optim.SGD", "model.net.MLP", "os.system", ".", "a.b", "x" * 99])
    | st.sampled_from([10**400, -(10**400), 5e-324, 1.8e308, 2**63, math.nan]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=6), children, max_size=3),
    max_leaves=6,
)
NODES: dict[str, dict[str, Any]] = {
    "data": {"_target_": "test_mistakes.vectors", "root": "x", "num_features": 3},
    "model": {"_target_": "model.net.MLP", "hidden_sizes": [3], "dropout": 0.5},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.1, "betas": [0.9, 0.99], "weight_decay": 0.0},
    "scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "interval": "epoch", "step_size": 3, "gamma": 0.1},
}


def only_user_errors(function: Callable[..., None], *arguments: Any) -> None:
    try:
        function(*arguments)
    except UserError as error:
        assert str(error).strip()
        assert "\n" not in str(error)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(data=st.data())
def test_any_value_of_any_key_passes_or_is_a_user_error(data: st.DataObject) -> None:
    slot = data.draw(st.sampled_from(sorted(SLOTS)))
    node = dict(NODES[slot])
    key = data.draw(st.sampled_from([*node, "batch_size", "interval", "flip", "mean"]) | KEYS)
    node[key] = data.draw(PLAIN)
    only_user_errors(check_slot, slot, node)


TOP: dict[str, Any] = {
    "name": "x",
    "seed": 0,
    "resume": None,
    "experiments_dir": "x",
    **{slot: {} for slot in SLOTS},
    "trainer": {},
}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(data=st.data())
def test_any_configuration_passes_or_is_a_user_error(data: st.DataObject) -> None:
    config = {**TOP, "trainer": dict.fromkeys(["epochs", "precision", "compile", "max_grad_norm"], 1)}
    place = data.draw(st.sampled_from([config, config["trainer"]]))
    key = data.draw(st.sampled_from(sorted(place)) | KEYS)
    place[key] = data.draw(PLAIN)
    only_user_errors(check, config, TrainConfig)


# ------------------------------------------------------------------------------------------------ whatever may be typed

TYPED_KEYS = [
    *("name", "seed", "resume", "experiments_dir", "data", "data.root", "data.batch_size", "data.mean", "data.limit"),
    *("model", "model._target_", "model.hidden_sizes", "model.dropout", "optimizer", "optimizer.lr", "optimizer.betas"),
    *("optimizer._target_", "scheduler", "scheduler.T_max", "scheduler.interval", "trainer", "trainer.epochs"),
    *("trainer.device", "trainer.devices", "trainer.monitor", "trainer.max_grad_norm", "trainer.precision", "rerun"),
]
TYPED_VALUES = st.recursive(
    st.integers().map(str)
    | st.floats().map(str)
    | st.text(st.characters(exclude_characters="\0"), max_size=8)
    | st.text(st.characters(exclude_characters="\0'\\"), max_size=8).map(lambda text: f"'{text}'")
    | st.sampled_from(
        ["cnn", "adam", "cosine", "digits", "mnist", "null", "true", "50%", "???", "''", "torch.optim.SGD"]
    )
    | st.sampled_from(
        ["${seed}", "${name}", "${oc.env:HOME}", "${x", "[1,2", "{a:", "a,b", "range(3)", "glob(*)", "int(x)"]
    )
    | st.sampled_from([f"1{'0' * 400}", f"1e{'9' * 30}", "0x1", "1_0", "\udcff", "x" * 300, "[" * 99, "model.net.MLP"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.dictionaries(KEYS, inner, max_size=2).map(lambda d: "{" + ",".join(f"{k}:{v}" for k, v in d.items()) + "}")
    ),
    max_leaves=5,
)
TYPED = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "", "", "+", "++", "~"]),
    st.sampled_from(TYPED_KEYS) | KEYS.filter(lambda key: not key.startswith("-")),
    st.sampled_from(["=", "=", "=", "", "==", " = "]),
    TYPED_VALUES,
)


def check_typed(typed: list[str], run_command: Callable[..., Outcome]) -> None:
    outcome = run_command("train", *typed, "dry_run=true")
    assert outcome.code in (0, 1, 2), (typed, outcome.err)
    assert "Traceback" not in outcome.err + outcome.out, typed
    assert len(outcome.err.splitlines()) == (outcome.code != 0), (typed, outcome.err)
    assert all(character.isprintable() for character in outcome.err.rstrip("\n")), typed


FUZZED = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=60, derandomize=True, **FUZZED)
@given(typed=st.lists(TYPED, min_size=1, max_size=2))
def test_whatever_is_typed_is_a_run_or_one_line(typed: list[str], run_command: Callable[..., Outcome]) -> None:
    check_typed(typed, run_command)


@pytest.mark.slow
@settings(max_examples=3000, **FUZZED)
@given(typed=st.lists(TYPED, min_size=1, max_size=4))
def test_whatever_is_typed_is_a_run_or_one_line_at_length(
    typed: list[str], run_command: Callable[..., Outcome]
) -> None:
    check_typed(typed, run_command)
