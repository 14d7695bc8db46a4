"""A mistake on the command line ends in one line that says what was given and what is allowed, and leaves nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.commands import Outcome, assert_one_line

from model.examples import Examples


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
    """A dataset that does not say that it is one."""
    return vectors(split, root)


def of_no_kind(split, root):  # type: ignore[no-untyped-def]
    """No dataset, as is seen when it has been called."""
    return 3


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
    "trainer.loss=mse": ["trainer.loss", "loss=mse"],
    "+trainer.loss=nll": ["trainer.loss", "loss=nll"],
    "+loss.smoothing=1": ["loss.smoothing"],
    "+learner.noise=1": ["learner.noise"],
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
    "loss=crossentropy": ["loss=crossentropy", "did you mean cross_entropy?", "sum_of_squares"],
    "loss=mse": ["loss", "mse", "classification"],
    "loss=nll": ["loss", "nll", "logits"],
    "trainer.threads=0": ["trainer.threads", "0", "at least 1"],
    "trainer.threads=many": ["trainer.threads", "'many'", "auto"],
    "trainer.ema=1": ["trainer.ema", "1", "below 1"],
    "trainer.histograms=3": ["trainer.histograms", "3"],
    "optimizer.no_decay=1": ["optimizer.no_decay", "1", "true or false"],
    "model.freeze=[1]": ["model.freeze", "1", "text"],
    "model.init_from=''": ["model.init_from", "empty"],
    "model.dropout=2": ["model", "dropout", "2"],
    "model.dropout=-0.1": ["model", "dropout"],
    "model.hidden_sizes=[-3]": ["model", "-3"],
    "model.activation=rellu": ["model.activation", "'rellu'", "relu"],
    "model.output=probs": ["model.output", "'probs'", "softmax"],
    "scheduler.interval=batch": ["scheduler.interval", "'batch'", "step"],
    "data.mean=[0.1,0.2]": ["data.mean", "2 values"],
}
ALL = UNKNOWN | WRONG_TYPE | OUT_OF_RANGE


@pytest.mark.parametrize("argument", ALL, ids=lambda name: name[:60])
def test_a_mistake_is_one_line_and_leaves_nothing(
    argument: str, run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run_command("train", "trainer.device=cpu", f"experiments_dir={tmp_path / 'experiments'}", argument)
    assert_one_line(outcome, *ALL[argument])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", ["vectors", "numbers", "unannotated"])
def test_the_small_datasets_of_these_tests_do_train(data: str, run_train: Callable[..., Path]) -> None:
    """So that what the table refuses is refused for the reason given."""
    run = run_train(f"{DATA}{data}", "data.batch_size=20", "trainer.epochs=1")
    assert (run / "best.pt").exists()
