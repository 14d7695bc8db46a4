"""Loss functions: (outputs, targets) -> a value for each example, so that means over ragged batches are exact.

A function of one's own may also give [n, ...], which is averaged within each example, or the mean of a batch; a file of
`conf/loss/` names it. Its gradient is that of the mean over a batch; with the attribute `summed`, of the sum.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.net import DataSpec, TaskError, output_of

Loss = Callable[[Any, Any], Tensor]  # (outputs, targets) -> [n], [n, ...] or a mean


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits [batch, classes, ...] with class numbers [batch, ...] -> the same shape, in nats."""
    return F.cross_entropy(outputs, targets, reduction="none")


def nll(outputs: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of log-probabilities [batch, classes] -> [batch], in nats."""
    return F.nll_loss(outputs, targets, reduction="none")


def nll_of_probabilities(outputs: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of probabilities [batch, classes] -> [batch], in nats; finite for a probability of 0."""
    return F.nll_loss(outputs.clamp(min=torch.finfo(outputs.dtype).tiny).log(), targets, reduction="none")


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error, mean over the outputs: [batch, outputs] -> [batch]."""
    return (outputs - targets).square().mean(dim=1)


def sum_of_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error, summed over the outputs: [batch, outputs] -> [batch]."""
    return (outputs - targets).square().sum(dim=1)


sum_of_squares.summed = True  # type: ignore[attr-defined]

# Which of ours are for which task, with a network whose last layer gives which of OUTPUTS; the first is the default.
FITTING: dict[tuple[str, str], list[Loss]] = {
    ("classification", "logits"): [cross_entropy],
    ("classification", "log_softmax"): [nll],
    ("classification", "softmax"): [nll_of_probabilities],
    ("regression", "logits"): [squared_error, sum_of_squares],
}


def own_loss(model: nn.Module) -> Callable[[Any, Any], Any] | None:
    """The network's own loss, its method `loss(inputs, targets)`, if it has one."""
    method = getattr(model, "loss", None)
    return method if inspect.ismethod(method) else None


def default_loss(spec: DataSpec, model: nn.Module) -> Loss | None:
    """The loss that suits the task and what the network gives, None for the network's own; TaskError if there is none."""
    if own_loss(model):
        return None
    fitting = FITTING.get((spec.task, output_of(model)))
    if fitting is None:
        raise TaskError(
            "no loss goes with this data and network by itself; choose one, such as loss=cross_entropy, or loss=own "
            "for a network that has a method loss(inputs, targets)"
        )
    return fitting[0]


def check_loss(loss: Loss, spec: DataSpec, model: nn.Module) -> None:
    """TaskError where a loss of ours is for another task or another last layer; one's own is one's own affair."""
    fits = [pair for pair, losses in FITTING.items() if loss in losses]
    if fits and spec.task in ("classification", "regression") and (spec.task, output_of(model)) not in fits:
        fitting = FITTING.get((spec.task, output_of(model)), [])
        names = " or ".join(one.__name__.replace("squared_error", "mse") for one in fitting)
        name = loss.__name__.replace("squared_error", "mse")
        raise TaskError(
            f"loss={name} does not fit {spec.task} with a network that gives {output_of(model)}; choose {names}"
        )
    if getattr(loss, "reduction", "") == "sum":
        raise TaskError("loss.reduction is sum, which depends on the size of the batch; choose mean or none")


def per_example(values: Tensor, num_examples: int) -> Tensor:
    """Loss values as [n]: a mean stands for each of its examples, and values within an example are averaged."""
    if values.dim() == 1:
        return values
    return values.expand(num_examples) if values.dim() == 0 else values.flatten(1).mean(dim=1)


def of_own_loss(given: Any, num_examples: int) -> tuple[Any, Any]:
    """(losses, outputs or None) of what a network's own loss gives: losses, or (losses, outputs).

    The losses are values as any loss gives them, or several by name, of which "loss" is minimised.
    """
    losses, outputs = given if isinstance(given, tuple) else (given, None)
    if not isinstance(losses, Mapping):
        return per_example(losses, num_examples).float(), outputs
    return {name: per_example(values, num_examples).float() for name, values in losses.items()}, outputs
