"""Metrics: what is reported beside the loss, each with a direction that the run records.

A metric of one's own is a `Metric`, a function (outputs, targets) -> values [n] whose node in `conf/metrics/` says
`higher_is_better`, or an object with `update`, `compute`, `reset` and a state (torchmetrics).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from model.losses import squared_error
from model.net import DataSpec


@dataclass(frozen=True)
class Metric:
    """`values(outputs, targets) -> [n, quantities]`; `result(means [quantities]) -> float`, from their exact means."""

    values: Callable[[Any, Any], Tensor]
    result: Callable[[Tensor], float]
    higher_is_better: bool


class Accumulated:
    """A metric with a state of its own (update, compute, reset), such as those of torchmetrics, and its direction."""

    def __init__(self, metric: Any, *, higher_is_better: bool) -> None:
        self.metric, self.higher_is_better = metric, higher_is_better
        if hasattr(metric, "persistent"):  # torchmetrics: else its state would be in no checkpoint
            metric.persistent(True)


def first_mean(means: Tensor) -> float:
    return float(means[0])


def mean_of(function: Callable[[Any, Any], Tensor], *, higher_is_better: bool) -> Metric:
    """The mean of what a function gives for each example."""
    return Metric(lambda outputs, targets: function(outputs, targets).view(-1, 1), first_mean, higher_is_better)


def accuracy(top: int = 1) -> Metric:
    """The share of examples [n, classes] whose class number [n] is among the `top` likeliest."""

    def is_right(outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point():  # mixed examples, whose targets are probabilities
            targets = targets.argmax(dim=1)
        if top == 1:
            return (outputs.argmax(dim=1) == targets).unsqueeze(1)
        return (outputs.topk(min(top, outputs.shape[1]), dim=1).indices == targets[:, None]).any(dim=1, keepdim=True)

    return Metric(is_right, first_mean, higher_is_better=True)


def rmse() -> Metric:
    """The root of the mean squared error, mean over the outputs [n, outputs] too."""
    return Metric(
        lambda outputs, targets: squared_error(outputs, targets).unsqueeze(1),
        lambda means: math.sqrt(means[0]),
        higher_is_better=False,
    )


def r2() -> Metric:
    """1 - residual variance / variance of the targets, over all outputs [n, outputs]; nan where the targets do not vary."""
    return Metric(_squares, _r2, higher_is_better=True)


def _squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """[n, 2 + outputs]: the squared error, the squared target (each summed over the outputs), the targets."""
    if outputs.device.type != "mps":  # which has no float64; squares far from zero need it
        outputs, targets = outputs.double(), targets.double()
    error = (outputs - targets).square().sum(dim=1, keepdim=True)
    return torch.cat([error, targets.square().sum(dim=1, keepdim=True), targets], dim=1)


def _r2(means: Tensor) -> float:
    variance = means[1] - means[2:].square().sum()
    return float(1 - means[0] / variance) if variance > 0 else math.nan


def macro_f1(num_classes: int) -> Metric:
    """The mean over classes of 2 hits / (predicted + true), for class numbers [n] or several labels [n, classes].

    A label is predicted where its logit is above 0. A class that is neither true nor predicted counts as 0.
    """

    def counts(outputs: Tensor, targets: Tensor) -> Tensor:
        several = targets.dim() > 1
        eye = torch.eye(num_classes, device=outputs.device)
        predicted = (outputs > 0).float() if several else eye[outputs.argmax(dim=1)]
        true = targets.float() if several else eye[targets]
        return torch.cat([predicted * true, predicted + true], dim=1)

    def result(means: Tensor) -> float:
        hits, sums = means.tensor_split(2)
        return float((2 * hits / sums.clamp(min=torch.finfo(sums.dtype).tiny)).mean())

    return Metric(counts, result, higher_is_better=True)


@dataclass(frozen=True)
class Units:
    """Standardised values [n, outputs] -> in their own units; a value of `mean` and `std` for each output."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, values: Tensor) -> Tensor:
        exact = values if values.device.type == "mps" else values.double()  # mps has no float64
        return exact * torch.tensor(self.std).to(exact) + torch.tensor(self.mean).to(exact)


class Restored:
    """A metric with a state that sees outputs and targets in their own units."""

    def __init__(self, metric: Any, units: Units) -> None:
        self.metric = metric if hasattr(metric, "update") else metric.metric  # without its direction beside it
        self.units, self.higher_is_better = units, metric.higher_is_better

    def to(self, device: torch.device) -> None:
        if hasattr(self.metric, "to"):
            self.metric.to(device)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.metric.update(self.units(outputs), self.units(targets))

    def compute(self) -> Any:
        return self.metric.compute()

    def reset(self) -> None:
        self.metric.reset()

    def state_dict(self) -> dict[str, Any]:
        return self.metric.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.metric.load_state_dict(state)


def in_units(metric: Any, spec: DataSpec) -> Any:
    """A metric of targets that `spec` says were standardised, in their own units; any other as it is."""
    if not spec.target_std:
        return metric
    units = Units(tuple(spec.target_mean), tuple(spec.target_std))
    if not isinstance(metric, Metric):
        return Restored(metric, units)
    values = metric.values
    return replace(metric, values=lambda outputs, targets: values(units(outputs), units(targets)))


DEFAULTS: dict[str, Mapping[str, Callable[[], Metric]]] = {
    "classification": {"accuracy": accuracy},
    "regression": {"rmse": rmse, "r2": r2},
}


def default_metrics(spec: DataSpec) -> dict[str, Metric]:
    """The metrics of a task, by name; of any other data, none."""
    return {name: in_units(make(), spec) for name, make in DEFAULTS.get(spec.task, {}).items()}


def count_confusions(predicted: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """The confusion matrix [true class, predicted class] of class numbers [n]."""
    return torch.bincount(targets * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def class_report(confusions: Tensor, classes: Iterable[str]) -> dict[str, dict[str, float | None]]:
    """Precision, recall, F1 and support of each class; None where a ratio has nothing to divide by."""
    right, predicted, support = (t.tolist() for t in (confusions.diag(), confusions.sum(0), confusions.sum(1)))

    def ratio(part: float, whole: float) -> float | None:
        return part / whole if whole else None

    return {
        name: {
            "precision": ratio(right[i], predicted[i]),
            "recall": ratio(right[i], support[i]),
            "f1": ratio(2 * right[i], predicted[i] + support[i]),
            "support": support[i],
        }
        for i, name in enumerate(classes)
    }
