"""What is done to a batch on its way to the network: normalisation and augmentation, on the device of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model.draws import generator_for
from model.examples import are_images
from model.net import DataSpec
from model.trees import DataError, Tree


class Normalize:
    """Stored inputs to network inputs, and back.

    Call: uint8 images [batch, channels, height, width] -> float32, scaled to [0, 1], minus `mean`, over `std` (each a
    value a channel); other tensors only minus `mean`, over `std`, and with an empty mean and std, or where they are no
    single tensor, as they are.
    `inverse` gives the inputs before that: images as float32 in [0, 1].
    """

    def __init__(
        self, mean: Sequence[float] = (), std: Sequence[float] = (), device: torch.device | str = "cpu"
    ) -> None:
        self.is_needed = bool(mean or std)
        self.mean = torch.tensor(mean or (0.0,), device=device)
        self.std = torch.tensor(std or (1.0,), device=device)
        self.offset = (self.mean * 255).view(-1, 1, 1)  # for images as bytes
        self.scale = (1 / (self.std * 255)).view(-1, 1, 1)

    def __call__(self, inputs: Tree) -> Tree:
        if are_images(inputs):
            # Three vectorised passes: an operation on two types at once would be one, but a slower one.
            return inputs.float().sub_(self.offset).mul_(self.scale)
        if not self.is_needed or not isinstance(inputs, Tensor):
            return inputs
        mean, std = self._shaped(inputs)
        return (inputs - mean) / std

    def inverse(self, inputs: Tensor) -> Tensor:
        mean, std = self._shaped(inputs)
        return inputs * std + mean

    def _shaped(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (inputs.dim() - 2))
        return self.mean.view(shape), self.std.view(shape)


def unchanged(inputs: Tensor, indices: Tensor | None = None) -> Tensor:
    """The neutral element of what is done to inputs: nothing."""
    return inputs


class RandomCropFlip:
    """Each image of a batch shifted by up to `padding` pixels (zeros come in) and flipped left-right half of the time.

    flip: not at all, by chance, or "alternate": by chance in the first epoch and then every other time, so that two epochs
    in a row show both sides of each image (Jordan 2024, arXiv:2404.00498). What happens to an image is a function of
    (seed, epoch, index of the image), so it does not depend on the batch that the image is in, nor on what ran before.
    """

    def __init__(
        self,
        *,
        padding: int,
        flip: bool | Literal["alternate"],
        num_examples: int,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.padding, self.flip, self.num_examples, self.seed, self.device = padding, flip, num_examples, seed, device
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        generator = generator_for(self.seed, epoch, purpose=1)
        shifts = torch.randint(2 * self.padding + 1, (self.num_examples, 2), generator=generator)
        if self.flip == "alternate":
            generator = generator_for(self.seed, 0, purpose=3)  # the same draw in every epoch
        flips = torch.randint(2, (self.num_examples,), generator=generator).bool() & bool(self.flip)
        flips ^= self.flip == "alternate" and epoch % 2 == 0
        self.shifts, self.flips = shifts.to(self.device), flips.to(self.device)

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """Images [batch, channels, height, width] at `indices` [batch] of the dataset -> the same shape."""
        height, width = images.shape[-2:]
        shifts, flips = self.shifts[indices], self.flips[indices]
        rows = shifts[:, :1] + torch.arange(height, device=images.device)  # [batch, height]
        columns = torch.arange(width, device=images.device).expand(len(images), width)
        columns = shifts[:, 1:] + torch.where(flips[:, None], width - 1 - columns, columns)  # [batch, width]
        padded = F.pad(images, [self.padding] * 4)
        batch = torch.arange(len(images), device=images.device)
        # One gather for crop and flip; indexing around the channels puts them last: the channels-last memory format.
        return padded[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def has_axes(targets: Tree) -> bool:
    """Whether targets have axes of their own, or parts, that may be places in an image."""
    return targets is not None and (not isinstance(targets, Tensor) or targets.dim() > 2)


def are_dense(targets: Tree, spec: DataSpec) -> bool:
    """Whether targets are images themselves, [n, height, width] or [n, channels, height, width], as large as the inputs."""
    is_image = isinstance(targets, Tensor) and targets.dim() in (3, 4) and len(spec.input_shape) == 3
    return is_image and tuple(targets.shape[-2:]) == tuple(spec.input_shape[1:])


def make_augmentation(
    spec: DataSpec,
    targets: Tree,
    *,
    padding: int,
    flip: bool | Literal["alternate"],
    passes: int,
    num_examples: int,
    seed: int,
    device: torch.device,
) -> Callable[[Tensor, Tensor], Tensor]:
    """What is done to the images of a batch, given with their indices; DataError where it does not suit the data.

    targets: of some examples. Those that are images themselves must be as large, to be moved alike.
    """
    if not padding and not flip:
        return unchanged
    if len(spec.input_shape) != 3:
        raise DataError("data.crop_padding and data.flip are for images; the examples of this data are none")
    if padding >= min(spec.input_shape[1:]):
        raise DataError(f"data.crop_padding is {padding}; it must be less than the images' size, {spec.input_shape}")
    if has_axes(targets) and not are_dense(targets, spec):
        raise DataError(
            "data.crop_padding and data.flip move an image, but not its targets, which are no class numbers, values, or "
            "images of the same size; augment them in the dataset, or with data.transform"
        )
    if passes > 1:
        raise DataError("data.passes above 1 would augment an image alike in each pass; take more epochs instead")
    return RandomCropFlip(padding=padding, flip=flip, num_examples=num_examples, seed=seed, device=device)
