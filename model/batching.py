"""Batches: what a network is given at once, and which examples of an epoch are in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from model.augment import Normalize, RandomCropFlip
from model.draws import epoch_order
from model.mixing import Unmixed
from model.streamed import Transform
from model.transforms import transform_batch
from model.trees import DataError, Tree, tree_split


class Batch(NamedTuple):
    """What a network is given at once, on the device of the run: this process's part of it, where several train together.

    inputs, targets: a tensor [n, ...], or a dict, tuple or list of them (targets: or None), normalised and augmented;
    size: how many examples the whole batch has in all processes together.
    """

    inputs: Tree
    targets: Tree
    size: int

    def parts(self, num: int) -> list[Batch]:
        """The same examples in so many batches of nearly equal length; their `size` is still that of the whole."""
        if num == 1:
            return [self]
        inputs, targets = (tree_split(tree, lambda t: t.tensor_split(num), num) for tree in self[:2])
        return [Batch(*part, self.size) for part in zip(inputs, targets, strict=True)]


class Loader(Protocol):
    """Batches of examples, normalised and augmented, on the device of the run.

    `set_epoch` says which epoch the next iteration gives, and with which of its batches that starts; `close` lets go of
    processes and files.
    """

    num_examples: int  # in an epoch, in all processes together
    batch_size: int  # of all processes together; the last batch may be smaller
    device: torch.device

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def set_epoch(self, epoch: int, *, start: int = 0) -> None: ...
    def close(self) -> None: ...


def whole(num: int) -> slice:
    """The part of so many examples that a process alone takes: all."""
    return slice(0, num)


@dataclass
class Batching:
    """What a loader does with its examples, in memory or streaming alike."""

    batch_size: int
    shuffle: bool
    seed: int
    drop_last: bool
    normalize: Normalize
    augment: Callable[[Tensor, Tensor], Tensor]  # (inputs, indices) -> inputs
    device: torch.device
    input_shape: tuple[int, ...]
    targets_move: bool  # they are images, to which happens what happens to the inputs
    normalize_targets: Callable[[Tree], Tree]
    mixing: Unmixed
    transform: Transform | None = None  # of each example
    of_batch: Sequence[Callable[[Batch], Batch]] = ()
    part: Callable[[int], slice] = whole  # which of a batch's examples are this process's
    passes: int = 1  # over the examples, in an epoch
    max_batches: int | None = None  # a debugging run sees only so many in an epoch
    epoch: int = 0  # the one under way

    def examples_per_epoch(self, num_examples: int) -> int:
        """How many examples an epoch shows."""
        num_examples *= self.passes
        kept = num_examples // self.batch_size * self.batch_size if self.drop_last else num_examples
        return min(kept, self.max_batches * self.batch_size) if self.max_batches else kept

    def order(self, num_examples: int, epoch: int) -> Tensor:
        """The indices of an epoch's examples, batch after batch."""
        orders = [
            epoch_order(num_examples, shuffle=self.shuffle, seed=self.seed, epoch=epoch * self.passes + number)
            for number in range(self.passes)
        ]
        return torch.cat(orders)[: self.examples_per_epoch(num_examples)]

    def batches(self, num_examples: int, epoch: int, start: int) -> Iterator[tuple[Tensor, int]]:
        """(the indices of this process's part, the size of the whole) of each batch of an epoch, from number `start` on."""
        for indices in self.order(num_examples, epoch).split(self.batch_size)[start:]:
            part = self.part(size := len(indices))
            own = indices if part == slice(0, size) else indices[part]  # a slice takes time, even of all
            if len(own):
                yield own, size

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.mixing.set_epoch(epoch)
        if isinstance(self.augment, RandomCropFlip):
            self.augment.set_epoch(epoch)

    def finish(
        self, inputs: Tree, targets: Tree, wanted: Tensor, indices: Tensor, normalize: Callable[[Tree], Tree]
    ) -> tuple[Tree, Tree]:
        """The examples that `mixing` wants, on the device, as the network takes them.

        indices: `wanted`, which may be on the device already; normalize: what is left to do to the inputs.
        """
        if self.transform is not None and isinstance(inputs, Tensor) and inputs.shape[1:] != self.input_shape:
            given, known = ("x".join(map(str, shape)) for shape in (inputs.shape[1:], self.input_shape))
            raise DataError(
                f"data.transform or data.augment makes an example of {given}, but the network is for {known}; each has to "
                f"come out in the same size"
            )
        indices = indices.to(self.device)
        inputs = self.augment(inputs, indices)
        if self.targets_move:
            targets = self.augment(targets if targets.dim() == 4 else targets.unsqueeze(1), indices).view_as(targets)
        return self.mixing(normalize(inputs), self.normalize_targets(targets), wanted)

    def transformed(self, batch: Batch, own: Tensor) -> Batch:
        """A finished batch of the examples `own` after the functions of a batch."""
        if not self.of_batch:
            return batch
        return transform_batch(self.of_batch, batch, seed=self.seed, epoch=self.epoch, first=int(own[0]))
