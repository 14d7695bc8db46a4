"""Every part of a checkpoint is needed: a run that goes on without one ends otherwise."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Callable
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
from lab.config.schedule import Schedule

import train
from lab.plots import pictures
from lab.runs.checkpoint import load_tensors
from lab.runs.loading import load_config
from lab.runs.logger import RunLogger
from lab.runs.meter import Means
from lab.runs.progress import Measured, Progress
from model.net import MLP, DataSpec
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
        return super().forward(x + noise) * sign


MOODY = ["model._target_=test_every_part.Moody", *NO_OPTIONS, "optimizer.lr=0.01", "scheduler=cosine"]
MOODY += ["trainer.precision=fp16", "trainer.animate=true"]


def never(*_: Any, **__: Any) -> Any:
    raise Killed


# How a run of 4 epochs ends: what it is told about checkpoints, and what kills it.
ENDS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "in epoch 4": ("17", lambda patch: kill_after(19, patch)),  # logs step 18 after its checkpoint
    "before it measures epoch 1": ("5", lambda patch: patch.setattr(train, "validate", never)),
    "before its last words": ("17", lambda patch: patch.setattr(train, "check_outcome", never)),
}
# What is left out of the state that is restored -> what restores it.
PARTS: dict[str, type] = {
    "model": torch.nn.Module,
    "optimizer": torch.optim.Optimizer,
    "schedule": Schedule,
    "scaler": torch.amp.GradScaler,
    "snapshots": pictures.Snapshots,
    "log": RunLogger,
    "measured": Measured,
    "measured.means": Means,
    "measured.recent": Measured,
    "measured.sizes": Measured,
    "random": RandomState,
    "random.python": RandomState,
    "random.numpy": RandomState,
    "random.torch": RandomState,
    **{f"progress.{field.name}": Progress for field in dataclasses.fields(Progress)},
}
END_OF = {"progress.learning_rate": "before it measures epoch 1", "progress.final": "before its last words"}


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
        if field and part != "measured.means":
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
    saved = state.keys() - {"format", "spec", "configuration", "processes"} | state["processes"]["states"][0].keys()
    assert saved == {part.partition(".")[0] for part in PARTS}
    assert state["progress"].keys() == {part.partition(".")[2] for part in PARTS if "progress" in part}
