"""Losses are those of torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluate import predict
from model.net import (
    LOSSES,
    MLP,
    DataSpec,
    TaskError,
    choose_loss,
)


def classification_batch(num: int = 50, classes: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(num, classes, generator=generator, dtype=torch.float64) * 3
    return logits, torch.randint(classes, (num,), generator=generator)


def regression_batch(num: int = 50, outputs: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    values, noise = (torch.randn(num, outputs, generator=generator, dtype=torch.float64) for _ in range(2))
    return values * 2 + noise + 4, values * 2 + 3


def test_classification_losses_are_torchs() -> None:
    logits, targets = classification_batch()
    expected = F.cross_entropy(logits, targets, reduction="none")
    for name, outputs in [
        ("cross_entropy", logits),
        ("nll", logits.log_softmax(dim=1)),
        ("nll_of_probabilities", logits.softmax(dim=1)),
    ]:
        values = LOSSES[name].values(outputs, targets)
        assert values.shape == (50,)
        torch.testing.assert_close(values, expected)
        torch.testing.assert_close(values.mean(), F.cross_entropy(logits, targets))


def test_regression_losses_are_torchs() -> None:
    outputs, targets = regression_batch()
    mse, total = LOSSES["mse"], LOSSES["sum_of_squares"]
    assert mse.values(outputs, targets).shape == total.values(outputs, targets).shape == (50,)
    torch.testing.assert_close(mse.values(outputs, targets).mean(), F.mse_loss(outputs, targets))
    torch.testing.assert_close(total.values(outputs, targets).sum(), F.mse_loss(outputs, targets, reduction="sum"))
    torch.testing.assert_close(total.values(outputs, targets), 3 * mse.values(outputs, targets))


def test_a_probability_of_zero_has_a_finite_loss() -> None:
    probabilities = torch.tensor([[1.0, 0.0], [0.5, 0.5]], requires_grad=True)
    values = LOSSES["nll_of_probabilities"].values(probabilities, torch.tensor([1, 1]))
    assert torch.isfinite(values).all()
    assert values[0] > 80
    torch.testing.assert_close(values[1], torch.tensor(math.log(2)))
    values.sum().backward()
    assert torch.isfinite(probabilities.grad).all()


CHOICES = {
    ("classification", "logits"): ("cross_entropy", {"cross_entropy"}),
    ("classification", "log_softmax"): ("nll", {"nll"}),
    ("classification", "softmax"): ("nll_of_probabilities", {"nll_of_probabilities"}),
    ("regression", "logits"): ("mse", {"mse", "sum_of_squares"}),
}


@pytest.mark.parametrize(("task", "output"), CHOICES)
def test_choose_loss(task: str, output: str) -> None:
    automatic, fitting = CHOICES[task, output]
    spec = DataSpec((4,), 3, task)
    assert choose_loss("auto", spec, output) is LOSSES[automatic]
    for name in [*LOSSES, "crossentropy", ""]:
        if name in fitting:
            assert choose_loss(name, spec, output) is LOSSES[name]
        else:
            with pytest.raises(TaskError, match=automatic):
                choose_loss(name, spec, output)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_are_computed_in_full_precision(precision: str) -> None:
    spec = DataSpec((13,), 3, "classification", classes=("a", "b", "c"))
    ((outputs, _),) = predict(
        MLP(spec),
        [(torch.randn(3, 13), torch.zeros(3))],
        precision,
    )
    assert outputs.dtype == torch.float32
