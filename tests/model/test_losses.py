"""Losses are those of torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.commands import Outcome
from torch import Tensor, nn

from evaluate import Objective, predict
from model.batching import Batch
from model.losses import (
    Loss,
    check_loss,
    cross_entropy,
    default_loss,
    nll,
    nll_of_probabilities,
    squared_error,
    sum_of_squares,
)
from model.net import MLP, DataSpec, TaskError


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
    for loss, outputs in [
        (cross_entropy, logits),
        (nll, logits.log_softmax(dim=1)),
        (nll_of_probabilities, logits.softmax(dim=1)),
    ]:
        values = loss(outputs, targets)
        assert values.shape == (50,)
        torch.testing.assert_close(values, expected)
        torch.testing.assert_close(values.mean(), F.cross_entropy(logits, targets))


def test_regression_losses_are_torchs() -> None:
    outputs, targets = regression_batch()
    mse, total = squared_error(outputs, targets), sum_of_squares(outputs, targets)
    assert mse.shape == total.shape == (50,)
    torch.testing.assert_close(mse.mean(), F.mse_loss(outputs, targets))
    torch.testing.assert_close(total.sum(), F.mse_loss(outputs, targets, reduction="sum"))
    torch.testing.assert_close(total, 3 * mse)


def test_a_probability_of_zero_has_a_finite_loss() -> None:
    probabilities = torch.tensor([[1.0, 0.0], [0.5, 0.5]], requires_grad=True)
    values = nll_of_probabilities(probabilities, torch.tensor([1, 1]))
    assert torch.isfinite(values).all()
    assert values[0] > 80
    torch.testing.assert_close(values[1], torch.tensor(math.log(2)))
    values.sum().backward()
    assert torch.isfinite(probabilities.grad).all()


OURS: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "nll": nll,
    "nll_of_probabilities": nll_of_probabilities,
    "mse": squared_error,
    "sum_of_squares": sum_of_squares,
}
CHOICES = {
    ("classification", "logits"): ("cross_entropy", {"cross_entropy"}),
    ("classification", "log_softmax"): ("nll", {"nll"}),
    ("classification", "softmax"): ("nll_of_probabilities", {"nll_of_probabilities"}),
    ("regression", "logits"): ("mse", {"mse", "sum_of_squares"}),
}


def network_that_gives(output: str) -> nn.Module:
    network = nn.Linear(4, 3)
    network.output = output  # type: ignore[assignment]
    return network


@pytest.mark.parametrize(("task", "output"), CHOICES)
def test_a_loss_fits_the_task_and_the_last_layer(task: str, output: str) -> None:
    automatic, fitting = CHOICES[task, output]
    spec, network = DataSpec((4,), 3, task), network_that_gives(output)
    assert default_loss(spec, network) is OURS[automatic]
    for name, loss in OURS.items():
        if name in fitting:
            check_loss(loss, spec, network)
        else:
            with pytest.raises(TaskError, match=f"{name} does not fit.* choose {automatic}"):
                check_loss(loss, spec, network)


@pytest.mark.parametrize("name", ["crossentropy", ""])
def test_a_loss_that_there_is_not_is_answered_with_those_that_there_are(
    try_train: Callable[..., Outcome], name: str
) -> None:
    outcome = try_train("data=digits", f"loss={name}")
    assert outcome.code == 2
    assert all(known in outcome.err for known in OURS)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_are_computed_in_full_precision(precision: str) -> None:
    spec = DataSpec((13,), 3, "classification", classes=("a", "b", "c"))
    objective = Objective(MLP(spec), cross_entropy, torch.device("cpu"), precision)
    batch = Batch(torch.randn(3, 13), torch.zeros(3, dtype=torch.int64), 3)
    ((losses, outputs, targets),) = predict(objective, [batch])
    assert losses.dtype == outputs.dtype == torch.float32
    torch.testing.assert_close(losses, F.cross_entropy(outputs, targets, reduction="none"))


class Reconstruction(nn.Linear):
    """A network with a loss of its own, in two terms."""

    def loss(self, inputs: Tensor, targets: None) -> tuple[dict[str, Tensor], Tensor]:
        outputs = self(inputs)
        losses = {"loss": (outputs - inputs).square(), "size": outputs.abs().mean()}
        return losses, outputs


def test_a_networks_own_loss_gives_values_of_each_example_by_name() -> None:
    network, inputs = Reconstruction(4, 4), torch.randn(5, 4)
    assert default_loss(DataSpec((4,), 0, "custom"), network) is None
    objective = Objective(network, None, torch.device("cpu"))
    ((losses, outputs, targets),) = predict(objective, [Batch(inputs, None, 5)])
    expected = F.linear(inputs, network.weight, network.bias).detach()
    assert targets is None
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(losses["loss"], (expected - inputs).square().mean(dim=1))
    torch.testing.assert_close(losses["size"], expected.abs().mean().expand(5))


def test_data_of_another_kind_takes_a_loss_that_is_named() -> None:
    with pytest.raises(TaskError, match=r"loss=own .* loss\(inputs, targets\)"):
        default_loss(DataSpec((4,), 0, "custom"), network_that_gives("logits"))


def test_a_loss_of_pytorchs_may_average_or_not_but_not_sum() -> None:
    spec, network = DataSpec((4,), 3, "classification"), network_that_gives("logits")
    _, targets = classification_batch(classes=3)
    batch = Batch(torch.randn(50, 4), targets, 50)
    expected = F.cross_entropy(network(batch.inputs), targets, reduction="none").detach()
    for reduction, values in (("none", expected), ("mean", expected.mean().expand(50))):
        loss = nn.CrossEntropyLoss(reduction=reduction)
        check_loss(loss, spec, network)
        ((losses, _, _),) = predict(Objective(network, loss, torch.device("cpu")), [batch])
        torch.testing.assert_close(losses, values)
    with pytest.raises(TaskError, match="choose mean or none"):
        check_loss(nn.CrossEntropyLoss(reduction="sum"), spec, network)
