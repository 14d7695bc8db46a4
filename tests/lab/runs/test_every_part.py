"""Every part of a checkpoint is needed: a run that goes on without one ends otherwise."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401  these here, so that no forked process imports them for itself
import torch
import torch._dynamo
import torch.utils.tensorboard
from helpers.runs import (
    NO_OPTIONS,
    STEPS_PER_EPOCH,
    Killed,
    assert_same,
    configuration,
    kill_after,
    outcome_of,
    whole_run,
)

import train
from lab.plots.pictures import Pictures
from lab.runs import meter
from lab.runs.checkpoint import load_tensors
from lab.runs.loading import load_config
from lab.runs.logger import RunLogger
from lab.runs.progress import Progress, TrainingMeter
from model.batching import Batch
from model.ema import MovingAverage
from model.net import MLP, DataSpec
from model.schedule import Schedule
from utils import RandomState


class Moody(MLP):
    """A network that draws from every generator when it trains, and is best at the end of the second epoch."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec, dropout=0.3)
        self.register_buffer("num_steps", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_steps += int(self.training and torch.is_grad_enabled())
        noise = (random.random() + np.random.random()) * self.training
        sign = 1 if self.num_steps <= 2 * STEPS_PER_EPOCH else -1
        outputs = super().forward(x + noise) * sign
        if self.num_steps == 3 and outputs.requires_grad:  # a step of fp16 that is skipped
            outputs.register_hook(lambda gradient: gradient * torch.inf)
        return outputs


class Forgetful(train.Learner):
    """A learner that lets each weight shrink, more from step to step."""

    num_steps = 0

    def step(self, batch: Batch) -> tuple[Any, Any]:
        self.num_steps += 1
        with torch.no_grad():
            for weight in self.weights:
                weight.mul_(1 - 1e-4 * self.num_steps)
        return super().step(batch)

    def state_dict(self) -> dict[str, Any]:
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_steps = state["num_steps"]


class Seen:
    """A metric with a state: how many examples there were since it was reset, in hundreds."""

    def __init__(self) -> None:
        self.reset()

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.hundreds += len(outputs) / 100

    def compute(self) -> float:
        return self.hundreds

    def reset(self) -> None:
        self.hundreds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"hundreds": self.hundreds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.hundreds = state["hundreds"]


MOODY = ["model._target_=test_every_part.Moody", *NO_OPTIONS, "optimizer.lr=0.01", "scheduler=cosine"]
MOODY += ["trainer.precision=fp16", "trainer.animate=true", "trainer.log_every=19", "trainer.ema=0.9"]
MOODY += ["learner._target_=test_every_part.Forgetful", "metrics=classification"]
MOODY += ["+metrics.seen._target_=test_every_part.Seen", "+metrics.seen.higher_is_better=true"]


def never(*_: Any, **__: Any) -> Any:
    raise Killed


# How a run of 4 epochs ends: what it is told about checkpoints, and what kills it.
ENDS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "in epoch 4": ("18", lambda patch: kill_after(19, patch)),  # logs step 19 after its checkpoint
    "before it measures epoch 1": ("5", lambda patch: patch.setattr(train, "validate", never)),
    "before its last words": ("18", lambda patch: patch.setattr(train, "check_outcome", never)),
}
# What is left out of the state that is restored -> what restores it.
PARTS: dict[str, type] = {
    "model": torch.nn.Module,
    "average": MovingAverage,
    "optimizer": torch.optim.Optimizer,
    "schedule": Schedule,
    "scaler": torch.amp.GradScaler,
    "learner": Forgetful,
    "snapshots": Pictures,
    "log": RunLogger,
    "meter": TrainingMeter,
    "meter.waiting": TrainingMeter,
    "meter.sums": TrainingMeter,
    "meter.num_folded": TrainingMeter,
    "meter.stateful": TrainingMeter,
    "meter.recent": TrainingMeter,
    "meter.sizes": TrainingMeter,
    "random": RandomState,
    "random.python": RandomState,
    "random.numpy": RandomState,
    "random.torch": RandomState,
    **{f"progress.{name}": Progress for name in Progress().state_dict()},
}
END_OF = {"progress.learning_rate": "before it measures epoch 1", "progress.final": "before its last words"}


@pytest.fixture(scope="module", autouse=True)
def _adds_up_two_batches_at_once() -> Iterator[None]:
    """In the checkpoint after step 18 two batches of its epoch are added up, and one waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meter, "FOLD_AT", 1000)
        yield


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """moody(end): (a run that has ended so, what it would have come to)."""
    folder = tmp_path_factory.mktemp("moody")
    expected: dict[str, Any] = {}

    def stopped(end: str) -> tuple[Path, dict[str, Any]]:
        if not expected:
            expected.update(whole_run(configuration(*MOODY), folder / "whole"))
        directory, (every, kill) = folder / end.replace(" ", "-"), ENDS[end]
        if not directory.exists():
            torch.manual_seed(0)
            with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
                kill(patch)
                train.train(configuration(*MOODY, f"trainer.checkpoint_every={every}"), directory)
        return directory, expected

    return stopped


def restored_without(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves a part of the state, or a field of it, as it is in a run that starts."""
    load, (_, _, field) = PARTS[part].load_state_dict, part.partition(".")

    def load_rest(self: Any, state: dict[str, Any], *rest: Any) -> Any:
        if field:
            return load(self, state | {field: self.state_dict()[field]}, *rest)
        return None

    monkeypatch.setattr(PARTS[part], "load_state_dict", load_rest)


def go_on(stopped: Path, directory: Path, *overrides: str) -> dict[str, Any]:
    """What a copy of a run comes to when it goes on, in a process whose generators have been used."""
    shutil.copytree(stopped, directory)
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(12345)
    train.train(load_config(directory), directory, overrides)
    return outcome_of(directory)


@pytest.mark.parametrize("end", ENDS)
def test_a_run_with_every_part_goes_on_exactly(end: str, moody: Callable[..., Any], tmp_path: Path) -> None:
    stopped, expected = moody(end)
    assert expected["metrics"]["best"]["epoch"] == 2
    assert_same(go_on(stopped, tmp_path / "again"), expected)


def test_training_and_validation_measure_apart(moody: Callable[..., Any]) -> None:
    lines = moody("in epoch 4")[1]["lines"]
    assert [(line["train/seen"], line["val/seen"]) for line in lines] == [(3.0, pytest.approx(1.43))] * 4


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_not_restored_is_missed(
    part: str, moody: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, expected = moody(END_OF.get(part, "in epoch 4"))
    restored_without(part, monkeypatch)
    with pytest.raises((AssertionError, LookupError, ValueError)):  # it ends otherwise, or cannot even go on
        assert_same(go_on(stopped, tmp_path / "again"), expected)


def test_every_part_of_a_checkpoint_was_left_out(moody: Callable[..., Any]) -> None:
    state = load_tensors(moody("in epoch 4")[0] / "last.pt")
    saved = state.keys() - {"format", "spec", "configuration", "ranks"} | state["ranks"][0].keys()
    assert saved == {part.partition(".")[0] for part in PARTS}
    assert state["progress"].keys() == {part.partition(".")[2] for part in PARTS if "progress" in part}
