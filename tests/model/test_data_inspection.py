"""What is said of the data is so: planted duplicates, missing classes and empty examples are found, and nothing else."""

from __future__ import annotations

from pathlib import Path

import torch
from data_cases import digits_split, random_images
from PIL import Image

from model.datasets import digits, image_folder
from model.examples import Examples
from model.inspection import inspect
from model.splits import load_split

NAMES = ["a", "b", "c"]


def split_of(num: int, seed: int) -> Examples:
    return Examples(random_images(num, seed=seed), torch.arange(num) % 3, NAMES)


def test_digits_have_nothing_to_be_said_of() -> None:
    found = inspect({split: digits_split(split) for split in ("train", "val", "test")})
    assert found.duplicates == {"val in train": 0, "test in train": 0, "test in val": 0}
    assert sum(found.sizes.values()) == 1797 and sum(found.balance["test"].values()) == found.sizes["test"]
    assert found.lines() == []


def test_planted_duplicates_are_counted_with_those_that_contradict() -> None:
    train, test = split_of(300, 0), split_of(90, 1)
    inputs, targets = test.inputs.clone(), test.targets.clone()
    inputs[:5], targets[:5] = train.inputs[10:15], train.targets[10:15]
    targets[3] = (targets[3] + 1) % 3
    inputs[6] = train.inputs[20]
    inputs[6, 0, 0, 0] ^= 1  # nearly one
    found = inspect({"train": train, "test": Examples(inputs, targets, NAMES)})
    assert (found.duplicates, found.contradictions) == ({"test in train": 5}, {"test in train": 1})
    assert found.lines() == [
        "duplicates: 5 examples (5.6%) of test in train, 1 with another target; the figures of it flatter"
    ]


def test_trees_are_compared_whole() -> None:
    ids, mask = torch.arange(20).view(10, 2), torch.ones(10, 2)
    train = Examples({"ids": ids, "mask": mask})
    other = mask.clone()
    other[:4] = 0
    assert inspect({"train": train, "val": Examples({"ids": ids, "mask": other})}).duplicates == {"val in train": 6}


def test_balance_and_constant_examples() -> None:
    images = random_images(50)
    images[7] = images[9] = 3
    lopsided = torch.tensor([0] * 44 + [1] * 4 + [2] * 2)
    found = inspect({"train": Examples(images, lopsided, NAMES), "val": split_of(2, 5)})
    assert found.balance == {"train": {"a": 44, "b": 4, "c": 2}, "val": {"a": 1, "b": 1, "c": 0}}
    assert found.lines() == [
        "balance: train has 44 examples of a, 2 of c",
        "balance: val has no example of c",
        "constant: 2 examples of train are one number all over",
    ]


def test_files_are_compared_by_their_content(tmp_path: Path) -> None:
    for split, numbers in (("train", range(6)), ("test", (9, 4, 8))):
        for number in numbers:
            path = tmp_path / split / "ab"[number % 2] / f"{split}{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    found = inspect({split: image_folder(split, str(tmp_path)) for split in ("train", "test")})
    assert found.duplicates == {"test in train": 1} and found.balance["train"] == {"a": 3, "b": 3}


def test_a_dataset_of_someones_own_is_not_read() -> None:
    class Unread(torch.utils.data.Dataset):
        classes, targets = NAMES, [0, 1, 2, 2]

        def __len__(self) -> int:
            return 4

    split = load_split({"test": Unread()}.get, "test", val_fraction=0.1, split_seed=0)
    found = inspect({"test": split, "train": digits("train", "")})
    assert found.duplicates == {} and found.balance["test"] == {"a": 1, "b": 1, "c": 2}
