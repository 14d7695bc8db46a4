"""Short runs, the ways in which they end, and what two of them must have in common."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets  # noqa: F401  these here, so that no forked process imports them for itself
import torch
import torch._dynamo
import torch.utils.tensorboard
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from helpers.commands import compose, read_lines
from lab.config.command import checked
from lab.config.schema import TrainConfig
from lab.runs.checkpoint import load_tensors
from lab.runs.directory import recorded_part
from lab.runs.run import Run

SMALL_FOLDER = ["data=image_folder", "data.image_size=8", "model=cnn"]
VARIANTS = {
    "mlp with dropout": ["model.dropout=0.3", "scheduler=cosine"],
    "cnn, momentum, augmentation": [
        "model=cnn",
        "optimizer=momentum",
        "data.crop_padding=1",
        "data.flip=alternate",
        "scheduler=onecycle",
    ],
    "lstm, rmsprop, clipping": ["model=lstm", "optimizer=rmsprop", "trainer.max_grad_norm=0.5", "scheduler=step"],
    "resnet, adamw, bf16": [
        "model=resnet",
        "model.num_blocks=1",
        "model.channels=[4,8]",
        "optimizer=adamw",
        "trainer.precision=bf16",
    ],
    "fast_cnn, muon": ["model=fast_cnn", "model.channels=[4,8]", "optimizer=muon", "optimizer.weight_decay=0.1"],
    "adagrad, plateau, patience": ["optimizer=adagrad", "scheduler=plateau", "trainer.patience=3"],
    "regression, sgd, passes": ["data=quadratic", "optimizer=sgd", "data.passes=3", "trainer.animate=true"],
    "moving average, groups of weights, metrics with states": [
        *("trainer.ema=0.9", "optimizer=adamw", "optimizer.no_decay=true", "optimizer.groups={fc3.*: {lr: 0.01}}"),
        *("+metrics.accuracy._target_=model.metrics.accuracy", "+metrics.auroc._target_=torchmetrics.AUROC"),
        *("+metrics.auroc.task=multiclass", "+metrics.auroc.num_classes=${spec:output_size}"),
    ],
    "image folder": [*SMALL_FOLDER, "data.num_workers=0", "data.flip=true"],
    "image folder, 2 workers": [*SMALL_FOLDER, "data.num_workers=2", "data.crop_padding=2"],
}
NOT_COMPARED = ("log", "configuration")  # sizes of files; how often there are checkpoints
SHORT = ["data.limit=300", "data.batch_size=64", "trainer.log_every=2", "trainer.epochs=4"]
NO_OPTIONS = ["~model.hidden_sizes", "~model.activation", "~model.dropout", "~model.output"]
STEPS_PER_EPOCH = 5  # of 300 examples, 64 at a time


def configuration(*overrides: str) -> DictConfig:
    """What a short run on the CPU is told, checked."""
    fixed = ["trainer.images=false", "trainer.device=cpu", *SHORT]
    return checked(recorded_part(compose(*fixed, *overrides)), TrainConfig)


class Killed(Exception):
    """What a kill looks like to the test."""


def kill_after(step_to_die: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle of an epoch, after it has logged: nothing of the run gets to tidy up."""
    step = train.Learner.step
    num_steps = 0

    def dying_step(*batch: Any, **keywords: Any) -> Any:
        nonlocal num_steps
        if num_steps == step_to_die:
            raise Killed
        num_steps += 1
        return step(*batch, **keywords)

    monkeypatch.setattr(train.Learner, "step", dying_step)


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars as TensorBoard reads them, but for times."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.endswith("examples_per_second")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def same(left: Any, right: Any) -> bool:
    """Equality of nested plain data and tensors, bit for bit; the sizes of files apart."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(
            same(left[key], right[key]) for key in left if key not in NOT_COMPARED
        )
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right or (left != left and right != right)


def outcome_of(directory: Path) -> dict[str, Any]:
    """All that must be the same, whatever happened on the way."""
    return {
        "lines": read_lines(directory / "metrics.jsonl"),
        "last": load_tensors(directory / "last.pt"),
        "best": load_tensors(directory / "best.pt"),
        "metrics": json.loads((directory / "metrics.json").read_text()),
        "scalars": scalars(directory),
        "state": json.loads((directory / "status.json").read_text())["state"],
    }


def whole_run(cfg: DictConfig, directory: Path) -> dict[str, Any]:
    """What a run comes to that nothing happens to."""
    train.train(cfg, directory)
    return outcome_of(directory)


def assert_same(outcome: dict[str, Any], expected: dict[str, Any]) -> None:
    """Two runs came to the same, bit for bit."""
    assert outcome.keys() == expected.keys()
    for what in expected:
        assert same(outcome[what], expected[what]), what


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """The network's tensors in a checkpoint."""
    return load_tensors(path)["model"]


def equal_weights(left: Path, right: Path) -> bool:
    """Whether two checkpoints hold the same network, bit for bit."""
    one, other = weights_of(left), weights_of(right)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def only_run(tmp_path: Path) -> Path:
    """The one run of tmp_path/experiments/run."""
    (directory,) = (tmp_path / "experiments" / "run").iterdir()
    return directory


def files_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder, but for locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def contents(directory: Path) -> dict[str, bytes]:
    """The files straight in a folder."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def send(signum: int) -> None:
    """Sends this process a signal."""
    os.kill(os.getpid(), signum)


def flip(path: Path) -> None:
    """Changes a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def after_step(step: int, happens: Callable[[Run], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets something happen to a run after a step, before what follows it."""
    original = Run.after_step

    def disturbed(self: Run) -> None:
        if self.progress.step == step:
            happens(self)
        original(self)

    monkeypatch.setattr(Run, "after_step", disturbed)
