"""Small images that the tests of several files transform."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import TensorDataset

from model.batching import Batch
from model.data_loader import make_loader
from model.examples import Examples
from model.net import DataSpec
from model.splits import load_split

CPU = torch.device("cpu")
SPEC = DataSpec((3, 8, 8), 5, "classification", (0.5,), (0.25,), tuple("abcde"))


def images(num: int = 60) -> Examples:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(1, 256, (num, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Examples(pixels, torch.arange(num) % 5, list("abcde"))


def streamed(examples: Examples) -> Any:
    dataset = TensorDataset(examples.inputs, examples.targets)
    dataset.classes = examples.classes
    return load_split({"test": dataset}.get, "test", val_fraction=0.1, split_seed=0)


def epoch_of(examples: Any, epoch: int = 1, spec: DataSpec = SPEC, *, start: int = 0, **options: Any) -> list[Batch]:
    loader = make_loader(examples, spec, device=CPU, **{"batch_size": 8, "shuffle": True, "seed": 3} | options)
    loader.set_epoch(epoch, start=start)
    found = list(loader)
    loader.close()
    return found


def table(num: int = 200) -> Examples:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(num, 3, generator=generator) * torch.tensor([1e4, 1.0, 0.0]) + torch.tensor([5e6, -3.0, 7.0])
    return Examples(inputs, torch.randn(num, 2, generator=generator) * 50 + 1000)
