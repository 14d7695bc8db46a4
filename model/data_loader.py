"""Loaders: how examples become batches, and what is done to a batch on its way to the network.

A dataset that fits in memory lives as tensors on the device of the run, and a batch is an index, a conversion and an
augmentation there. A folder of images streams through a `DataLoader`. Both are iterables of `Batch` with a length and
`set_epoch`, and the order and the augmentation are functions of (seed, epoch, index) alone. The datasets themselves are
in `model/datasets.py`.
"""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from model.augment import Normalize, RandomCropFlip, make_augmentation, unchanged
from model.cache import Decoded
from model.draws import epoch_order
from model.examples import DataError, Examples, Folder, Tree, tree_map, tree_split, whole_batch
from model.net import DataSpec
from model.splits import check_fit

GATHER_AT = 512  # examples taken from a dataset in memory at once: several small batches cost little more than one
NORMALIZED_AT_ONCE = 64 * 2**20  # numbers of a dataset (4 bytes each) that are kept as the network takes them


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

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def set_epoch(self, epoch: int, *, start: int = 0) -> None: ...
    def close(self) -> None: ...


# ------------------------------------------------------------------------------------------------------------ loaders


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
    part: Callable[[int], slice] = whole  # which of a batch's examples are this process's
    passes: int = 1  # over the examples, in an epoch
    max_batches: int | None = None  # a debugging run sees only so many in an epoch

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
        if isinstance(self.augment, RandomCropFlip):
            self.augment.set_epoch(epoch)


class TensorLoader:
    """Batches of a dataset that lives as tensors on the device: no workers, no copies from the host."""

    def __init__(self, examples: Examples, batching: Batching) -> None:
        self.inputs, self.targets = (tree_map(batching.to_device, tree) for tree in (examples.inputs, examples.targets))
        self.normalize: Callable[[Tree], Tree] = batching.normalize
        is_small = isinstance(self.inputs, Tensor) and self.inputs.numel() <= NORMALIZED_AT_ONCE
        if batching.augment is unchanged and is_small:
            self.inputs, self.normalize = batching.normalize(self.inputs), unchanged
        self.batching, self.num_stored, self.epoch, self.start = batching, len(examples), 0, 0
        self.num_examples, self.batch_size = batching.examples_per_epoch(len(examples)), batching.batch_size

    def __len__(self) -> int:
        return math.ceil(self.num_examples / self.batching.batch_size)

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        self.epoch, self.start = epoch, start
        self.batching.set_epoch(epoch)

    def close(self) -> None:
        """Nothing to let go of."""

    def __iter__(self) -> Iterator[Batch]:
        together = max(1, GATHER_AT // self.batch_size)
        # Whole groups, wherever an epoch goes on: a batch lies alike in memory, on which the last digits may depend.
        skipped = self.start % together
        batches = self.batching.batches(self.num_stored, self.epoch, self.start - skipped)
        if together == 1:
            for own, size in batches:
                yield Batch(*self.make(own), size)
        while group := list(itertools.islice(batches, together)):
            yield from itertools.islice(self.make_several(group), skipped, None)
            skipped = 0

    def make_several(self, group: Sequence[tuple[Tensor, int]]) -> Iterator[Batch]:
        """The batches of several (indices, size), gathered at once."""
        parts, sizes = zip(*group, strict=True)
        lengths = [len(part) for part in parts]
        inputs, targets = (
            tree_split(tree, lambda tensor: tensor.split(lengths), len(parts)) for tree in self.make(torch.cat(parts))
        )
        return map(Batch, inputs, targets, sizes)

    def make(self, indices: Tensor) -> tuple[Tree, Tree]:
        """The inputs and targets of the examples at `indices` [batch]."""
        indices = indices.to(self.batching.device)
        inputs = self.normalize(self.batching.augment(self.gather(indices), indices))
        return inputs, tree_map(lambda tensor: tensor.index_select(0, indices), self.targets)

    def gather(self, indices: Tensor) -> Tree:
        """The stored inputs at `indices` [batch], on the device."""
        return tree_map(lambda tensor: tensor.index_select(0, indices), self.inputs)


class MappedLoader(TensorLoader):
    """Batches of images that lie decoded in a file: the system keeps in memory what it has room for."""

    def __init__(self, examples: Decoded, batching: Batching) -> None:
        self.rows = examples.rows
        self.inputs, self.normalize = examples.pixels, batching.normalize
        self.targets = examples.targets.to(batching.device)
        self.batching, self.num_stored, self.epoch, self.start = batching, len(examples), 0, 0
        self.num_examples, self.batch_size = batching.examples_per_epoch(len(examples)), batching.batch_size

    def gather(self, indices: Tensor) -> Tensor:
        return self.inputs.index_select(0, self.rows[indices.cpu()]).to(self.batching.device)


class FolderLoader:
    """Batches of a folder of images, decoded by `num_workers` processes (0: this one); the rest happens on the device."""

    def __init__(self, examples: Folder, batching: Batching, *, num_workers: int) -> None:
        self.examples, self.batching, self.epoch, self.start = examples, batching, 0, 0
        self.num_examples, self.batch_size = batching.examples_per_epoch(len(examples)), batching.batch_size
        self.dataloader: torch.utils.data.DataLoader = torch.utils.data.DataLoader(
            examples,  # type: ignore[arg-type]
            batch_sampler=_Upcoming(self),
            collate_fn=whole_batch,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=batching.device.type == "cuda",
            generator=torch.Generator(),  # its own: iterating must not draw from the global one
            worker_init_fn=_leave_stopping_to_the_parent if num_workers else None,
        )

    def __len__(self) -> int:
        return math.ceil(self.num_examples / self.batching.batch_size)

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        self.epoch, self.start = epoch, start
        self.batching.set_epoch(epoch)

    def close(self) -> None:
        """Ends the worker processes. Left to the garbage collector, each would be waited for, in vain, for seconds."""
        if (iterator := self.dataloader._iterator) is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]
            self.dataloader._iterator = None

    def __iter__(self) -> Iterator[Batch]:
        batches = self.batching.batches(len(self.examples), self.epoch, self.start)
        for (own, size), decoded in zip(batches, self._decoded(), strict=True):
            images, indices, targets = map(self.batching.to_device, (decoded, own, self.examples.targets[own]))
            yield Batch(self.batching.normalize(self.batching.augment(images, indices)), targets, size)

    def _decoded(self) -> Iterator[Tensor]:
        try:
            yield from self.dataloader
        except DataError as error:  # from a worker process it comes with that process's traceback as its text
            raise DataError(str(error).strip().splitlines()[-1].split("DataError: ")[-1]) from None


def _leave_stopping_to_the_parent(_: int) -> None:
    """In a worker: ignores the signals that ask a run to stop, for the step that is still to finish needs the worker.

    SIGTERM ends it, whatever handler was inherited: that is how `DataLoader` gets rid of a worker.
    """
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Upcoming:
    """The batches of the loader's current epoch, as lists of indices: what `DataLoader` calls a batch sampler."""

    def __init__(self, loader: FolderLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[int]]:
        loader = self.loader
        for own, _ in loader.batching.batches(len(loader.examples), loader.epoch, loader.start):
            yield own.tolist()


# ------------------------------------------------------------------------------------------------------------- builders


def check_batch_size(batch_size: int | None, num_examples: int) -> None:
    """DataError where a batch would be larger than the training split."""
    if batch_size is not None and batch_size > num_examples:
        raise DataError(
            f"data.batch_size is {batch_size}, but the training split holds {num_examples} examples; "
            f"choose at most {num_examples}, or null for all of them in one batch"
        )


def make_loader(
    examples: Examples | Folder,
    spec: DataSpec,
    *,
    batch_size: int | None,
    device: torch.device,
    seed: int = 0,
    shuffle: bool = False,
    drop_last: bool = False,
    crop_padding: int = 0,
    flip: bool | Literal["alternate"] = False,
    passes: int = 1,
    num_workers: int = 0,
    max_batches: int | None = None,
    part: Callable[[int], slice] = whole,
) -> Loader:
    """Batches of `examples` for networks built from `spec`; batch_size None: all of them in one batch.

    part: which of a batch's examples are this process's, where several train together.
    """
    check_fit(examples, spec)
    batch_size = batch_size or len(examples)
    if shuffle:
        check_batch_size(batch_size, len(examples))
    batching = Batching(
        batch_size=min(batch_size, len(examples)),
        shuffle=shuffle,
        seed=seed,
        drop_last=drop_last,
        normalize=Normalize(spec.mean, spec.std, device),
        augment=make_augmentation(
            spec, padding=crop_padding, flip=flip, passes=passes, num_examples=len(examples), seed=seed, device=device
        ),
        device=device,
        part=part,
        passes=passes,
        max_batches=max_batches,
    )
    if isinstance(examples, Decoded):
        return MappedLoader(examples, batching)
    if isinstance(examples, Folder):
        return FolderLoader(examples, batching, num_workers=num_workers)
    return TensorLoader(examples, batching)
