"""What is drawn at random of the data: functions of (seed, epoch) alone, whatever ran before."""

from __future__ import annotations

import torch
from torch import Tensor


def generator_for(seed: int, epoch: int, *, purpose: int = 0) -> torch.Generator:
    """A generator on the CPU that depends on nothing but its arguments; purposes do not share their numbers."""
    mixed = (seed * 1_000_003 + epoch) * 1_000_003 + purpose
    return torch.Generator().manual_seed(mixed % 2**63)


def epoch_order(num_examples: int, *, shuffle: bool, seed: int, epoch: int) -> Tensor:
    """The order of the examples in an epoch, [num_examples]: a function of (seed, epoch) alone."""
    if not shuffle:
        return torch.arange(num_examples)
    return torch.randperm(num_examples, generator=generator_for(seed, epoch))
