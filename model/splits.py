"""The splits of a dataset: which examples they hold, and what a network for them has to know."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.draws import epoch_order, generator_for
from model.examples import DataError, Examples, Folder, Tree, are_images, num_examples
from model.net import DataSpec

FOLDER_STATISTICS_SIZE = 2000  # images of a folder from which its mean and std are estimated


Dataset = Callable[[str], "Examples | Folder | None"]  # "train", "val" or "test" -> that split; None where it has none


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
        training, validation = split_indices(examples.targets, val_fraction, split_seed, num=len(examples))
        examples = examples.subset(training if split == "train" else validation)
    if len(examples) == 0:
        raise DataError(f"the {split} split holds no examples")
    if limit is not None and limit < len(examples):
        examples = examples.subset(epoch_order(len(examples), shuffle=True, seed=split_seed, epoch=0)[:limit])
    return examples


def split_indices(targets: Tree, fraction: float, seed: int, *, num: int | None = None) -> tuple[Tensor, Tensor]:
    """(training, validation) indices: a seeded random `fraction` validates, of each class where targets are its numbers.

    num: how many examples there are; None: as many as targets.
    """
    order = torch.randperm(num_examples(targets) if num is None else num, generator=generator_for(seed, 0, purpose=2))
    groups = [order]
    if are_class_numbers(targets):
        groups = [order[targets[order] == label] for label in targets.unique()]
    sizes = [min(len(group) - 1, max(1, round(fraction * len(group)))) for group in groups]
    validation = torch.cat([group[:size] for group, size in zip(groups, sizes, strict=True)]).sort().values
    training = torch.cat([group[size:] for group, size in zip(groups, sizes, strict=True)]).sort().values
    return training, validation


def are_class_numbers(targets: Tree) -> bool:
    """Whether targets are one class number for each example."""
    return isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point()


def task_of(targets: Tree, classes: Sequence[str]) -> tuple[str, int]:
    """(the task that targets set, how many values a network for it gives each example; 0 where they do not tell)."""
    if are_class_numbers(targets):
        return "classification", len(classes)
    if isinstance(targets, Tensor) and targets.dim() == 2 and targets.is_floating_point():
        return ("custom" if classes else "regression"), targets.shape[1]
    return "custom", len(classes)


def describe(training: Examples | Folder, mean: Sequence[float] | None, std: Sequence[float] | None) -> DataSpec:
    """The DataSpec of training examples; mean and std are computed from them where they are None.

    Float inputs are not normalised unless mean and std are given. A folder's are estimated from 2,000 of its images.
    """
    sample = training.in_memory() if isinstance(training, Examples) else some_of(training, FOLDER_STATISTICS_SIZE)
    task, output_size = task_of(sample.targets, training.classes)
    if task == "classification" and len(training.classes) < 2:
        raise DataError(
            f"the training split has the one class {', '.join(training.classes)}; there is nothing to tell apart"
        )
    shape = tuple(sample.inputs.shape[1:]) if isinstance(sample.inputs, Tensor) else ()
    if are_images(sample.inputs):
        own_mean, own_std = pixel_statistics(sample.inputs)
        mean, std = mean if mean is not None else own_mean, std if std is not None else own_std
    channels = shape[0] if shape else 0
    for name, values in (("mean", mean), ("std", std)):
        if values and len(values) not in (1, channels):
            raise DataError(f"data.{name} has {len(values)} values; the inputs have {channels} channels")
    return DataSpec(
        input_shape=shape,
        output_size=output_size,
        task=task,
        mean=tuple(mean or ()),
        std=tuple(std or ()),
        classes=tuple(training.classes),
    )


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


def some_of(folder: Folder, number: int) -> Examples:
    """Up to `number` images of a folder, the same ones each time, decoded."""
    return folder.subset(epoch_order(len(folder), shuffle=True, seed=0, epoch=0)[:number]).in_memory()


def check_fit(examples: Examples | Folder, spec: DataSpec) -> None:
    """DataError where examples are not of the shape and the classes that networks for `spec` are built for."""
    shape: Sequence[int] = (3, *[examples.image_size] * 2) if isinstance(examples, Folder) else ()
    if isinstance(examples, Examples) and isinstance(examples.inputs, Tensor):
        shape = examples.inputs.shape[1:]
    if tuple(shape) != tuple(spec.input_shape):
        given, known = ("x".join(map(str, sizes)) or "of their own" for sizes in (shape, spec.input_shape))
        raise DataError(f"the examples are of shape {given}, but the network is for {known}")
    task, output_size = task_of(examples.targets, examples.classes)
    if task != spec.task:
        raise DataError(f"the examples are for {task}, the network for {spec.task}")
    if task == "regression" and output_size != spec.output_size:
        raise DataError(f"the examples have {output_size} values each, the network {spec.output_size}")
    if spec.classes and tuple(examples.classes) != tuple(spec.classes):
        given, known = shortened(examples.classes), shortened(spec.classes)
        raise DataError(f"the examples are of the classes {given}; the network is for {known}")


def shortened(names: Sequence[str]) -> str:
    """The first of some names, and how many there are."""
    return ", ".join(names[:5]) + f", ... ({len(names)})" * (len(names) > 5)
