"""A variational autoencoder (Kingma and Welling 2014) of binary digits: data, network with a loss of its own, pictures.

python train.py experiment=vae
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import train
from model.datasets import mnist
from model.examples import Examples
from model.net import DataSpec, image_shape

# ------------------------------------------------------------------------------------------------------------- the data


def binary_mnist(split: str, root: str, *, num_val: int = 6000) -> Examples | None:
    """MNIST without labels. Its pixels are probabilities of white, from which validation and test images are drawn once.

    Those of training stay probabilities: the network draws from them anew in each step. The last `num_val` validate.
    """
    examples = mnist("test" if split == "test" else "train", root)
    assert examples is not None  # it has both
    pixels: Tensor = examples.inputs
    if split == "train":
        return Examples(pixels[:-num_val])
    chances = (pixels if split == "test" else pixels[-num_val:]) / 255
    drawn = torch.bernoulli(chances, generator=torch.Generator().manual_seed(0))
    return Examples((255 * drawn).to(torch.uint8))


# ---------------------------------------------------------------------------------------------------------- the network


class VAE(nn.Module):
    """Images [batch, channels, height, width] in [0, 1] <-> codes [batch, code_size]; both ways with layers of ReLU.

    Called, it gives the chance of white of each pixel after encoding and decoding.
    """

    def __init__(self, spec: DataSpec, *, hidden_sizes: Sequence[int] = (512, 256), code_size: int = 32) -> None:
        super().__init__()
        self.shape, self.code_size = image_shape(spec, "VAE"), code_size
        num_pixels = torch.Size(self.shape).numel()
        self.encoder = layers([num_pixels, *hidden_sizes, 2 * code_size])
        self.decoder = layers([code_size, *reversed(hidden_sizes), num_pixels])

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, logarithm of the variance) of each image's code, [batch, code_size]."""
        mean, log_variance = self.encoder(images.flatten(1)).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, codes: Tensor) -> Tensor:
        """Logits of white, [batch, channels, height, width]."""
        return self.decoder(codes).unflatten(1, self.shape)

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images)[0]).sigmoid()

    def loss(self, images: Tensor, targets: None = None) -> dict[str, Tensor]:
        """The negative evidence lower bound of each image in nats, [batch], and the two parts of it."""
        if self.training:
            images = torch.bernoulli(images)
        mean, log_variance = (values.float() for values in self.encode(images))
        codes = mean + (log_variance / 2).exp() * self.noise(mean)
        logits = self.decode(codes).float()
        reconstruction = F.binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1).sum(dim=1)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
        return {"loss": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    def noise(self, like: Tensor) -> Tensor:
        """From N(0, 1); in evaluation the same for each batch, so that a network has one figure."""
        if self.training:
            return torch.randn_like(like)
        return torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like.device)


def layers(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    parts: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        parts += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


# --------------------------------------------------------------------------------------------------------- what is shown


class Painter(train.Learner):
    """Shows validation images above their reconstructions, and images of codes drawn at random."""

    def show(self, epoch: int) -> Mapping[str, Tensor | str]:
        network = self.average.network
        images = self.first_batch().inputs[:12]
        codes = torch.randn(60, network.code_size, device=images.device)
        return {
            "reconstructions": sheet(torch.cat([images, network(images)]), columns=len(images)),
            "samples": sheet(network.decode(codes).sigmoid(), columns=12),
        }


def sheet(images: Tensor, *, columns: int) -> Tensor:
    """Images [n, channels, height, width] in rows of so many -> one image, twice as large."""
    rows = images.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4)  # [channels, row, height, column, width]
    return rows.flatten(3, 4).flatten(1, 2).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
