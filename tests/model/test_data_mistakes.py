"""Mistakes in someone's own dataset end in one line, with the place where they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streamed_cases import Noisy, epochs_of, split_of
from torch.utils.data import IterableDataset, TensorDataset

from model.examples import Examples
from model.splits import load_split
from model.trees import DataError


class Broken(Noisy):
    """Fails for one item, in a function of its own."""

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index) if index != 11 else self.fail(index)

    def fail(self, index: int) -> Any:
        return {}["label"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_in_the_datasets_code_is_told_with_its_place(num_workers: int) -> None:
    with pytest.raises(DataError, match=r"item 11 of Broken cannot be read \(KeyError: 'label', in ") as caught:
        epochs_of(split_of(Broken(), "test"), num_workers=num_workers)
    line = Path(__file__).read_text().splitlines().index('        return {}["label"]') + 1
    assert f"in {__file__}, line {line})" in str(caught.value) and "\n" not in str(caught.value)


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        yield torch.zeros(1)


def tensors(*parts: Any) -> TensorDataset:
    return TensorDataset(*parts)


def raising(split: str) -> Any:
    return {}["label"]


MISTAKES: dict[str, tuple[Any, str]] = {
    "a tuple": (lambda split: (torch.zeros(3), torch.zeros(3)), "is a tuple; it is a model.examples.Examples"),
    "a key error": (
        raising,
        r"the val split .* cannot be made \(KeyError: 'label', in .*test_data_mistakes\.py, line",
    ),
    "no example": (lambda split: Examples(torch.zeros(0, 3), torch.zeros(0, 1)), "the test split holds no examples"),
    "no training example": (
        lambda split: Examples(torch.zeros(0, 3), torch.zeros(0).long(), "ab") if split == "train" else None,
        "the train split holds no examples",
    ),
    "no validation example": (
        lambda split: Examples(torch.zeros(3 * (split == "train"), 3), None),
        "the val split holds no examples",
    ),
    "no item": (lambda split: tensors(torch.zeros(0, 3)), "the test split holds no examples"),
    "iterable": (lambda split: Endless(), "Endless is an iterable dataset"),
    "three parts": (lambda split: tensors(*torch.zeros(3, 9, 2)), "an item of the dataset has 3 parts"),
    "no class names": (lambda split: tensors(torch.zeros(9, 2), torch.arange(9)), "names no classes"),
    "numpy": (lambda split: Examples(np.zeros((4, 2)), torch.zeros(4, 1)), r"given: numpy\.ndarray"),
    "list": (lambda split: Examples([1.0, 2.0], torch.zeros(2, 1)), r"given: builtins\.float"),
    "gradients": (lambda split: Examples(torch.zeros(4, 2, requires_grad=True)), "the inputs require gradients"),
    "lengths": (lambda split: Examples(torch.zeros(4, 2), torch.zeros(3, 1)), "4 inputs, but 3 targets"),
    "lengths of a tree": (lambda split: Examples({"a": torch.zeros(4), "b": torch.zeros(3)}), "hold 3 and 4 examples"),
    "strings": (lambda split: Strings(), r"given: builtins\.str"),
    "ragged": (lambda split: Ragged(), r"the items of Ragged cannot be made a batch \(RuntimeError: .*`collate_fn`"),
}


class Strings(Noisy):
    def __getitem__(self, index: int) -> Any:
        return {"inputs": {"name": str(index)}, "targets": 0}


class Ragged(Noisy):
    def __getitem__(self, index: int) -> Any:
        return torch.zeros(index + 1), 0


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_of_a_dataset_are_one_line(case: str) -> None:
    dataset, message = MISTAKES[case]
    split = re.split(r"\W", message)[1] if message.endswith("holds no examples") else "train"
    with pytest.raises(DataError, match=message) as caught:
        epochs_of(load_split(dataset, split, val_fraction=0.2, split_seed=0), (1,))
    assert "\n" not in str(caught.value)


def test_labels_that_no_class_has_are_refused_when_they_come() -> None:
    dataset = Noisy()
    dataset.targets[3] = 7
    with pytest.raises(DataError, match=r"labels of Noisy from . to 7, but 3 classes"):
        epochs_of(split_of(dataset, "test"), (1,))
