"""Fine-tuning: a network that has learned some classes of CIFAR-10 goes on with others, of which there are few images.

The network is torchvision's ResNet-18, which `conf/model/resnet18.yaml` names: nothing here is about it. What is here is
the data, some classes of it at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from model.datasets import cifar10, image_folder
from model.examples import Examples
from model.trees import DataError


def some_classes(split: str, root: str, *, classes: Sequence[str]) -> Examples | None:
    """The images of some classes of CIFAR-10, numbered in the order given here.

    root: holds what torchvision downloads, or the same images as files, train/<class>/ and test/<class>/.
    """
    all_images = image_folder(split, root) if Path(root, "train").is_dir() else cifar10(split, root)
    if all_images is None:
        return None
    if unknown := [name for name in classes if name not in all_images.classes]:
        raise DataError(f"data.classes holds {', '.join(unknown)}; there are {', '.join(all_images.classes)}")
    wanted = torch.tensor([all_images.classes.index(name) for name in classes])
    chosen = all_images.subset(torch.isin(all_images.targets, wanted).nonzero().flatten())
    held = chosen.in_memory()  # decoded only now, when it is known which
    return replace(held, targets=(held.targets[:, None] == wanted).int().argmax(dim=1), classes=list(classes))
