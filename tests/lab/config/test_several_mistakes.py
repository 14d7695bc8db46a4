"""Words that are right each, and wrong together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome
from helpers.commands import assert_one_line
from test_mistakes import DATA

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
    "classification loss on numbers": ([f"{DATA}numbers", "loss=cross_entropy"], ["loss", "mse"]),
    "accuracy of numbers": ([f"{DATA}numbers", "trainer.monitor=val/accuracy"], ["trainer.monitor", "val/rmse"]),
    "softmax of numbers": ([f"{DATA}numbers", "model.output=softmax"], ["model.output", "classification"]),
    "softmax with the loss of logits": (["model.output=softmax", "loss=cross_entropy"], ["loss", "softmax"]),
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
    "a preset that is one too many": (["+experiment=digits_mlp"], ["leave out the +: experiment=digits_mlp"]),
    "an option that is always there": (["~trainer.patience"], ["trainer.patience=null"]),
    "a variable of the environment": (["hydra.job.env_set.X=1"], ["+hydra.job.env_set.X=VALUE"]),
    "batches of no jobs": (["-m", "seed=0,1", "hydra.sweeper.max_batch_size=0"], ["max_batch_size is 0", "at least 1"]),
    "two presets": (["+experiment=[mnist_mlp,mnist_cnn]"], ["model"]),
    "an epoch too many": (["resume=nowhere", "trainer.epochs=+x"], ["trainer.epochs"]),
    "a root that is a file": (["data=image_folder", f"data.root={__file__}"], [Path(__file__).name, "train/<class>"]),
    "a root below a file": (["data=mnist", f"data.root={__file__}/x"], [Path(__file__).name, "MNIST"]),
    "a run to resume that is not there": (["resume=nowhere"], ["nowhere", "does not exist"]),
    "two unknown options": (["model=cnnn", "data=imagenet"], ["model=cnnn"]),
    "a directory without a name": (["hydra.run.dir="], ["hydra.run.dir", "empty"]),
    "a directory made of nothing": (["hydra.run.dir=${nosuch}"], ["hydra.run.dir", "nosuch"]),
    "a job's directory without a name": (["-m", "seed=0,1", "hydra.sweep.subdir="], ["hydra.sweep.subdir", "empty"]),
    "one directory for two jobs": (["-m", "seed=0,1", "hydra.sweep.subdir=x"], ["x would be written by two jobs"]),
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
    assert list(tmp_path.iterdir()) == []
