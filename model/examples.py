"""What a dataset gives: the examples of a split, in memory or as image files.

Nothing here knows where they come from (datasets.py), nor what becomes of them (data_loader.py).
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.images import Resize, read_image
from model.trees import DataError, Tree, leaves, num_examples, tree_map


def are_images(inputs: Tree) -> bool:
    """Whether inputs are images as bytes, uint8 [n, channels, height, width]."""
    return isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and inputs.dim() == 4


# ------------------------------------------------------------------------------------------------------------- in memory


@dataclass(frozen=True)
class Examples:
    """A split in memory.

    inputs, targets: a tensor [n, ...] of any type, or a dict, tuple or list of them; targets may be None. uint8 inputs
    [n, channels, height, width] are images. targets of int64 [n] are class numbers, of float32 [n, outputs] values to be
    met; anything else is for a loss and metrics of your own. classes: the names of the classes, in the order of their
    numbers.
    """

    inputs: Tree
    targets: Tree = None
    classes: Sequence[str] = ()
    notes: Sequence[str] = field(default=(), kw_only=True)  # lines for the log about what is not in it

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", class_names(self.classes))  # it is frozen
        for name, tree in (("inputs", self.inputs), ("targets", self.targets)):
            for tensor in leaves(tree):
                check_tensor(tensor, name, is_alone=tensor is tree)
        lengths = {name: {len(t) for t in leaves(getattr(self, name))} for name in ("inputs", "targets")}
        if not lengths["inputs"]:
            raise DataError("the inputs hold no tensor")
        if len(set.union(*lengths.values())) > 1:
            num_inputs, num_targets = (" and ".join(map(str, sorted(sizes))) for sizes in lengths.values())
            raise DataError(
                f"{num_inputs} inputs, but {num_targets} targets"
                if lengths["targets"] and lengths["inputs"] != lengths["targets"]
                else f"the tensors of the inputs hold {num_inputs} examples; their first axes count the same ones"
            )
        if isinstance(self.targets, Tensor):
            check_targets(self.targets, self.classes)

    def __len__(self) -> int:
        return num_examples(self.inputs)

    def subset(self, indices: Tensor) -> Examples:
        """Only the examples at `indices` [m]."""
        inputs, targets = (tree_map(lambda tensor: tensor[indices], tree) for tree in (self.inputs, self.targets))
        return replace(self, inputs=inputs, targets=targets)

    @property
    def form(self) -> tuple[Tree, Tree]:
        """Inputs and targets of at least one example."""
        return self.inputs, self.targets

    def in_memory(self) -> Examples:
        """Itself: a folder of images has more to do here."""
        return self

    def fingerprint(self) -> str:
        """SHA-256 of all inputs and targets."""
        digest = hashlib.sha256()
        for tensor in leaves((self.inputs, self.targets)):
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def are_class_numbers(targets: Tree) -> bool:
    """Whether targets are one class number for each example."""
    return isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point()


def class_names(names: Iterable[Any]) -> list[str]:
    """The names of classes as text; DataError where one is given twice."""
    found = [str(name) for name in names]
    if twice := sorted(name for name, number in Counter(found).items() if number > 1):
        raise DataError(f"the class name {twice[0]!r} is given twice; each class has a name of its own")
    return found


def check_tensor(tensor: Tensor, name: str, *, is_alone: bool) -> None:
    """DataError where a tensor of the inputs or targets is none that a network could be trained on.

    is_alone: it is all there is; a mask among several may hold infinities.
    """
    if tensor.requires_grad:
        raise DataError(f"the {name} require gradients; give {name}.detach()")
    if tensor.dim() == 0:
        raise DataError(f"the {name} hold a single number; the first axis of a tensor counts the examples")
    if tensor.dtype == torch.float64 and torch.get_default_dtype() != torch.float64:
        raise DataError(
            f"the {name} are torch.float64 of shape {list(tensor.shape)}, but networks compute in torch.float32; "
            f"give {name}.float()"
        )
    if is_alone and name == "inputs" and tensor.dtype == torch.uint8 and tensor.dim() == 3:
        raise DataError(
            f"inputs are torch.uint8 of shape {list(tensor.shape)}; images are torch.uint8 [n, channels, height, width]: "
            f"give inputs.unsqueeze(1)"
        )
    if is_alone and tensor.is_floating_point() and not tensor.isfinite().all():
        num_bad = int((~tensor.isfinite()).reshape(len(tensor), -1).any(dim=1).sum())
        raise DataError(f"the {name} of {num_bad} of {len(tensor)} examples hold nan or infinity; leave them out")


def check_labels(targets: Tensor, classes: Sequence[str], *, of: str = "") -> None:
    """DataError where class numbers [n] are not all numbers of the classes named."""
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= len(classes):
        raise DataError(
            f"labels{of} from {low} to {high}, but {len(classes)} classes: labels count from 0, and `classes` names each"
        )


def check_targets(targets: Tensor, classes: Sequence[str]) -> None:
    """DataError where targets [n, ...] look like class numbers or values to be met, but are none."""
    if targets.dim() == 1 and targets.dtype != torch.int64:
        raise DataError(
            f"targets are {targets.dtype} of shape {list(targets.shape)}; class numbers are torch.int64 [n], values "
            f"torch.float32 [n, outputs]"
        )
    if targets.dim() == 1 and len(targets):
        check_labels(targets, classes)
    if targets.dim() == 2 and targets.is_floating_point() and classes and targets.shape[1] != len(classes):
        raise DataError(f"targets of {targets.shape[1]} values, but {len(classes)} classes")


# -------------------------------------------------------------------------------------------------------------- on disk


@dataclass(frozen=True)
class Folder:
    """A split that stays on disk: image files, decoded when they are asked for and resized to `image_size` squared.

    channels: 1 or 3; resize: as in `read_image`; notes: lines that say what of the folder is not in it.
    """

    files: Sequence[Path]
    targets: Tensor
    classes: Sequence[str]
    image_size: int
    channels: int = field(default=3, kw_only=True)
    resize: Resize = field(default="stretch", kw_only=True)
    notes: Sequence[str] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        """(uint8 image [channels, image_size, image_size], target, index)."""
        return self.__getitems__([index])[0], self.targets[index], index

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """A batch of images, uint8 [batch, channels, image_size, image_size]."""
        images = torch.empty(len(indices), *self.shape, dtype=torch.uint8)
        for image, index in zip(images, indices, strict=True):
            file = self.files[index]
            image.copy_(read_image(file, self.image_size, channels=self.channels, resize=self.resize))
        return images

    def subset(self, indices: Tensor) -> Folder:
        """Only the examples at `indices` [m]."""
        return replace(self, files=[self.files[i] for i in indices.tolist()], targets=self.targets[indices])

    @property
    def form(self) -> tuple[Tensor, Tensor]:
        """An image as it would be, and the targets."""
        return torch.empty(1, *self.shape, dtype=torch.uint8), self.targets

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height, width."""
        return self.channels, self.image_size, self.image_size

    def fingerprint(self) -> str:
        """SHA-256 of the files' names and targets, and of how they are made images.

        Their content is not read, and their sizes do not count: a file that was damaged may be mended.
        """
        digest = hashlib.sha256(f"{self.image_size} {self.channels} {self.resize}\n".encode())
        for path, label in zip(self.files, self.targets.tolist(), strict=True):
            digest.update(os.fsencode(f"{path.parent.name}/{path.name} {label}\n"))
        return digest.hexdigest()

    def in_memory(self) -> Examples:
        """All images decoded."""
        return Examples(self.__getitems__(range(len(self))), self.targets, self.classes)
