"""The splits of a dataset: which examples they hold, and what a network for them has to know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from model.draws import epoch_order, generator_for
from model.examples import Examples, Folder, are_class_numbers, are_images
from model.net import DataSpec
from model.streamed import Streamed, Transform, is_map_style, stream, what_failed
from model.transforms import Functions, sort_transforms, transform_each
from model.trees import DataError, Tree, num_examples

STATISTICS_SIZE = 2000  # examples that are not in memory from which their mean and std are estimated

Split = Examples | Folder | Streamed
Dataset = Callable[[str], Any]  # "train", "val" or "test" -> that split, as `load_split` takes it


def dataset_of(target: Callable[..., Any], root: str, /, **keys: Any) -> Dataset:
    """The dataset that a function or a class of (split, root, **keys) makes.

    A function gives None for a split that it does not have; a class names those that it has in its attribute `splits`, or
    has train and test.
    """
    known = getattr(target, "splits", ("train", "test")) if isinstance(target, type) else ("train", "val", "test")
    return lambda split: target(split, root, **keys) if split in known else None


def load_split(
    dataset: Dataset,
    split: str,
    *,
    val_fraction: float,
    split_seed: int,
    limit: int | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> Split:
    """One split of a dataset; "val" is cut off "train" where it has none.

    A dataset gives `Examples`, a `Folder`, a map-style `torch.utils.data.Dataset`, or None for a split that it does not
    have. limit: only so many examples, drawn with `split_seed`; collate_fn: makes a batch of a Dataset's items, instead of
    its own attribute `collate_fn` or PyTorch's. Raises DataError where there is no such split.
    """
    own_val = make_split(dataset, "val", collate_fn) if split in ("train", "val") else None
    examples = own_val
    if split != "val" or own_val is None:
        examples = make_split(dataset, "test" if split == "test" else "train", collate_fn)
    if examples is None:
        raise DataError(f"the dataset has no {split} split")
    if len(examples) == 0:
        raise DataError(f"the {split} split holds no examples")
    if split in ("train", "val") and own_val is None:
        training, validation = split_indices(examples.targets, val_fraction, split_seed, num=len(examples))
        examples = examples.subset(training if split == "train" else validation)
    if len(examples) == 0:
        raise DataError(f"the {split} split holds no examples")
    if limit is not None and limit < len(examples):
        examples = examples.subset(epoch_order(len(examples), shuffle=True, seed=split_seed, epoch=0)[:limit])
    return examples


def make_split(dataset: Dataset, split: str, collate_fn: Callable[[list[Any]], Any] | None = None) -> Split | None:
    """What a dataset gives for a split, checked; DataError, with the place in its code, where that fails."""
    try:
        made = dataset(split)
    except Exception as error:
        if getattr(error, "for_user", False) or isinstance(error, (OSError, MemoryError)):  # of files, of the machine
            raise
        raise DataError(f"the {split} split of the data cannot be made ({what_failed(error)})") from error
    if made is None or isinstance(made, Split):
        return made
    if isinstance(made, IterableDataset) or is_map_style(made):
        return stream(made, collate_fn)
    raise DataError(
        f"the {split} split of the data is a {type(made).__name__}; it is a model.examples.Examples(inputs, targets, "
        f"classes), a torch.utils.data.Dataset, or None where there is no such split"
    )


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


def task_of(targets: Tree, classes: Sequence[str]) -> tuple[str, int]:
    """(the task that targets set, how many values a network for it gives each example; 0 where they do not tell)."""
    if are_class_numbers(targets):
        return "classification", len(classes)
    if isinstance(targets, Tensor) and targets.dim() == 2 and targets.is_floating_point():
        return ("custom" if classes else "regression"), targets.shape[1]
    return "custom", len(classes)


def describe(
    training: Split,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    *,
    standardize: bool = False,
    transform: Functions = None,
) -> DataSpec:
    """The DataSpec of training examples; mean and std of images are computed from them where they are None.

    standardize: so are those of other inputs, and of targets that are values; transform: what is done to the examples of
    every split, as `make_loader` takes it. Where they are not in memory, or transformed, 2,000 of them are measured.
    """
    of_each, _ = sort_transforms(transform)
    inputs, targets = form_of(training, of_each)
    task, output_size = task_of(targets, training.classes)
    if task == "classification" and len(training.classes) < 2:
        raise DataError(
            f"the training split has the one class {', '.join(training.classes)}; there is nothing to tell apart"
        )
    shape = shape_of(inputs)
    target_mean: Sequence[float] = ()
    target_std: Sequence[float] = ()
    if standardize:
        inputs, targets = some_of(training, STATISTICS_SIZE, of_each)
        check_standardizable(inputs)
        if task == "regression":
            target_mean, target_std = statistics(targets)
    if (mean is None or std is None) and (standardize or are_images(inputs)):
        own_mean, own_std = statistics(some_of(training, STATISTICS_SIZE, of_each)[0])
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
        target_mean=tuple(target_mean),
        target_std=tuple(target_std),
    )


def check_standardizable(inputs: Tree) -> None:
    """DataError where inputs have no mean and deviation."""
    if isinstance(inputs, Tensor) and inputs.dim() >= 2 and (inputs.is_floating_point() or are_images(inputs)):
        return
    raise DataError("data.standardize is for tables and images; the inputs of this data are no single tensor of floats")


def statistics(values: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each column or channel of values [n, columns, ...]; 1 for one that does not vary."""
    if are_images(values):
        return pixel_statistics(values)
    columns = values.double().transpose(0, 1).flatten(1)  # [columns, all their values]
    deviation = columns.std(dim=1, correction=0)
    is_constant = deviation <= 1e-12 * columns.abs().amax(dim=1)
    return columns.mean(dim=1).tolist(), torch.where(is_constant, 1.0, deviation).tolist()


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


def some_of(examples: Split, number: int, transform: Transform | None = None) -> tuple[Tree, Tree]:
    """(inputs, targets) of examples in memory; of up to `number`, the same ones each time, where they are not yet there."""
    if isinstance(examples, Examples) and transform is None:
        return examples.inputs, examples.targets
    some = epoch_order(len(examples), shuffle=True, seed=0, epoch=0)[:number]
    return read_all(examples.subset(some), transform)


def form_of(examples: Split, transform: Transform | None) -> tuple[Tree, Tree]:
    """(inputs, targets) of at least one example, as they come out of a transform."""
    return examples.form if transform is None else read_all(examples.subset(torch.tensor([0])), transform)


def read_all(examples: Split, transform: Transform | None) -> tuple[Tree, Tree]:
    """(inputs, targets) of all examples given, read and transformed."""
    indices = list(range(len(examples)))
    if isinstance(examples, Streamed):
        return examples.read(indices, transform=transform)
    held = examples.in_memory()
    return transform_each(transform, held.inputs, held.targets, indices, seed=0, epoch=0)


def shape_of(inputs: Tree) -> tuple[int, ...]:
    """The shape of one example, () where inputs are no single tensor."""
    return tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else ()


def check_fit(examples: Split, spec: DataSpec, transform: Transform | None = None) -> None:
    """DataError where examples are not of the shape and the classes that networks for `spec` are built for."""
    inputs, targets = form_of(examples, transform)
    if (shape := shape_of(inputs)) != tuple(spec.input_shape):
        given, known = ("x".join(map(str, sizes)) or "of their own" for sizes in (shape, spec.input_shape))
        raise DataError(f"the examples are of shape {given}, but the network is for {known}")
    task, output_size = task_of(targets, examples.classes)
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
