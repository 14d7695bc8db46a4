"""A split that stays in someone's own `torch.utils.data.Dataset`: its items are read when a batch needs them."""

from __future__ import annotations

import hashlib
import re
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset, default_collate

from model.draws import random_state_kept, seed_example
from model.examples import Examples, check_labels, class_names
from model.trees import DataError, Tree, leaves, tree_map

Transform = Callable[[Any, Any], tuple[Any, Any]]  # the inputs and target of one example -> the same
NUM_FINGERPRINTED = 3  # items whose content goes into the fingerprint of a dataset that has none of its own


def is_map_style(value: Any) -> bool:
    """Whether something is a dataset as PyTorch has them: items by number, so many of them."""
    is_plain = isinstance(value, (list, tuple, str, Mapping, np.ndarray, Tensor))
    return not is_plain and hasattr(value, "__getitem__") and hasattr(value, "__len__")


@dataclass(frozen=True)
class Streamed:
    """A split of a map-style dataset.

    An item is (inputs, target), {"inputs": ..., "targets": ...} or the inputs alone. What it draws at random (from torch,
    numpy or Python) is a function of (seed, epoch, index). rows: which of the dataset's items are these, [n]; labels: their
    class numbers [n], where the dataset's `targets` or `labels` say them without reading an item; classes: its `classes`,
    or the class numbers; collate: makes a batch of a list of items (None: `torch.utils.data.default_collate`, where an
    image of Pillow is one of bytes, float64 becomes float32, and a number for a target [n, 1]).
    """

    dataset: Any
    rows: Tensor
    labels: Tensor | None
    classes: Sequence[str]
    notes = ()
    collate: Callable[[list[Any]], Any] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def targets(self) -> Tensor | None:
        """The class numbers [n], where they are known without reading an item."""
        return self.labels

    @cached_property
    def form(self) -> tuple[Tree, Tree]:
        """The inputs and targets of the first item alone, as a batch."""
        return self.read([0])

    def read(
        self, indices: Sequence[int], *, seed: int = 0, epoch: int = 0, transform: Transform | None = None
    ) -> tuple[Tree, Tree]:
        """(inputs, targets) of the examples at `indices`, made a batch; DataError where the dataset's own code fails."""
        with random_state_kept():
            items = [self._read_one(index, seed, epoch, transform) for index in indices]
            seed_example(seed, epoch, -1 - indices[0])
            try:
                batch = (self.collate or collate)(items)
            except MemoryError:
                raise
            except Exception as error:
                raise DataError(
                    f"the items of {type(self.dataset).__name__} cannot be made a batch ({what_failed(error)}); give "
                    f"tensors of one shape, or the dataset an attribute `collate_fn`"
                ) from error
        inputs, targets = as_pair(batch)
        if any(len(tensor) != len(indices) for tensor in leaves((inputs, targets))):
            lengths = sorted({len(tensor) for tensor in leaves((inputs, targets))})
            raise DataError(
                f"collate_fn made tensors of {' and '.join(map(str, lengths))} examples out of {len(indices)} items; the "
                f"first axis of each counts the items"
            )
        if isinstance(targets, Tensor) and targets.dim() == 1:
            self._check_labels(targets)
        return inputs, targets

    def _check_labels(self, targets: Tensor) -> None:
        """DataError where targets [n] are no class numbers."""
        name = type(self.dataset).__name__
        if targets.is_floating_point():
            raise DataError(f"the targets of {name} are floats [n]; they are class numbers, or tensors [n, outputs]")
        if not self.classes:
            raise DataError(
                f"{name} gives class numbers, but names no classes; give it an attribute `classes` (their names), or "
                f"`targets` (all class numbers)"
            )
        check_labels(targets, self.classes, of=f" of {name}")

    def _read_one(self, index: int, seed: int, epoch: int, transform: Transform | None) -> Any:
        row = int(self.rows[index])
        seed_example(seed, epoch, row)
        try:
            item = self.dataset[row]
            return item if transform is None else transformed(item, transform)
        except Exception as error:
            if getattr(error, "for_user", False) or isinstance(error, MemoryError):
                raise
            raise DataError(
                f"item {row} of {type(self.dataset).__name__} cannot be read ({what_failed(error)})"
            ) from error

    def subset(self, indices: Tensor) -> Streamed:
        """Only the examples at `indices` [m]."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, rows=self.rows[indices], labels=labels)

    def in_memory(self) -> Examples:
        """All items, read."""
        return Examples(*self.read(range(len(self))), self.classes)

    def fingerprint(self) -> str:
        """SHA-256 of which items are in this split, and of the dataset's own `fingerprint()`.

        Where it has none: of what it says of itself, its length, the class numbers and its first items.
        """
        own = getattr(self.dataset, "fingerprint", None)
        digest = hashlib.sha256(self.rows.numpy().data)
        if callable(own):
            digest.update(str(own()).encode())
        else:
            digest.update(f"{type(self.dataset).__qualname__} {len(self.dataset)} {plain_repr(self.dataset)}".encode())
            digest.update(b"" if self.labels is None else self.labels.contiguous().numpy().data)
            for tensor in leaves(self.read(range(min(NUM_FINGERPRINTED, len(self))))):
                digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def stream(dataset: Any, collate_fn: Callable[[list[Any]], Any] | None = None) -> Streamed:
    """A map-style dataset as a split: what it says of its classes, targets and collate function is taken from it."""
    if isinstance(dataset, IterableDataset):
        raise DataError(
            f"{type(dataset).__name__} is an iterable dataset, whose items have no numbers by which to shuffle, share out "
            f"and resume them; give it __getitem__ and __len__ (a torch.utils.data.Dataset)"
        )
    rows, whole = torch.arange(len(dataset)), dataset
    while isinstance(whole, Subset):
        rows, whole = torch.as_tensor(whole.indices)[rows], whole.dataset
    labels = class_numbers(whole)
    classes = getattr(whole, "classes", None)
    if classes is None:
        names = [] if labels is None else [str(number) for number in range(int(labels.max(initial=-1)) + 1)]
    else:
        names = class_names(classes)
    own = next((found for part in (dataset, whole) if (found := getattr(part, "collate_fn", None))), None)
    known = None if labels is None else torch.from_numpy(labels)[rows]
    return Streamed(whole, rows, known, names, collate_fn or own)


def class_numbers(dataset: Any) -> np.ndarray | None:
    """The class number of every item [n] as int64, where a dataset has them in `targets` or `labels`."""
    for name in ("targets", "labels"):
        values = getattr(dataset, name, None)
        if isinstance(values, (list, tuple, np.ndarray, Tensor)) and len(values) == len(dataset):
            try:
                numbers = np.asarray(values)
            except ValueError:  # lists of different lengths
                continue
            if numbers.ndim == 1 and numbers.dtype.kind in "iu":
                return numbers.astype(np.int64)
    return None


# ---------------------------------------------------------------------------------------------------------------- items


def as_pair(item: Any) -> tuple[Any, Any]:
    """(inputs, target) of an item or of a batch of them; the target is None where it has none."""
    if isinstance(item, Mapping) and "inputs" in item and set(item) <= {"inputs", "targets"}:
        return item["inputs"], item.get("targets")
    if isinstance(item, (tuple, list)):
        if len(item) not in (1, 2):
            raise DataError(
                f"an item of the dataset has {len(item)} parts; it is (inputs, target), where each may be a dict or tuple, "
                f'or {{"inputs": ..., "targets": ...}}'
            )
        return item[0], (item[1] if len(item) == 2 else None)
    return item, None


def transformed(item: Any, transform: Transform) -> Any:
    """An item after a transform of its inputs and target, in the form that it had."""
    inputs, target = transform(*as_pair(item))
    if isinstance(item, Mapping) and "inputs" in item:
        return {"inputs": inputs, "targets": target} if "targets" in item else {"inputs": inputs}
    return (inputs, target)[: len(item)] if isinstance(item, (tuple, list)) else inputs


def collate(items: list[Any]) -> Any:
    """PyTorch's own batch of items, in the types that networks take."""
    items = [from_pillow(item) for item in items]
    pair = as_pair(default_collate(items))
    inputs, targets = (tree_map(single_precision, tree) for tree in pair)
    if isinstance(targets, Tensor) and targets.dim() == 1 and targets.is_floating_point():
        targets = targets.unsqueeze(1)
    return inputs, targets


def single_precision(tensor: Tensor) -> Tensor:
    """float64, which Python's and numpy's numbers are, as the type that networks compute in."""
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor


def from_pillow(value: Any) -> Any:
    """Images of Pillow, wherever they are in an item, as uint8 [channels, height, width]."""
    if isinstance(value, Mapping):
        return {key: from_pillow(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(from_pillow(part) for part in value)
    if not type(value).__module__.startswith("PIL."):
        return value
    pixels = torch.from_numpy(np.array(value))
    return pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1)


def plain_repr(value: Any) -> str:
    """What something says of itself, without where it lies in memory and on the disk."""
    lines = re.sub(r" at 0x[0-9a-f]+", "", repr(value)).splitlines()
    return "\n".join(line for line in lines if "Root location" not in line)


# --------------------------------------------------------------------------------------------------------------- errors

OUR_FILES = ("streamed.py", "streaming.py", "splits.py", "data_loader.py", "examples.py", "trees.py", "transforms.py")


def what_failed(error: BaseException) -> str:
    """An error of the user's code in words: its type, its message, and their file and line where it came from."""
    text = " ".join(str(error).split())[:200]
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib")]
    ours = {Path(__file__).resolve().with_name(name) for name in OUR_FILES}

    def is_theirs(path: Path) -> bool:
        return path.is_file() and path not in ours and not any(path.is_relative_to(folder) for folder in installed)

    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if is_theirs(Path(frame.filename).resolve())]
    place = f", in {theirs[-1].filename}, line {theirs[-1].lineno}" if theirs else ""
    return f"{type(error).__name__}: {text}{place}"
