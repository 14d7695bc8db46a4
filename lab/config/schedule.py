"""The learning rate in the course of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig

from lab.config.targets import build, is_share
from model.net import higher_is_better
from utils import UserError, nothing


class Schedule:
    """A learning-rate scheduler of PyTorch, stepped where its interval says: after each step, or after each epoch."""

    def __init__(self, scheduler: Any, interval: str) -> None:
        self.scheduler = scheduler
        needs_value = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        self.after_step: Callable[[], None] = scheduler.step if interval == "step" else nothing
        self.after_epoch: Callable[[float], None] = nothing
        if interval == "epoch":
            self.after_epoch = scheduler.step if needs_value else lambda value: scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)


def build_schedule(
    cfg: DictConfig, optimizer: torch.optim.Optimizer, *, num_steps_per_epoch: int, monitor: str
) -> Schedule:
    """The schedule of a configuration; a length such as "100%" is that share of the whole run, in the interval's unit."""
    node = dict(cfg.scheduler)
    total = cfg.trainer.epochs * (num_steps_per_epoch if node["interval"] == "step" else 1)
    for key, value in node.items():
        if is_share(value):
            node[key] = max(1, round(float(value[:-1]) / 100 * total)) if float(value[:-1]) > 0 else 0
        if key in ("T_max", "step_size", "total_steps") and node[key] < 1:
            raise UserError(f"scheduler.{key} is {value}; it takes a whole number at least 1, or a share such as 100%")
        if key == "total_steps" and node[key] < total:
            raise UserError(
                f"scheduler.total_steps is {value}, less than the run's {total} {node['interval']}s; take 100%"
            )
    if node["_target_"].endswith("ReduceLROnPlateau"):
        node.setdefault("mode", "max" if higher_is_better(monitor) else "min")
        if node["interval"] == "step":
            raise UserError(
                f"scheduler.interval is step; a plateau is one of {monitor}, which is measured once an epoch"
            )
    return Schedule(build("scheduler", node, optimizer), node["interval"])
