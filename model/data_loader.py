"""Loaders: how examples become batches, and what is done to a batch on its way to the network.

A dataset that fits in memory lives as tensors on the device of the run, and a batch is an index, a conversion and an
augmentation there. A folder of images, or someone's own dataset, streams through a `DataLoader`. All are iterables of
`Batch` with a length and `set_epoch`, and the order and the augmentation are functions of (seed, epoch, index) alone. The
datasets themselves are in `model/datasets.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from model.augment import Normalize, are_dense, make_augmentation, unchanged
from model.batching import Batch, Batching, Loader, whole
from model.cache import Decoded
from model.examples import Examples, Folder
from model.mixing import make_mixing
from model.net import DataSpec
from model.splits import Split, check_fit, form_of
from model.streamed import Streamed
from model.streaming import StreamLoader
from model.transforms import Functions, sort_transforms, transform_each
from model.trees import DataError, Tree, tree_map, tree_split

GATHER_AT = 512  # examples taken from a dataset in memory at once: several small batches cost little more than one
NORMALIZED_AT_ONCE = 64 * 2**20  # numbers of a dataset (4 bytes each) that are kept as the network takes them


class TensorLoader:
    """Batches of a dataset that lives as tensors on the device: no workers, no copies from the host."""

    def __init__(self, examples: Examples, batching: Batching) -> None:
        # A transform's draws are from the CPU's generators, so there it is applied.
        self.stored_on = torch.device("cpu") if batching.transform else batching.device
        self.inputs, self.targets = examples.inputs, examples.targets
        self.normalize: Callable[[Tree], Tree] = batching.normalize
        is_small = isinstance(self.inputs, Tensor) and self.inputs.numel() <= NORMALIZED_AT_ONCE
        self.inputs, self.targets = tree_map(lambda tensor: tensor.to(self.stored_on), (self.inputs, self.targets))
        if batching.augment is unchanged and batching.transform is None and is_small:
            self.inputs, self.normalize = batching.normalize(self.inputs), unchanged
        self.batching, self.num_stored, self.epoch, self.start = batching, len(examples), 0, 0
        self.num_examples, self.batch_size = batching.examples_per_epoch(len(examples)), batching.batch_size
        self.device = batching.device

    def __len__(self) -> int:
        return math.ceil(self.num_examples / self.batching.batch_size)

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        self.epoch, self.start = epoch, start
        self.batching.set_epoch(epoch)

    def close(self) -> None:
        """Nothing to let go of."""

    def __iter__(self) -> Iterator[Batch]:
        together = 1 if self.batching.of_batch else max(1, GATHER_AT // self.batch_size)
        # Whole groups, wherever an epoch goes on: a batch lies alike in memory, on which the last digits may depend.
        skipped = self.start % together
        batches = self.batching.batches(self.num_stored, self.epoch, self.start - skipped)
        if together == 1:
            for own, size in batches:
                yield self.batching.transformed(Batch(*self.make(own), size), own)
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
        """The inputs and targets of the examples at `indices` [batch], as the network takes them."""
        batching, wanted = self.batching, self.batching.mixing.wanted(indices)
        stored = wanted.to(self.stored_on)
        inputs, targets = self.gather(stored), tree_map(lambda tensor: tensor.index_select(0, stored), self.targets)
        if batching.transform is not None:
            made = transform_each(
                batching.transform, inputs, targets, wanted.tolist(), seed=batching.seed, epoch=batching.epoch
            )
            inputs, targets = tree_map(batching.to_device, made)
        return batching.finish(inputs, targets, wanted, stored, self.normalize)

    def gather(self, indices: Tensor) -> Tree:
        """The stored inputs at `indices` [batch], on the device where they are stored."""
        return tree_map(lambda tensor: tensor.index_select(0, indices), self.inputs)


class MappedLoader(TensorLoader):
    """Batches of images that lie decoded in a file: the system keeps in memory what it has room for."""

    def __init__(self, examples: Decoded, batching: Batching) -> None:
        self.rows = examples.rows
        self.inputs, self.normalize = examples.pixels, batching.normalize
        self.stored_on = torch.device("cpu") if batching.transform else batching.device
        self.targets = examples.targets.to(self.stored_on)
        self.batching, self.num_stored, self.epoch, self.start = batching, len(examples), 0, 0
        self.num_examples, self.batch_size = batching.examples_per_epoch(len(examples)), batching.batch_size
        self.device = batching.device

    def gather(self, indices: Tensor) -> Tensor:
        return self.inputs.index_select(0, self.rows[indices.cpu()]).to(self.stored_on)


# ------------------------------------------------------------------------------------------------------------- builders


def check_batch_size(batch_size: int | None, num_examples: int) -> None:
    """DataError where a batch would be larger than the training split."""
    if batch_size is not None and batch_size > num_examples:
        raise DataError(
            f"data.batch_size is {batch_size}, but the training split holds {num_examples} examples; "
            f"choose at most {num_examples}, or null for all of them in one batch"
        )


def make_loader(
    examples: Split,
    spec: DataSpec,
    *,
    batch_size: int | None,
    device: torch.device,
    seed: int = 0,
    shuffle: bool = False,
    drop_last: bool = False,
    crop_padding: int = 0,
    flip: bool | Literal["alternate"] = False,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    transform: Functions = None,
    passes: int = 1,
    num_workers: int = 0,
    max_batches: int | None = None,
    part: Callable[[int], slice] = whole,
) -> Loader:
    """Batches of `examples` for networks built from `spec`; batch_size None: all of them in one batch.

    transform: as in `sort_transforms`; part: which of a batch's examples are this process's, where several train together.
    """
    of_each, of_batch = sort_transforms(transform)
    check_fit(examples, spec, of_each)
    batch_size = batch_size or len(examples)
    if shuffle:
        check_batch_size(batch_size, len(examples))
    targets, sizes = form_of(examples, of_each)[1], {"passes": passes, "num_examples": len(examples), "seed": seed}
    if passes > 1 and transform:
        raise DataError("data.passes above 1 would transform an example alike in each pass; take more epochs instead")
    batching = Batching(
        batch_size=min(batch_size, len(examples)),
        shuffle=shuffle,
        seed=seed,
        drop_last=drop_last,
        normalize=Normalize(spec.mean, spec.std, device),
        augment=make_augmentation(spec, targets, padding=crop_padding, flip=flip, device=device, **sizes),
        device=device,
        input_shape=tuple(spec.input_shape),
        targets_move=bool(crop_padding or flip) and are_dense(targets, spec),
        normalize_targets=Normalize(spec.target_mean, spec.target_std, device) if spec.target_std else unchanged,
        mixing=make_mixing(spec, mixup=mixup, cutmix=cutmix, **sizes),
        transform=of_each,
        of_batch=of_batch,
        part=part,
        passes=passes,
        max_batches=max_batches,
    )
    if isinstance(examples, Decoded):
        return MappedLoader(examples, batching)
    if isinstance(examples, (Folder, Streamed)):
        return StreamLoader(examples, batching, num_workers=num_workers)
    return TensorLoader(examples, batching)
