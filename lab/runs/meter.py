"""What is measured: exact means over examples, wherever batches end."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lab.devices.distributed import ALONE, World
from model.metrics import Accumulated, Metric
from model.trees import tree_cat, tree_map

FOLD_AT = 2**18  # numbers of outputs that are held back before they are added up, all at once


class Meter:
    """Means of the losses and the metrics over examples, wherever batches end, over all processes together.

    Nothing is read from the device before `result`, and adding up is left for many examples at once. metrics: by name,
    each a `Metric` or an object with update, compute, reset and a state, such as those of torchmetrics.
    """

    differs_by_rank = True  # in a checkpoint each process has its own

    def __init__(self, metrics: Mapping[str, Any], world: World = ALONE) -> None:
        self.world = world
        self.means = {name: metric for name, metric in metrics.items() if isinstance(metric, Metric)}
        others = {name: metric for name, metric in metrics.items() if name not in self.means}
        self.stateful = {name: copied(metric, world.device) for name, metric in others.items()}
        self.names = list(metrics)
        self.clear()

    def clear(self) -> None:
        """Forgets all that was added."""
        self.waiting: list[tuple[Any, Any, Any]] = []  # (losses, outputs, targets) of batches
        self.num_waiting = self.num_folded = 0
        self.sums: dict[str, Tensor] = {}  # of the losses and of each metric's quantities
        for metric in self.stateful.values():
            metric.reset()

    @property
    def num_added(self) -> int:
        """How many examples were added."""
        return self.num_folded + self.num_waiting

    def add(self, losses: Any, outputs: Any, targets: Any) -> None:
        """A batch: its loss values [n], or those of several losses by name; the outputs (detached) and the targets."""
        self.waiting.append((losses, outputs, targets))
        self.num_waiting += len(losses) if isinstance(losses, Tensor) else len(losses["loss"])
        if not isinstance(outputs, Tensor) or outputs.dim() > 2:
            self._fold()  # batches that need not be of one shape
        elif self.num_waiting * outputs.numel() >= FOLD_AT * len(outputs):
            self._fold()

    def result(self) -> dict[str, float]:
        """{"loss": ..., other losses, and each metric by name}, over all that was added, in all processes."""
        self._fold()
        num_examples = int(self.world.sum(torch.tensor(self.num_folded)))
        means = {name: self.world.sum(total).cpu().double() / num_examples for name, total in self.sums.items()}
        values = {name: float(mean) for name, mean in means.items() if name not in self.means}
        values |= {name: metric.result(means[name]) for name, metric in self.means.items()}
        values |= {name: float(metric.compute()) for name, metric in self.stateful.items()}
        losses = [name for name in values if name not in self.names]
        return {name: values[name] for name in (*losses, *self.names)}

    def state_dict(self) -> dict[str, Any]:
        """What was added so far; what waits goes on waiting, so that sums are the same to the last bit."""
        return {
            "waiting": tree_map(Tensor.cpu, [tree_cat(self.waiting)] if self.waiting else []),
            "sums": {name: total.cpu() for name, total in self.sums.items()},
            "num_folded": self.num_folded,
            "stateful": {name: metric.state_dict() for name, metric in self.stateful.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clear()
        for batch in tree_map(lambda part: part.to(self.world.device), state["waiting"]):
            self.add(*batch)
        self.sums = {name: total.to(self.world.device) for name, total in state["sums"].items()}
        self.num_folded = state["num_folded"]
        for name, metric in self.stateful.items():
            metric.load_state_dict(state["stateful"][name])

    def _fold(self) -> None:
        if not self.waiting:
            return
        losses, outputs, targets = tree_cat(self.waiting)
        values = losses if isinstance(losses, Mapping) else {"loss": losses}
        values = {**values, **{name: metric.values(outputs, targets) for name, metric in self.means.items()}}
        for metric in self.stateful.values():
            metric.update(outputs, targets)
        exact = torch.float32 if values["loss"].device.type == "mps" else torch.float64  # mps has no float64
        sums = {name: value.sum(dim=0, dtype=exact) for name, value in values.items()}
        self.sums = {name: self.sums[name] + new for name, new in sums.items()} if self.sums else sums
        self.num_folded += self.num_waiting
        self.waiting, self.num_waiting = [], 0


def copied(metric: Any, device: torch.device) -> Any:
    """A metric with a state of its own: training and validation measure by turns."""
    metric = copy.deepcopy(metric.metric if isinstance(metric, Accumulated) else metric)
    if hasattr(metric, "to"):
        metric.to(device)
    return metric
