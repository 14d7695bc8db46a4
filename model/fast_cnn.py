"""A convolutional network that learns in few epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.net import DataSpec, TaskError, check_sizes, image_shape


class FastCNN(nn.Module):
    """A network that learns in few epochs, after that of airbench (Jordan 2024, arXiv:2404.00498).

    Fixed whitening filters, which spare the first layer to learn what is the same in all photographs; for each of
    `channels` two 3x3 convolutions with batch normalisation and GELU, the image halved between them; the maximum over the
    positions that are left, and one linear layer. In evaluation the answer is the mean of those to several views: with
    `shift` the image, and it moved by a pixel both ways along a diagonal; with `mirror` the mirror image of each too.
    [batch, channels, height, width] -> logits [batch, output_size].
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        channels: Sequence[int] = (64, 128, 256),
        mirror: bool = False,
        shift: bool = False,
    ) -> None:
        super().__init__()
        in_channels, height, width = image_shape(spec, "FastCNN")
        check_sizes(channels, "model.channels", at_least=1)
        if min(height, width) < 2:
            raise TaskError(f"FastCNN reads images of at least 2x2 pixels; those of this data have {height}x{width}")
        filters = whitening_filters(in_channels)
        self.whitening: Tensor
        self.register_buffer("whitening", filters)
        self.bias = nn.Parameter(torch.zeros(len(filters)))
        blocks: list[nn.Module] = []
        in_channels, size = len(filters), min(height, width) - 1
        for out_channels in channels:
            blocks += [
                nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
                nn.MaxPool2d(2) if size > 1 else nn.Identity(),
                nn.BatchNorm2d(out_channels),
                nn.GELU(),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.GELU(),
            ]
            in_channels, size = out_channels, size // 2
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(in_channels, spec.output_size)
        self.mirror, self.shift = mirror, shift

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, [batch, channels[-1]]; in evaluation the mean over all views of an image."""
        views = [x]
        if self.shift and not self.training:
            padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
            views += [padded[:, :, :-2, :-2], padded[:, :, 2:, 2:]]
        if self.mirror and not self.training:
            views += [view.flip(-1) for view in views]
        return torch.stack([self._maxima(view) for view in views]).mean(dim=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def _maxima(self, x: Tensor) -> Tensor:
        x = F.gelu(F.conv2d(x, self.whitening, self.bias))
        # Small logits at first, whatever the learning rate of the other layers.
        return self.body(x).amax(dim=(2, 3)) / 9


def whitening_filters(channels: int, *, correlation: float = 0.9) -> Tensor:
    """Filters under which a 2x2 patch of a photograph has uncorrelated values of variance 1, and their negatives.

    For the simplest model of normalised photographs: pixels beside each other correlate by `correlation`, those across
    a corner by its square, and two channels of a pixel by `correlation` too. [8 * channels, channels, 2, 2].
    """
    steps = torch.arange(channels)
    basis = torch.cos(torch.pi / channels * steps[:, None] * (steps + 0.5))  # of channels: their mean first
    basis /= basis.norm(dim=1, keepdim=True)
    variance = torch.full((channels,), 1 - correlation)
    variance[0] += channels * correlation
    across = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2 * (1 + correlation))
    across[1] *= math.sqrt((1 + correlation) / (1 - correlation))
    filters = torch.einsum("kc,ih,jw->kijchw", basis / variance.sqrt()[:, None], across, across)
    filters = filters.reshape(-1, channels, 2, 2)
    return torch.cat([filters, -filters])
