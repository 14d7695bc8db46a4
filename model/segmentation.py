"""Segmentation: which pixels of a picture belong to a digit that lies on a texture.

python train.py experiment=segmentation
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import train
from model.datasets import mnist
from model.examples import Examples
from model.metrics import Metric
from model.net import DataSpec, check_sizes, image_shape

# ------------------------------------------------------------------------------------------------------------- the data


def digits_on_texture(split: str, root: str, *, num_train: int = 5000, num_test: int = 1000) -> Examples | None:
    """MNIST's digits on waves that are as bright as they are: uint8 [n, 1, 28, 28], and masks uint8 [n, 28, 28], 1 on ink.

    Every picture has its own waves, drawn from the number of its digit, so a split is the same each time.
    """
    digits = mnist(split, root)
    if digits is None:
        return None
    ink = digits.inputs[: num_test if split == "test" else num_train].float() / 255
    generator = torch.Generator().manual_seed(int(split == "test"))
    pictures = torch.where(ink > 0.5, ink, waves(len(ink), ink.shape[-1], generator))
    noise = torch.randn(pictures.shape, generator=generator)
    pictures = (pictures + 0.05 * noise).clamp(0, 1)
    return Examples((255 * pictures).round().byte(), (ink[:, 0] > 0.5).byte())


def waves(num: int, size: int, generator: torch.Generator) -> Tensor:
    """Textures [num, 1, size, size] in 0..1: of each, two plane waves of random direction, length and phase."""
    frequency = torch.empty(num, 2, 2, 1, 1).uniform_(-1.0, 1.0, generator=generator)  # [picture, wave, axis]
    phase = torch.empty(num, 2, 1, 1).uniform_(0, 6.28, generator=generator)
    place = torch.arange(size, dtype=torch.float32)
    both = torch.sin(frequency[:, :, 0] * place[:, None] + frequency[:, :, 1] * place + phase)
    return 0.4 + 0.2 * both.sum(dim=1, keepdim=True)


# ---------------------------------------------------------------------------------------------------------- the network


def block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two convolutions that keep the size."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Down by halves and up again, where each level also reads the one of its size (Ronneberger et al. 2015).

    [batch, channels, height, width] -> the logit of each pixel, [batch, height, width].
    """

    def __init__(self, spec: DataSpec, *, channels: Sequence[int] = (8, 16, 32)) -> None:
        super().__init__()
        check_sizes(channels, "model.channels", at_least=2)
        widths = [image_shape(spec, "UNet")[0], *channels]
        self.down = nn.ModuleList(block(*pair) for pair in itertools.pairwise(widths))
        self.up = nn.ModuleList(block(wide + narrow, narrow) for narrow, wide in itertools.pairwise(channels))
        self.head = nn.Conv2d(channels[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for number, down in enumerate(self.down):
            levels.append(x := down(F.max_pool2d(x, 2) if number else x))
        for up, level in zip(reversed(self.up), reversed(levels[:-1]), strict=True):
            x = up(torch.cat([level, F.interpolate(x, size=level.shape[-2:])], dim=1))
        return self.head(x)[:, 0]


# ---------------------------------------------------------------------------------------------- loss, metric, pictures


def pixel_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of logits with masks -> that of each pixel, [batch, height, width]."""
    return F.binary_cross_entropy_with_logits(outputs, targets.float(), reduction="none")


def iou() -> Metric:
    """Intersection over union of all pixels of all pictures together: predicted is where the logit is above 0."""

    def areas(outputs: Tensor, targets: Tensor) -> Tensor:
        predicted, true = (outputs > 0).flatten(1), (targets > 0).flatten(1)
        return torch.stack([(predicted & true).sum(dim=1), (predicted | true).sum(dim=1)], dim=1)

    return Metric(areas, lambda means: float(means[0] / means[1]) if means[1] else 1.0, higher_is_better=True)


class Learner(train.Learner):
    """Shows twelve pictures of the validation; below each its mask, and below that what the network takes for it."""

    def show(self, epoch: int) -> Mapping[str, Tensor | str]:
        pictures, masks, _ = self.first_batch()
        pictures, masks = pictures[:12, :1], masks[:12].float()
        low, high = pictures.amin(dim=(1, 2, 3), keepdim=True), pictures.amax(dim=(1, 2, 3), keepdim=True)
        found = self.average.network(self.first_batch().inputs[:12]).sigmoid()
        rows = [((pictures - low) / (high - low).clamp(min=1e-9))[:, 0], masks, found]  # each [12, height, width]
        sheet = torch.cat([torch.cat(list(F.pad(row, (1, 1, 1, 1), value=1.0)), dim=1) for row in rows])
        return {"masks": F.interpolate(sheet[None, None], scale_factor=3)[0]}
