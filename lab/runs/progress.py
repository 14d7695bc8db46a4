"""How far a run has come, what its epoch under way has measured, and when it is over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, get_type_hints

import torch
from torch import Tensor

from lab.config.schema import check_keys, nearest_name
from lab.runs.meter import Meter
from utils import Diverged, Unmet, UserError

CALMER = "turn down optimizer.lr, or set trainer.max_grad_norm=1"  # what to try against a divergence


@dataclass
class Progress:
    """How far a run has come: the part of its state that is no tensor.

    monitor: the metric, "val/...", that says which epoch is best; higher_is_better: of the loss and of each metric by name.
    Both are of the configuration, and in no checkpoint.
    """

    monitor: str = "val/loss"
    higher_is_better: Mapping[str, bool] = field(default_factory=lambda: {"loss": False})
    epoch: int = 0  # the last whole one
    step: int = 0
    batch: int = 0  # how many batches the epoch under way has behind it
    learning_rate: float = 0.0  # of the latest step
    num_skipped: int = 0  # steps of fp16 that moved no weight
    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)

    @classmethod
    def judged_by(cls, monitor: str | None, metrics: Mapping[str, Any]) -> Progress:
        """That of a run whose best epoch that metric tells; None: its accuracy where it has one, else its loss.

        UserError for a metric that the run does not measure.
        """
        higher_is_better = {"loss": False, **{name: bool(one.higher_is_better) for name, one in metrics.items()}}
        names = [f"val/{name}" for name in higher_is_better]
        if monitor is None:
            monitor = "val/accuracy" if "val/accuracy" in names else "val/loss"
        if monitor not in names:
            near = nearest_name(monitor, names)
            raise UserError(
                f"trainer.monitor is {monitor!r}; this run measures {', '.join(names)}"
                + f"; did you mean {near}?" * bool(near)
            )
        return cls(monitor, higher_is_better)

    def end_step(self, learning_rate: float, *, was_skipped: bool = False) -> None:
        """Counts a step with that learning rate; was_skipped: its gradient was not finite, and no weight moved."""
        self.step, self.batch, self.learning_rate = self.step + 1, self.batch + 1, learning_rate
        self.num_skipped += was_skipped

    @property
    def seeks_higher(self) -> bool:
        """Whether a higher value of the monitored metric is better."""
        return self.higher_is_better[self.monitor.removeprefix("val/")]

    def end_epoch(self, metrics: dict[str, float]) -> None:
        """Takes in the metrics of the next epoch, which is the best one if it is better than all before it.

        Raises Diverged where its validation loss is not finite.
        """
        if not math.isfinite(loss := metrics["val/loss"]):
            raise Diverged(f"the validation loss is {loss} after {self.place(self.step)}; {CALMER}")
        value = metrics[self.monitor]
        best = self.best.get(self.monitor, math.nan)  # of no epoch yet, or one that could not be measured
        if math.isnan(best) or (value > best if self.seeks_higher else value < best):
            self.best_epoch, self.best = self.epoch + 1, metrics
        self.epoch, self.batch, self.final = self.epoch + 1, 0, metrics

    def is_over(self, *, epochs: int, patience: int | None) -> bool:
        """Whether all epochs are done, or `patience` of them have passed without a better one."""
        return self.epoch >= epochs or self.epoch - self.best_epoch >= (patience or math.inf)

    def place(self, step: int) -> str:
        """Where in the run a step is, of the epoch under way or else the one that has just ended."""
        if self.batch == 0:
            return f"the end of epoch {self.epoch}, step {step}"
        return f"epoch {self.epoch + 1}, step {step} (batch {self.batch - self.step + step} of the epoch)"

    def summary(self) -> dict[str, Any]:
        """What metrics.json holds."""
        return {
            "monitor": self.monitor,
            "higher_is_better": dict(self.higher_is_better),
            "best": {"epoch": self.best_epoch, **self.best},
            "final": {"epoch": self.epoch, **self.final},
        }

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key not in ("monitor", "higher_is_better")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        hints = {key: hint for key, hint in get_type_hints(Progress).items() if key in self.state_dict()}
        check_keys(state, hints, where="")
        if not all(isinstance(value, (int, float)) for value in (*state["best"].values(), *state["final"].values())):
            raise ValueError("a metric is no number")
        for key, value in state.items():
            setattr(self, key, value)


class TrainingMeter(Meter):
    """The meter of the epoch under way, which also sees to it that the loss of each step is finite."""

    def clear(self) -> None:
        super().clear()
        self.recent: list[Tensor] = []  # loss values [n] of each step since the latest line of the log
        self.sizes: list[int] = []  # of the whole batch of each of those steps

    def add_step(self, losses: Any, outputs: Any, targets: Any, *, size: int) -> None:
        """The batch of a step, of whose `size` examples this process may have a part."""
        self.add(losses, outputs, targets)
        self.recent.append(losses if isinstance(losses, Tensor) else losses["loss"])
        self.sizes.append(size)

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

    def end_epoch(self, progress: Progress) -> dict[str, float]:
        """What `result` gives for the whole epoch; the next one starts from nothing."""
        self.check(progress)
        result = self.result()
        self.clear()
        return result

    def state_dict(self) -> dict[str, Any]:
        recent = [values.cpu() for values in self.recent]
        return {**super().state_dict(), "recent": recent, "sizes": list(self.sizes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.recent = [values.to(self.world.device) for values in state["recent"]]
        self.sizes = list(state["sizes"])


def check_outcome(progress: Progress, fail_above: float) -> None:
    """Raises Unmet where the training loss ends above `fail_above`."""
    loss = progress.final["train/loss"]
    if loss > fail_above:
        raise Unmet(
            f"the training loss ended at {loss:.4g}, above trainer.fail_above={fail_above:g}: the network cannot learn "
            f"this; look for a mistake in it, or train for longer"
        )
