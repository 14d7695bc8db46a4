"""The learning rate in the course of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from utils import nothing


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
