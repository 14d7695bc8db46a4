"""The step is the formula: gradients, clipping, parts of a batch, precision; and a learner of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import Outcome, read_lines
from helpers.runs import same
from torch import Tensor, nn

from lab.devices.device import Computing
from lab.devices.distributed import ALONE
from lab.runs.checkpoint import load_tensors
from model.batching import Batch
from model.ema import MovingAverage
from model.losses import Loss, cross_entropy, sum_of_squares
from model.net import MLP, DataSpec
from model.schedule import Schedule
from train import Learner

SPEC = DataSpec((5,), 3, "classification", classes=("a", "b", "c"))


def make_learner(
    model: nn.Module, loss: Loss = cross_entropy, *, lr: float = 0.5, precision: str = "fp32", **options: Any
) -> Learner:
    return Learner(
        model,
        loss,
        lambda network: torch.optim.SGD(network.parameters(), lr=lr),
        lambda optimizer: Schedule(torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0), "epoch"),
        world=ALONE,
        computing=Computing(precision, num_threads=1, compiled=False),
        average=MovingAverage(model, decay=None),
        **options,
    )


def batch_of(x: Any, y: Any) -> Batch:
    inputs, targets = torch.as_tensor(x), torch.as_tensor(y)
    return Batch(inputs, targets, len(inputs))


def test_a_step_is_the_formula_of_gradient_descent() -> None:
    """A network with one hidden layer, its gradient written out by hand in numpy, three steps in float64."""
    model = MLP(SPEC, hidden_sizes=[4], activation="tanh").double()
    learner = make_learner(model, lr=0.5)
    w1, b1, w2, b2 = (tensor.detach().numpy().copy() for tensor in model.parameters())
    generator = np.random.default_rng(0)
    for _ in range(3):
        x, y = generator.normal(size=(7, 5)), generator.integers(0, 3, 7)
        losses, outputs = learner.step(batch_of(x, y))

        hidden = np.tanh(x @ w1.T + b1)
        logits = hidden @ w2.T + b2
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(outputs, logits, rtol=1e-10)  # both are from before the step
        np.testing.assert_allclose(losses, -np.log(probabilities[np.arange(7), y]), rtol=1e-10)
        by_logits = (probabilities - np.eye(3)[y]) / 7
        by_hidden = by_logits @ w2 * (1 - hidden**2)
        w2, b2 = w2 - 0.5 * by_logits.T @ hidden, b2 - 0.5 * by_logits.sum(axis=0)
        w1, b1 = w1 - 0.5 * by_hidden.T @ x, b1 - 0.5 * by_hidden.sum(axis=0)
        for parameter, expected in zip(model.parameters(), (w1, b1, w2, b2), strict=True):
            np.testing.assert_allclose(parameter.detach(), expected, rtol=1e-10, atol=1e-14)


def test_the_sum_of_squares_takes_the_gradient_of_the_sum() -> None:
    model = MLP(DataSpec((5,), 2, "regression"), hidden_sizes=[]).double()
    (weight, bias), generator = (p.detach().numpy().copy() for p in model.parameters()), np.random.default_rng(0)
    x, y = generator.normal(size=(6, 5)), generator.normal(size=(6, 2))
    make_learner(model, sum_of_squares, lr=0.01).step(batch_of(x, y))
    error = x @ weight.T + bias - y
    np.testing.assert_allclose(model.fc1.weight.detach(), weight - 0.01 * 2 * error.T @ x, rtol=1e-10)
    np.testing.assert_allclose(model.fc1.bias.detach(), bias - 0.01 * 2 * error.sum(axis=0), rtol=1e-10)


def step_vector(model: nn.Module, learner: Learner, scale: float) -> Tensor:
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    generator = torch.Generator().manual_seed(0)
    learner.step(batch_of(torch.randn(8, 5, generator=generator) * scale, torch.arange(8) % 3))
    return nn.utils.parameters_to_vector(model.parameters()).detach() - before


def test_clipping_bounds_the_step_and_keeps_its_direction() -> None:
    free_model = MLP(SPEC, hidden_sizes=[])
    bound_model, loose_model = MLP(SPEC, hidden_sizes=[]), MLP(SPEC, hidden_sizes=[])
    bound_model.load_state_dict(free_model.state_dict())
    loose_model.load_state_dict(free_model.state_dict())
    free = step_vector(free_model, make_learner(free_model, lr=1.0), scale=50)
    bound = step_vector(bound_model, make_learner(bound_model, lr=1.0, max_grad_norm=0.25), scale=50)
    loose = step_vector(loose_model, make_learner(loose_model, lr=1.0, max_grad_norm=1e6), scale=50)
    assert free.norm() > 1
    assert bound.norm().item() == pytest.approx(0.25, rel=1e-4)
    torch.testing.assert_close(bound / bound.norm(), free / free.norm(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(loose, free)


def test_gradients_do_not_pile_up_over_steps() -> None:
    model = MLP(SPEC, hidden_sizes=[])
    learner = make_learner(model, lr=1e-8)
    first = step_vector(model, learner, scale=1)
    torch.testing.assert_close(step_vector(model, learner, scale=1), first, rtol=0.2, atol=1e-9)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_full_precision(precision: str) -> None:
    model, reference = MLP(SPEC), MLP(SPEC)
    reference.load_state_dict(model.state_dict())
    half, full = make_learner(model, lr=0.1, precision=precision), make_learner(reference, lr=0.1)
    x, y = torch.randn(16, 5), torch.arange(16) % 3
    for _ in range(20):
        half_losses, outputs = half.step(batch_of(x, y))
        full_losses, _ = full.step(batch_of(x, y))
        assert outputs.dtype == half_losses.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert half_losses.mean().item() == pytest.approx(full_losses.mean().item(), rel=0.05)
    assert full_losses.mean() < 1.09


@pytest.mark.parametrize("loss", [cross_entropy, sum_of_squares])
@pytest.mark.parametrize("accumulate", [2, 3, 7, 50])
def test_a_step_in_parts_is_the_step(accumulate: int, loss: Loss) -> None:
    """Parts of unequal size too, and more of them than there are examples; clipping sees the whole gradient."""
    x, y = torch.randn(7, 5, dtype=torch.float64), torch.arange(7) % 3
    batch = batch_of(x, y if loss is cross_entropy else x[:, :3])
    whole, parted = MLP(SPEC).double(), MLP(SPEC).double()
    parted.load_state_dict(whole.state_dict())
    expected = make_learner(whole, loss, lr=0.01, max_grad_norm=0.5).step(batch)
    found = make_learner(parted, loss, lr=0.01, max_grad_norm=0.5, accumulate=accumulate).step(batch)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parted.state_dict(), whole.state_dict(), rtol=1e-12, atol=1e-12)


class Averaged(Learner):
    """A learner that keeps a running mean of the weights, its own state."""

    def __init__(self, *given: Any, decay: float = 0.5, **named: Any) -> None:
        super().__init__(*given, **named)
        self.decay = decay
        self.mean = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}

    def step(self, batch: Batch) -> Any:
        result = super().step(batch)
        for name, weight in self.model.named_parameters():
            self.mean[name].lerp_(weight.detach(), 1 - self.decay)
        return result

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]


def test_a_learner_of_ones_own_trains_and_goes_on_with_its_state(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    options = ["learner._target_=test_learner.Averaged", "+learner.decay=0.9", "data.limit=150", "model.dropout=0.2"]
    whole = run_train(*options, "trainer.epochs=3", name="whole")
    parted = run_train(*options, "trainer.epochs=1", name="parted")
    assert run_command("train", f"resume={parted}", "trainer.epochs=3").code == 0
    one, other = load_tensors(whole / "last.pt"), load_tensors(parted / "last.pt")
    assert one["learner"]["mean"].keys() <= one["model"].keys()
    assert not same(one["learner"]["mean"], one["model"])
    assert same(one["learner"], other["learner"]) and same(one["model"], other["model"])
    assert same(read_lines(whole / "metrics.jsonl"), read_lines(parted / "metrics.jsonl"))
