"""Small data that the tests of several files use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from model.data_loader import Loader, make_loader
from model.datasets import digits, image_folder
from model.examples import Examples, Folder
from model.splits import describe, load_split

CPU = torch.device("cpu")


def digits_split(split: str, *, split_seed: int = 0, val_fraction: float = 0.1, limit: int | None = None) -> Examples:
    examples = load_split(
        lambda name: digits(name, ""), split, val_fraction=val_fraction, split_seed=split_seed, limit=limit
    )
    assert isinstance(examples, Examples)
    return examples


def random_images(num: int, channels: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num, channels, size, size), generator=generator, dtype=torch.uint8)


def loader_for(examples: Examples | Folder, **options: Any) -> Loader:
    spec = describe(examples, [0.5], [0.25])
    return make_loader(examples, spec, device=CPU, **{"batch_size": 10, "shuffle": True, "seed": 5} | options)


def batches(loader: Loader, epoch: int) -> list[tuple[Tensor, Tensor]]:
    loader.set_epoch(epoch)
    return [batch[:2] for batch in loader]


def write_images(folder: Path, images: Tensor, targets: Tensor, suffix: str = ".png") -> None:
    """Images [n, channels, height, width] as folder/<class>/<number>.png."""
    for number, (image, target) in enumerate(zip(images, targets.tolist(), strict=True)):
        path = folder / str(target) / f"{number:04d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = image.permute(1, 2, 0).numpy()
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)


def load_folder(root: Path, split: str = "train", image_size: int = 8) -> Folder:
    folder = image_folder(split, str(root), image_size=image_size)
    assert isinstance(folder, Folder)
    return folder
