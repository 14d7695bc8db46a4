"""What a dataset gives: the examples of a split, in memory or as image files.

Nothing here knows where they come from (datasets.py), nor what becomes of them (data_loader.py).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# What an image file may really hold. Pillow goes by the content, and has readers that start other programs: not for these.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


class DataError(ValueError):
    """Data that is missing, damaged or unfit; the message is one line for the user."""

    for_user = True


@dataclass(frozen=True)
class Examples:
    """A split in memory.

    inputs: uint8 images [n, channels, height, width] or float32 [n, features]; targets: int64 class numbers [n], or
    float32 [n, outputs] for regression; classes: the names of the classes, in the order of their numbers.
    """

    inputs: Tensor
    targets: Tensor
    classes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise DataError(f"{len(self.inputs)} inputs, but {len(self.targets)} targets")
        inputs = (self.inputs.dtype, self.inputs.dim())
        if inputs != (torch.uint8, 4) and not (inputs[0] == torch.float32 and inputs[1] >= 2):
            raise DataError(
                f"inputs are {inputs[0]} of shape {list(self.inputs.shape)}; they are torch.uint8 images [n, channels, "
                f"height, width] or torch.float32 [n, features]"
            )
        targets = (self.targets.dtype, self.targets.dim())
        if targets not in ((torch.int64, 1), (torch.float32, 2)):
            raise DataError(
                f"targets are {targets[0]} of shape {list(self.targets.shape)}; they are torch.int64 class numbers [n] or "
                f"torch.float32 values [n, outputs]"
            )
        for name, values in (("inputs", self.inputs), ("targets", self.targets)):
            if values.is_floating_point() and not values.isfinite().all():
                num_bad = int((~values.flatten(1).isfinite()).any(dim=1).sum())
                raise DataError(
                    f"the {name} of {num_bad} of {len(values)} examples hold nan or infinity; leave them out"
                )
        if not self.targets.is_floating_point() and len(self.targets):
            low, high = int(self.targets.min()), int(self.targets.max())
            if low < 0 or high >= len(self.classes):
                raise DataError(f"labels from {low} to {high}, but {len(self.classes)} classes: labels count from 0")

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, indices: Tensor) -> Examples:
        """Only the examples at `indices` [m]."""
        return replace(self, inputs=self.inputs[indices], targets=self.targets[indices])

    def in_memory(self) -> Examples:
        """Itself: a folder of images has more to do here."""
        return self

    def fingerprint(self) -> str:
        """SHA-256 of all inputs and targets."""
        digest = hashlib.sha256(self.inputs.contiguous().numpy().data)
        digest.update(self.targets.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Folder:
    """A split that stays on disk: image files, decoded when they are asked for and resized to `image_size` squared."""

    files: Sequence[Path]
    targets: Tensor
    classes: Sequence[str]
    image_size: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        """(uint8 image [3, image_size, image_size], target, index)."""
        return read_image(self.files[index], self.image_size), self.targets[index], index

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """A batch of images, uint8 [batch, 3, image_size, image_size]: all that a worker process has to hand over."""
        images = torch.empty(len(indices), 3, self.image_size, self.image_size, dtype=torch.uint8)
        for image, index in zip(images, indices, strict=True):
            image.copy_(read_image(self.files[index], self.image_size))
        return images

    def subset(self, indices: Tensor) -> Folder:
        """Only the examples at `indices` [m]."""
        return replace(self, files=[self.files[i] for i in indices.tolist()], targets=self.targets[indices])

    def fingerprint(self) -> str:
        """SHA-256 of the files' names, sizes and targets; their content is not read."""
        listing = "\n".join(
            f"{path.parent.name}/{path.name} {path.stat().st_size} {label}"
            for path, label in zip(self.files, self.targets.tolist(), strict=True)
        )
        return hashlib.sha256(listing.encode()).hexdigest()

    def in_memory(self) -> Examples:
        """All images decoded."""
        images = torch.empty(len(self), 3, self.image_size, self.image_size, dtype=torch.uint8)
        for image, path in zip(images, self.files, strict=True):
            image.copy_(read_image(path, self.image_size))
        return Examples(images, self.targets, self.classes)


def whole_batch(images: Any) -> Any:
    """What a `DataLoader` over a folder is to make of a batch: nothing, for it is whole already."""
    return images


def read_image(path: Path, size: int) -> Tensor:
    """An image file as uint8 [3, size, size]; DataError with the file's name where it cannot be decoded."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=IMAGE_FORMATS) as file:
                # Pillow cuts 16 bits off at 255 where it should scale them.
                deep = file.mode.startswith("I")
                image = Image.fromarray((np.asarray(file) / 257).astype(np.uint8)) if deep else file
                image = image.convert("RGB")
                if image.size != (size, size):
                    image = image.resize((size, size), Image.Resampling.BILINEAR)
                return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = str(error).replace(f" {str(path)!r}", "") or type(error).__name__
        raise DataError(f"{path} is not an image that can be read ({reason}); mend or remove it") from error
