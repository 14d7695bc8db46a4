"""How far a run has come, and what its epoch under way has measured, in one process or several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_type_hints

import torch
from torch import Tensor

from evaluate import Means
from lab.config.schema import check_keys, nearest_name
from lab.devices.distributed import World
from model.net import Loss, Metric, higher_is_better
from utils import Diverged, Stateful, Unmet, UserError

CALMER = "turn down optimizer.lr, or set trainer.max_grad_norm=1"  # what to try against a divergence


@dataclass
class Progress:
    """How far a run has come: the part of its state that is no tensor."""

    epoch: int = 0  # the last whole one
    step: int = 0
    batch: int = 0  # how many batches the epoch under way has behind it
    learning_rate: float = 0.0  # of the latest step
    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)

    def end_epoch(self, metrics: dict[str, float], monitor: str) -> None:
        """Takes in the metrics of the next epoch, which is the best one if it is better than all before it."""
        value = metrics[monitor]
        best = self.best.get(monitor, math.nan)  # of no epoch yet, or one that could not be measured
        if math.isnan(best) or (value > best if higher_is_better(monitor) else value < best):
            self.best_epoch, self.best = self.epoch + 1, metrics
        self.epoch, self.batch, self.final = self.epoch + 1, 0, metrics

    def place(self, step: int) -> str:
        """Where in the run a step is, of the epoch under way or else the one that has just ended."""
        if self.batch == 0:
            return f"the end of epoch {self.epoch}, step {step}"
        return f"epoch {self.epoch + 1}, step {step} (batch {self.batch - self.step + step} of the epoch)"

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_keys(state, get_type_hints(Progress), where="")
        if not all(isinstance(value, (int, float)) for value in (*state["best"].values(), *state["final"].values())):
            raise ValueError("a metric is no number")
        self.__init__(**state)  # type: ignore[misc]


class Measured:
    """What the epoch under way has measured: exact means over its examples, and the loss of each recent step."""

    def __init__(self, loss: Loss, metrics: dict[str, Metric], world: World) -> None:
        self.means, self.world = Means(loss, metrics, world), world
        self.recent: list[Tensor] = []  # loss values [batch] of each step since the latest line of the log
        self.sizes: list[int] = []  # of the whole batch of each of those steps

    def add(self, losses: Tensor, outputs: Tensor, targets: Tensor, *, batch_size: int) -> None:
        self.means.add(losses, outputs, targets)
        self.recent.append(losses)
        self.sizes.append(batch_size)

    def check(self, progress: Progress) -> list[float]:
        """The mean loss of each recent step; raises Diverged, naming the step, for the first that is not finite."""
        if not self.recent:
            return []
        if len({len(values) for values in self.recent}) == 1:
            sums = torch.stack(self.recent).sum(dim=1)
        else:  # the last batch of an epoch is a smaller one
            sums = torch.stack([values.sum() for values in self.recent])
        totals = self.world.sum(sums).tolist()
        losses = [total / size for total, size in zip(totals, self.sizes, strict=True)]
        for step, loss in enumerate(losses, start=progress.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise Diverged(f"the loss is {loss} at {progress.place(step)}; {CALMER}")
        return losses

    def recent_loss(self, progress: Progress) -> float:
        """The mean loss of the recent steps, which then are no longer recent."""
        losses = self.check(progress)
        self.recent, self.sizes = [], []
        return sum(losses) / max(1, len(losses))

    def result(self, progress: Progress) -> dict[str, float]:
        """{"loss": ..., and each metric by name} over the whole epoch; the next one starts from nothing."""
        self.recent_loss(progress)
        result = self.means.result()
        self.means.clear()
        return result

    def state_dict(self) -> dict[str, Any]:
        recent = [values.cpu() for values in self.recent]
        return {"means": self.means.state_dict(), "recent": recent, "sizes": list(self.sizes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.means.load_state_dict(state["means"])
        self.recent = [values.to(self.world.device) for values in state["recent"]]
        self.sizes = list(state["sizes"])


def choose_monitor(name: str | None, metrics: Mapping[str, Metric]) -> str:
    """The validation metric that says which epoch is best; None: accuracy where there is one, else the loss."""
    names = ["val/loss", *(f"val/{metric}" for metric in metrics)]
    if name is None:
        return "val/accuracy" if "val/accuracy" in names else "val/loss"
    if name not in names:
        near = nearest_name(name, names)
        raise UserError(
            f"trainer.monitor is {name!r}; this run measures {', '.join(names)}"
            + f"; did you mean {near}?" * bool(near)
        )
    return name


def is_over(progress: Progress, *, epochs: int, patience: int | None) -> bool:
    """Whether all epochs are done, or `patience` of them have passed without a better one."""
    return progress.epoch >= epochs or progress.epoch - progress.best_epoch >= (patience or math.inf)


def check_outcome(progress: Progress, fail_above: float) -> None:
    """Raises Unmet where the training loss ends above `fail_above`."""
    loss = progress.final["train/loss"]
    if loss > fail_above:
        raise Unmet(
            f"the training loss ended at {loss:.4g}, above trainer.fail_above={fail_above:g}: the network cannot learn "
            f"this; look for a mistake in it, or train for longer"
        )


class PerProcess:
    """Parts of which each process has its own: collected into one state, and given back to each."""

    def __init__(self, parts: Mapping[str, Stateful], world: World) -> None:
        self.parts, self.world = parts, world
        self.num_saved = world.size
        self.collected: list[dict[str, Any]] = []

    def collect(self) -> None:
        """Takes the state of all processes together; all must call it."""
        self.collected = self.world.gather({name: part.state_dict() for name, part in self.parts.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"states": self.collected}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Gives each process its own state; another number of processes than before has new ones."""
        states = state["states"]
        self.num_saved = len(states)
        if self.num_saved == self.world.size:
            for name, part in self.parts.items():
                part.load_state_dict(states[self.world.rank][name])
        else:
            merged = merge([own["measured"] for own in states])
            self.parts["measured"].load_state_dict(merged if self.world.is_main else emptied(merged))


def merge(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several processes have measured, as if one had."""
    means = [own["means"] for own in measured]
    return {
        "means": {
            "waiting": [torch.cat(parts) for parts in zip(*(m["waiting"] for m in means if m["waiting"]), strict=True)],
            "sums": [
                torch.stack(sums).sum(dim=0) for sums in zip(*(m["sums"] for m in means if m["sums"]), strict=True)
            ],
            "num_folded": sum(m["num_folded"] for m in means),
        },
        "recent": [torch.cat(parts) for parts in zip(*(own["recent"] for own in measured), strict=True)],
        "sizes": measured[0]["sizes"],
    }


def emptied(measured: dict[str, Any]) -> dict[str, Any]:
    """The same, of no examples: what is added to another process's changes nothing."""
    means = measured["means"]
    return {
        "means": {
            "waiting": [part[:0] for part in means["waiting"]],
            "sums": [torch.zeros_like(total) for total in means["sums"]],
            "num_folded": 0,
        },
        "recent": [values[:0] for values in measured["recent"]],
        "sizes": measured["sizes"],
    }
