"""The learning rate in the course of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

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


def warmup_cosine(
    optimizer: torch.optim.Optimizer, *, warmup: int, total_steps: int, final_share: float = 0.1
) -> LambdaLR:
    """Up to the learning rate in `warmup` steps, in a line; then down to `final_share` of it, in half a cosine."""

    def share(step: int) -> float:
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        falling = final_share + (1 - final_share) * (1 + math.cos(math.pi * progress)) / 2
        return (step + 1) / (warmup + 1) if step < warmup else falling

    return LambdaLR(optimizer, share)


def warmup_stable_decay(
    optimizer: torch.optim.Optimizer, *, warmup: int, decay: int, total_steps: int, final_share: float = 0.0
) -> LambdaLR:
    """Up to the learning rate in `warmup` steps, on with it, and in the last `decay` steps down to `final_share` of it."""

    def share(step: int) -> float:
        left = max(0.0, min(1.0, (total_steps - step) / max(1, decay)))
        return min((step + 1) / (warmup + 1), final_share + (1 - final_share) * left)

    return LambdaLR(optimizer, share)
