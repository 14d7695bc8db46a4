"""Several labels at once: which digits are in a picture that holds two.

python train.py experiment=multilabel
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

import train
from model.datasets import DIGITS, mnist
from model.examples import Examples

# ------------------------------------------------------------------------------------------------------------- the data


def two_digits(split: str, root: str, *, num_train: int = 20000, num_test: int = 2000) -> Examples | None:
    """Two of MNIST's digits side by side, at any height: uint8 [n, 1, 40, 56], and float32 [n, 10], 1 for each digit in it.

    Which ones, and where, is drawn once and for all, so a split is the same each time.
    """
    digits = mnist(split, root)
    if digits is None:
        return None
    num = num_test if split == "test" else num_train
    generator = torch.Generator().manual_seed(int(split == "test"))
    chosen = torch.randint(len(digits), (num, 2), generator=generator)
    heights = torch.randint(13, (num, 2), generator=generator)
    pictures = torch.zeros(num, 1, 40, 56, dtype=torch.uint8)
    for picture, (left, right), (first, second) in zip(pictures, chosen.tolist(), heights.tolist(), strict=True):
        picture[:, first : first + 28, :28] = digits.inputs[left]
        picture[:, second : second + 28, 28:] = digits.inputs[right]
    labels = torch.zeros(num, 10).scatter_(1, digits.targets[chosen], 1.0)
    return Examples(pictures, labels, DIGITS)


# --------------------------------------------------------------------------------------------- loss, metric, what is shown


def label_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each label, from logits [batch, labels] -> the same shape."""
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")


class AUROC:
    """The area under the ROC curve, mean over labels: how often what has a label gets a higher logit than what has not.

    A metric with a state, for it is no mean over examples: update, compute and reset are those of torchmetrics. Labels that
    all examples have, or none, do not count.
    """

    higher_is_better = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.outputs: list[Tensor] = []
        self.targets: list[Tensor] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.outputs.append(outputs.float().cpu())
        self.targets.append(targets.cpu())

    def compute(self) -> float:
        outputs, targets = from_all_processes(torch.cat(self.outputs)), from_all_processes(torch.cat(self.targets)) > 0
        areas = [area(outputs[:, label], targets[:, label]) for label in range(outputs.shape[1])]
        return float(torch.stack(areas).nanmean())

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"outputs": self.outputs, "targets": self.targets}

    def load_state_dict(self, state: Mapping[str, list[Tensor]]) -> None:
        self.outputs, self.targets = list(state["outputs"]), list(state["targets"])


def area(scores: Tensor, has_label: Tensor) -> Tensor:
    """The share of pairs (one has the label, one has not) in which the first scores higher; of equal ones half."""
    _, ranks, counts = scores.unique(return_inverse=True, return_counts=True)
    rank = (counts.cumsum(0) - (counts - 1) / 2)[ranks]  # from 1; of equal ones the mean
    having, others = has_label.sum(), (~has_label).sum()
    return (rank[has_label].sum() - having * (having + 1) / 2) / (having * others)


def from_all_processes(values: Tensor) -> Tensor:
    """The examples of all processes that train together."""
    if not torch.distributed.is_initialized():
        return values
    parts = [values] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, values)
    return torch.cat(parts)


class Learner(train.Learner):
    """Shows eight pictures of the validation, with the digits in them and those that the network finds."""

    def show(self, epoch: int) -> Mapping[str, Tensor | str]:
        inputs, targets, _ = self.first_batch()
        pictures, found = inputs[:8].float(), self.average.network(inputs[:8]) > 0
        pictures = (pictures - pictures.min()) / (pictures.max() - pictures.min()).clamp(min=1e-9)
        rows = [torch.cat(list(F.pad(row[:, 0], (2, 2, 2, 2), value=1.0)), dim=1) for row in pictures.chunk(2)]
        lines = [f"{names(true):8} found: {names(said)}" for true, said in zip(targets[:8] > 0, found, strict=True)]
        return {"pictures": F.interpolate(torch.cat(rows)[None, None], scale_factor=2)[0], "labels": "\n".join(lines)}


def names(has_label: Tensor) -> str:
    """The digits among [10] that are there."""
    return " ".join(DIGITS[label] for label in has_label.nonzero().flatten().tolist()) or "none"
