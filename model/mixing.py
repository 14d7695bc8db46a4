"""Mixup and cutmix: each training example mixed with another one, and its target in the same proportion."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.draws import generator_for
from model.net import DataSpec
from model.trees import DataError


class Unmixed:
    """The neutral element: every example is itself."""

    def set_epoch(self, epoch: int) -> None:
        """Nothing is drawn."""

    def wanted(self, indices: Tensor) -> Tensor:
        """Which examples are needed for those at `indices` [n]."""
        return indices

    def __call__(self, inputs: Tensor, targets: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        return inputs, targets


class Mixing(Unmixed):
    """Mixup (Zhang et al. 2018, arXiv:1710.09412) and cutmix (Yun et al. 2019, arXiv:1905.04899).

    An example keeps the share that is drawn from Beta(alpha, alpha); the rest is another example, or a rectangle of it.
    With both, either one half of the time. Class numbers become probabilities [n, classes]. The other example, the share
    and the place are functions of (seed, epoch, index), so that the batch and the process make no difference.
    """

    def __init__(self, *, mixup: float, cutmix: float, num_classes: int, num_examples: int, seed: int) -> None:
        self.mixup, self.cutmix, self.num_classes = mixup, cutmix, num_classes
        self.num_examples, self.seed = num_examples, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        num = self.num_examples
        self.partners = torch.randperm(num, generator=generator_for(self.seed, epoch, purpose=4))
        draw = np.random.default_rng([self.seed, epoch, 5])
        is_cut = draw.random(num) < (0.5 if self.mixup and self.cutmix else float(bool(self.cutmix)))
        alpha = np.where(is_cut, self.cutmix, self.mixup)
        shares = draw.beta(alpha, alpha)
        self.is_cut, self.shares = torch.from_numpy(is_cut), torch.from_numpy(shares).float()
        self.centres = torch.from_numpy(draw.random((num, 2))).float()

    def wanted(self, indices: Tensor) -> Tensor:
        """The examples at `indices` [n], and then what each is mixed with: [2 n]."""
        return torch.cat([indices, self.partners[indices]])

    def __call__(self, inputs: Tensor, targets: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Of the inputs and targets [2 n, ...] of `wanted`, the mixed ones [n, ...]."""
        own = wanted[: len(wanted) // 2]
        shares = self.shares[own]
        kept = shares.view(-1, *[1] * (inputs.dim() - 1))
        if self.cutmix:
            is_cut, outside = self.is_cut[own], self._outside(own, *inputs.shape[-2:])
            shares = torch.where(is_cut, outside.mean(dim=(1, 2)), shares)  # a rectangle may reach over the edge
            kept = torch.where(is_cut.view(-1, 1, 1, 1), outside.unsqueeze(1), kept)
        kept, shares = kept.to(inputs.device), shares.to(inputs.device).unsqueeze(1)
        if not targets.is_floating_point():
            targets = F.one_hot(targets, self.num_classes).to(inputs.dtype)
        (first, second), (label, other) = inputs.chunk(2), targets.chunk(2)
        # Not torch.lerp, whose last digit depends on where in a batch a number is.
        return kept * first + (1 - kept) * second, shares * label + (1 - shares) * other

    def _outside(self, own: Tensor, height: int, width: int) -> Tensor:
        """1 where an image is itself and 0 in its rectangle, [n, height, width]."""
        side = (1 - self.shares[own]).sqrt()
        inside = []
        for axis, length in enumerate((height, width)):
            centre, half = self.centres[own, axis] * length, side * length / 2
            position = torch.arange(length) + 0.5
            inside.append((position - centre[:, None]).abs() < half[:, None])
        return 1 - (inside[0][:, :, None] & inside[1][:, None, :]).float()


def make_mixing(spec: DataSpec, *, mixup: float, cutmix: float, passes: int, num_examples: int, seed: int) -> Unmixed:
    """What mixes the examples of a batch, if anything does; DataError where it does not suit the data."""
    if not mixup and not cutmix:
        return Unmixed()
    if not spec.input_shape or spec.task == "custom":
        raise DataError(
            f"data.mixup and data.cutmix mix tensors with class numbers or values; this data is {spec.task}"
        )
    if cutmix and len(spec.input_shape) != 3:
        raise DataError("data.cutmix is for images; the examples of this data are none")
    if passes > 1:
        raise DataError("data.passes above 1 would mix an example alike in each pass; take more epochs instead")
    return Mixing(mixup=mixup, cutmix=cutmix, num_classes=spec.output_size, num_examples=num_examples, seed=seed)
