"""Numbers that are not finite, or too many, end a run before they are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Outcome, assert_one_line, read
from helpers.runs import (
    NO_OPTIONS,
    STEPS_PER_EPOCH,
    after_step,
    only_run,
    weights_of,
)
from torch import nn

from lab.runs.checkpoint import load_tensors
from lab.runs.progress import TrainingMeter
from lab.runs.run import Run
from model.net import MLP, DataSpec


class Spoil(torch.autograd.Function):
    """Its input, or zeros for it; its gradient is some number."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gradient: float, is_dead: bool) -> torch.Tensor:
        ctx.gradient = gradient
        return torch.zeros_like(x) if is_dead else x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return torch.full_like(gradients[0], ctx.gradient), None, None


class Spoiled(MLP):
    """A network one of whose weights gets a gradient of nan (or inf) in the 7th step, while the loss stays a number.

    is_dead: nothing depends on that weight, so that no loss ever shows it.
    """

    def __init__(self, spec: DataSpec, *, infinite: bool = False, is_dead: bool = False) -> None:
        super().__init__(spec)
        self.bias, self.is_dead, self.num_steps = nn.Parameter(torch.zeros(1)), is_dead, 0
        self.gradient = float("inf" if infinite else "nan")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_steps += self.training and torch.is_grad_enabled()
        bias = Spoil.apply(self.bias, self.gradient, self.is_dead) if self.num_steps == 7 else self.bias
        return super().forward(x) + (0 if self.is_dead and self.num_steps != 7 else bias)


SPOILED = ["model._target_=test_not_finite.Spoiled", *NO_OPTIONS, "optimizer=sgd"]
STEP_7, STEP_8 = (f"epoch 2, step {step} (batch {step - STEPS_PER_EPOCH} of the epoch)" for step in (7, 8))
# What is asked for -> what is said, and the step of the checkpoint that is left.
DIVERGED: dict[str, tuple[list[str], str, int]] = {
    "nan, seen in a checkpoint": (["trainer.checkpoint_every=1"], f"a weight is not finite at {STEP_7}", 6),
    "inf, seen in a checkpoint": (["+model.infinite=true", "trainer.checkpoint_every=1"], f"not finite at {STEP_7}", 6),
    "nan, seen in the next loss": ([], f"the loss is nan at {STEP_8}", 5),
    "inf, seen in the next loss": (["+model.infinite=true"], f"the loss is nan at {STEP_8}", 5),
    "seen in no loss": (["+model.is_dead=true"], "a weight is not finite at the end of epoch 2, step 10", 5),
}


@pytest.mark.parametrize("case", DIVERGED)
def test_a_gradient_that_is_not_finite_ends_a_run_before_it_is_kept(
    case: str, try_short: Callable[..., Outcome], tmp_path: Path
) -> None:
    arguments, said, step = DIVERGED[case]
    outcome = try_short(*SPOILED, *arguments, "trainer.log_every=50")
    run = only_run(tmp_path)
    assert_one_line(Outcome(outcome.code, "", outcome.err), said, "optimizer.lr", code=1)
    assert read(run / "status.json")["state"] == "diverged"
    assert said in read(run / "status.json")["error"]
    assert load_tensors(run / "last.pt")["progress"]["step"] == step
    assert read(run / "metrics.json")["best"]["epoch"] == 1
    for path in run.glob("*.pt"):
        assert all(tensor.isfinite().all() for tensor in weights_of(path).values()), path.name


def test_a_loss_that_is_not_finite_becomes_no_checkpoint(
    try_short: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_step, calls = TrainingMeter.add_step, []

    def spoiled(self: TrainingMeter, losses: torch.Tensor, *rest: Any, **keywords: Any) -> None:
        calls.append(1)
        add_step(self, losses * (float("nan") if len(calls) == 7 else 1), *rest, **keywords)

    monkeypatch.setattr(TrainingMeter, "add_step", spoiled)
    outcome = try_short("trainer.checkpoint_every=1", "trainer.log_every=50")
    assert_one_line(Outcome(outcome.code, "", outcome.err), f"the loss is nan at {STEP_7}", code=1)
    assert load_tensors(only_run(tmp_path) / "last.pt")["progress"]["step"] == 6


class Greedy(MLP):
    """A network that asks for a petabyte in its 7th training step."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.num_steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_steps += self.training and torch.is_grad_enabled()
        return super().forward(x) + (torch.empty(2**50).sum() if self.num_steps == 7 else 0)


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_out_of_memory_says_what_to_turn_down(
    where: str, try_short: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(run: Run) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee the documentation")

    if where == "gpu":
        after_step(7, exhaust, monkeypatch)
    outcome = try_short(*["model._target_=test_not_finite.Greedy", *NO_OPTIONS] * (where == "cpu"))
    status = read(only_run(tmp_path) / "status.json")
    assert_one_line(Outcome(outcome.code, "", outcome.err), "out of memory", "data.batch_size (it is 64)", code=1)
    assert status["state"] == "failed"
    assert "turn down data.batch_size (it is 64)" in status["error"] and "\n" not in status["error"]
    assert load_tensors(only_run(tmp_path) / "last.pt")["progress"]["step"] == STEPS_PER_EPOCH
