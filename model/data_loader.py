"""Loaders: how examples become batches, and what is done to a batch on its way to the network.

A dataset that fits in memory lives as tensors on the device of the run, and a batch is an index, a conversion and an
augmentation there. A folder of images streams through a `DataLoader`. Both are iterables of (inputs, targets) with a
length and `set_epoch`, and the order and the augmentation are functions of (seed, epoch, index) alone. The datasets
themselves are in `model/datasets.py`.
"""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from model.cache import Decoded
from model.examples import DataError, Examples, Folder, whole_batch
from model.net import DataSpec

GATHER_AT = 512  # examples taken from a dataset in memory at once: several small batches cost little more than one
NORMALIZED_AT_ONCE = 64 * 2**20  # numbers of a dataset (4 bytes each) that are kept as the network takes them
FOLDER_STATISTICS_SIZE = 2000  # images of a folder from which its mean and std are estimated


class Loader(Protocol):
    """Batches (inputs [batch, *input_shape] float, targets [batch, ...]) on the device of the run.

    `set_epoch` says which epoch the next iteration gives, and with which of its batches that starts; `close` lets go of
    processes and files.
    """

    num_examples: int  # in an epoch, in all processes together
    batch_size: int  # of all processes together; the last batch may be smaller

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...
    def set_epoch(self, epoch: int, *, start: int = 0) -> None: ...
    def close(self) -> None: ...


# ------------------------------------------------------------------------------------- from stored to network inputs


class Normalize:
    """Stored inputs to network inputs, and back.

    Call: uint8 images [batch, channels, height, width] -> float32, scaled to [0, 1], minus `mean`, over `std` (each a
    value a channel); float inputs [batch, features] only minus `mean`, over `std`. Empty mean and std: as they are.
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

    def __call__(self, inputs: Tensor) -> Tensor:
        if inputs.dtype == torch.uint8:
            # Three vectorised passes: an operation on two types at once would be one, but a slower one.
            return inputs.float().sub_(self.offset).mul_(self.scale)
        if not self.is_needed:
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


def generator_for(seed: int, epoch: int, *, purpose: int = 0) -> torch.Generator:
    """A generator on the CPU that depends on nothing but its arguments; purposes do not share their numbers."""
    mixed = (seed * 1_000_003 + epoch) * 1_000_003 + purpose
    return torch.Generator().manual_seed(mixed % 2**63)


def epoch_order(num_examples: int, *, shuffle: bool, seed: int, epoch: int) -> Tensor:
    """The order of the examples in an epoch, [num_examples]: a function of (seed, epoch) alone."""
    if not shuffle:
        return torch.arange(num_examples)
    return torch.randperm(num_examples, generator=generator_for(seed, epoch))


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

    def batches(self, num_examples: int, epoch: int, start: int) -> Iterator[Tensor]:
        """The indices of this process's part of each batch of an epoch, from batch number `start` on."""
        for indices in self.order(num_examples, epoch).split(self.batch_size)[start:]:
            part = self.part(len(indices))
            own = indices if part == slice(0, len(indices)) else indices[part]  # a slice takes time, even of all
            if len(own):
                yield own

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.augment, RandomCropFlip):
            self.augment.set_epoch(epoch)


class TensorLoader:
    """Batches of a dataset that lives as tensors on the device: no workers, no copies from the host."""

    def __init__(self, examples: Examples, batching: Batching) -> None:
        self.inputs = examples.inputs.to(batching.device)
        self.normalize: Callable[[Tensor], Tensor] = batching.normalize
        if batching.augment is unchanged and self.inputs.numel() <= NORMALIZED_AT_ONCE:
            self.inputs, self.normalize = batching.normalize(self.inputs), unchanged
        self.targets = examples.targets.to(batching.device)
        self.batching, self.epoch, self.start = batching, 0, 0
        self.num_examples, self.batch_size = batching.examples_per_epoch(len(examples)), batching.batch_size

    def __len__(self) -> int:
        return math.ceil(self.num_examples / self.batching.batch_size)

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        self.epoch, self.start = epoch, start
        self.batching.set_epoch(epoch)

    def close(self) -> None:
        """Nothing to let go of."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        together = max(1, GATHER_AT // self.batch_size)
        # Whole groups, wherever an epoch goes on: a batch lies alike in memory, on which the last digits may depend.
        skipped = self.start % together
        batches = self.batching.batches(len(self.targets), self.epoch, self.start - skipped)
        if together == 1:
            yield from map(self.make, batches)
        while group := list(itertools.islice(batches, together)):
            inputs, targets = self.make(torch.cat(group))
            sizes = [len(own) for own in group]
            split = zip(inputs.split(sizes), targets.split(sizes), strict=True)
            del inputs, targets
            yield from itertools.islice(split, skipped, None)
            skipped = 0

    def make(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The batch of the examples at `indices` [batch]."""
        indices = indices.to(self.batching.device)
        inputs = self.normalize(self.batching.augment(self.gather(indices), indices))
        return inputs, self.targets.index_select(0, indices)

    def gather(self, indices: Tensor) -> Tensor:
        """The stored inputs at `indices` [batch], on the device."""
        return self.inputs.index_select(0, indices)


class MappedLoader(TensorLoader):
    """Batches of images that lie decoded in a file: the system keeps in memory what it has room for."""

    def __init__(self, examples: Decoded, batching: Batching) -> None:
        self.rows = examples.rows
        self.inputs, self.normalize = examples.pixels, batching.normalize
        self.targets = examples.targets.to(batching.device)
        self.batching, self.epoch, self.start = batching, 0, 0
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

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self.batching.batches(len(self.examples), self.epoch, self.start)
        for own, decoded in zip(batches, self._decoded(), strict=True):
            images, indices = (part.to(self.batching.device, non_blocking=True) for part in (decoded, own))
            targets = self.examples.targets[own].to(self.batching.device, non_blocking=True)
            yield self.batching.normalize(self.batching.augment(images, indices)), targets

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
        for own in loader.batching.batches(len(loader.examples), loader.epoch, loader.start):
            yield own.tolist()


# ------------------------------------------------------------------------------------------------- splits and builders

Dataset = Callable[[str], "Examples | Folder | None"]  # "train", "val" or "test" -> that split; None where it has none


def split_indices(targets: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """(training, validation) indices: a seeded random `fraction` of each class (of all, for float targets) validates."""
    order = torch.randperm(len(targets), generator=generator_for(seed, 0, purpose=2))
    groups = [order]
    if not targets.is_floating_point():
        groups = [order[targets[order] == label] for label in targets.unique()]
    sizes = [min(len(group) - 1, max(1, round(fraction * len(group)))) for group in groups]
    validation = torch.cat([group[:size] for group, size in zip(groups, sizes, strict=True)]).sort().values
    training = torch.cat([group[size:] for group, size in zip(groups, sizes, strict=True)]).sort().values
    return training, validation


def load_split(
    dataset: Dataset, split: str, *, val_fraction: float, split_seed: int, limit: int | None = None
) -> Examples | Folder:
    """One split of a dataset; "val" is cut off "train" where the dataset has none of its own.

    limit: only so many examples, drawn with `split_seed`. Raises DataError where there is no such split.
    """
    own_val = dataset("val") if split in ("train", "val") else None
    examples = own_val if split == "val" and own_val is not None else dataset("test" if split == "test" else "train")
    if examples is None:
        raise DataError(f"the dataset has no {split} split")
    if split in ("train", "val") and own_val is None:
        training, validation = split_indices(examples.targets, val_fraction, split_seed)
        examples = examples.subset(training if split == "train" else validation)
    if len(examples) == 0:
        raise DataError(f"the {split} split holds no examples")
    if limit is not None and limit < len(examples):
        examples = examples.subset(epoch_order(len(examples), shuffle=True, seed=split_seed, epoch=0)[:limit])
    return examples


def describe(training: Examples | Folder, mean: Sequence[float] | None, std: Sequence[float] | None) -> DataSpec:
    """The DataSpec of training examples; mean and std are computed from them where they are None.

    Float inputs are not normalised unless mean and std are given. A folder's are estimated from 2,000 of its images.
    """
    is_class = not training.targets.is_floating_point()
    if is_class and len(training.classes) < 2:
        raise DataError(
            f"the training split has the one class {', '.join(training.classes)}; there is nothing to tell apart"
        )
    sample = training.in_memory() if isinstance(training, Examples) else some_of(training, FOLDER_STATISTICS_SIZE)
    if sample.inputs.dtype == torch.uint8:
        own_mean, own_std = pixel_statistics(sample.inputs)
        mean, std = mean if mean is not None else own_mean, std if std is not None else own_std
    channels = sample.inputs.shape[1]
    for name, values in (("mean", mean), ("std", std)):
        if values and len(values) not in (1, channels):
            raise DataError(f"data.{name} has {len(values)} values; the inputs have {channels} channels")
    return DataSpec(
        input_shape=tuple(sample.inputs.shape[1:]),
        output_size=len(training.classes) if is_class else training.targets.shape[1],
        task="classification" if is_class else "regression",
        mean=tuple(mean or ()),
        std=tuple(std or ()),
        classes=tuple(training.classes),
    )


def check_fit(examples: Examples | Folder, spec: DataSpec) -> None:
    """DataError where examples are not of the shape and the classes that networks for `spec` are built for."""
    shape = examples.inputs.shape[1:] if isinstance(examples, Examples) else (3, *[examples.image_size] * 2)
    if tuple(shape) != tuple(spec.input_shape):
        given, known = "x".join(map(str, shape)), "x".join(map(str, spec.input_shape))
        raise DataError(f"the examples are of shape {given}, but the network is for {known}")
    is_class = not examples.targets.is_floating_point()
    if is_class != (spec.task == "classification"):
        raise DataError(
            f"the examples are for {'classification' if is_class else 'regression'}, the network for {spec.task}"
        )
    if not is_class and examples.targets.shape[1] != spec.output_size:
        raise DataError(f"the examples have {examples.targets.shape[1]} values each, the network {spec.output_size}")
    if spec.classes and tuple(examples.classes) != tuple(spec.classes):
        given, known = shortened(examples.classes), shortened(spec.classes)
        raise DataError(f"the examples are of the classes {given}; the network is for {known}")


def shortened(names: Sequence[str]) -> str:
    """The first of some names, and how many there are."""
    return ", ".join(names[:5]) + f", ... ({len(names)})" * (len(names) > 5)


def some_of(folder: Folder, number: int) -> Examples:
    """Up to `number` images of a folder, the same ones each time, decoded."""
    return folder.subset(epoch_order(len(folder), shuffle=True, seed=0, epoch=0)[:number]).in_memory()


def pixel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 images, on the scale where a pixel is in [0, 1].

    Exact, from the counts of the 256 values; a channel that does not vary gets the deviation 1.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        average = (counts * values).sum() / counts.sum()
        deviation = ((counts * (values - average).square()).sum() / counts.sum()).sqrt()
        mean.append(round(float(average), 6))
        std.append(round(float(deviation), 6) or 1.0)
    return mean, std


def check_batch_size(batch_size: int | None, num_examples: int) -> None:
    """DataError where a batch would be larger than the training split."""
    if batch_size is not None and batch_size > num_examples:
        raise DataError(
            f"data.batch_size is {batch_size}, but the training split holds {num_examples} examples; "
            f"choose at most {num_examples}, or null for all of them in one batch"
        )


def make_augmentation(
    spec: DataSpec,
    *,
    padding: int,
    flip: bool | Literal["alternate"],
    passes: int,
    num_examples: int,
    seed: int,
    device: torch.device,
) -> Callable[[Tensor, Tensor], Tensor]:
    """What is done to the inputs of a batch, given with their indices; DataError where it does not suit the data."""
    if not padding and not flip:
        return unchanged
    if len(spec.input_shape) != 3:
        raise DataError("data.crop_padding and data.flip are for images; the examples of this data are none")
    if padding >= min(spec.input_shape[1:]):
        raise DataError(f"data.crop_padding is {padding}; it must be less than the images' size, {spec.input_shape}")
    if passes > 1:
        raise DataError("data.passes above 1 would augment an image alike in each pass; take more epochs instead")
    return RandomCropFlip(padding=padding, flip=flip, num_examples=num_examples, seed=seed, device=device)


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
