"""A moving average of a network's weights, which often generalises better than the weights themselves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class MovingAverage:
    """`network`: a copy whose weights are decay times their own and (1 - decay) times the trained ones, after each step.

    Buffers, such as running statistics, are those of the trained network. decay None: the trained network itself.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.model, self.decay = model, decay
        self.network = model if decay is None else copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights as they are after a step."""
        if self.decay is None:
            return
        for weight, trained in zip(self.network.parameters(), self.model.parameters(), strict=True):
            weight.lerp_(trained, 1 - self.decay)
        for buffer, trained_buffer in zip(self.network.buffers(), self.model.buffers(), strict=True):
            buffer.copy_(trained_buffer)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.decay is None else self.network.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.decay is not None:
            self.network.load_state_dict(state)
