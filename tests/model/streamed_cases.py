"""Datasets of anyone's that the tests of several files use."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from model.batching import Batch
from model.data_loader import make_loader
from model.splits import Split, describe, load_split

CPU = torch.device("cpu")


class Noisy(Dataset):
    """Items that draw at random from everywhere; each carries its number."""

    classes = ("even", "odd", "never")

    def __init__(self, num: int = 40) -> None:
        self.targets = [number % 2 for number in range(num)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        drawn = [float(torch.rand(())), np.random.rand(), random.random()]
        return torch.tensor([index, *drawn]), self.targets[index]


def split_of(dataset: Any, split: str = "train", **options: Any) -> Split:
    parts = {"train": dataset, "test": dataset}
    return load_split(parts.get, split, **{"val_fraction": 0.2, "split_seed": 0} | options)


def epochs_of(examples: Split, epochs: tuple[int, ...] = (1, 2), *, start: int = 0, **options: Any) -> list[Batch]:
    spec = describe(examples, None, None)
    loader = make_loader(examples, spec, device=CPU, **{"batch_size": 6, "shuffle": True, "seed": 5} | options)
    found = []
    for epoch in epochs:
        loader.set_epoch(epoch, start=start)
        found += list(loader)
    loader.close()
    return found
