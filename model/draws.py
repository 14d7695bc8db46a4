"""What is drawn at random of the data: functions of (seed, epoch, index) alone, whatever ran before."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from numpy.random import mtrand
from torch import Tensor

SPARE = np.random.MT19937(0)  # numpy's generator while examples are drawn


def generator_for(seed: int, epoch: int, *, purpose: int = 0) -> torch.Generator:
    """A generator on the CPU that depends on nothing but its arguments; purposes do not share their numbers."""
    mixed = (seed * 1_000_003 + epoch) * 1_000_003 + purpose
    return torch.Generator().manual_seed(mixed % 2**63)


def epoch_order(num_examples: int, *, shuffle: bool, seed: int, epoch: int) -> Tensor:
    """The order of the examples in an epoch, [num_examples]: a function of (seed, epoch) alone."""
    if not shuffle:
        return torch.arange(num_examples)
    return torch.randperm(num_examples, generator=generator_for(seed, epoch))


def seed_example(seed: int, epoch: int, index: int) -> None:
    """Seeds the generators that code of anyone's draws from (torch's on the CPU, numpy's, Python's) for one example."""
    digest = hashlib.blake2b(f"{seed} {epoch} {index}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    torch.default_generator.manual_seed(number % 2**63)
    np.random.seed(number % 2**32)
    random.seed(number)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Puts those generators back at the end: what is drawn inside disturbs no dropout."""
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    # Reading and writing the state of numpy's generator would take 50 times as long as putting another in its place.
    numpy_generator = mtrand.get_bit_generator()
    mtrand.set_bit_generator(SPARE)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        mtrand.set_bit_generator(numpy_generator)
        random.setstate(python_state)
