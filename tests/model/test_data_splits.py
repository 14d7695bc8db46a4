"""Splits: every example is in one of them, the same one each time."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import digits_split, random_images
from sklearn.datasets import load_digits

from model.examples import DataError, Examples
from model.splits import load_split, split_indices


def identities(examples: Examples) -> set[tuple[bytes, int]]:
    """What tells one digit from another: no two of the 1,797 are the same image."""
    pairs = zip(examples.inputs, examples.targets.tolist(), strict=True)
    return {(image.numpy().tobytes(), target) for image, target in pairs}


def test_digits_are_all_there_once() -> None:
    splits = {split: digits_split(split) for split in ("train", "val", "test")}
    found = {split: identities(examples) for split, examples in splits.items()}
    assert {split: len(examples) for split, examples in splits.items()} == {
        split: len(identity) for split, identity in found.items()
    }
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 1797
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    stored = {(image.tobytes(), int(label)) for image, label in zip(pixels, labels, strict=True)}
    assert set.union(*found.values()) == stored


def test_digits_splits_hold_each_class_in_proportion() -> None:
    sizes = {split: digits_split(split).targets.bincount(minlength=10) for split in ("train", "val", "test")}
    total = sum(sizes.values())
    torch.testing.assert_close(sizes["test"] / total, torch.full((10,), 0.2), atol=0.01, rtol=0)
    torch.testing.assert_close(sizes["val"] / (total - sizes["test"]), torch.full((10,), 0.1), atol=0.01, rtol=0)


def test_another_split_seed_moves_validation_and_leaves_the_test_split() -> None:
    assert torch.equal(digits_split("test").inputs, digits_split("test", split_seed=7).inputs)
    assert identities(digits_split("val")) != identities(digits_split("val", split_seed=7))
    assert identities(digits_split("val")) == identities(digits_split("val"))
    for split_seed in (0, 7, 2**32 - 1):
        seen = identities(digits_split("train", split_seed=split_seed)) | identities(
            digits_split("val", split_seed=split_seed)
        )
        assert not seen & identities(digits_split("test", split_seed=split_seed))


def test_the_split_does_not_hang_on_the_global_random_state() -> None:
    torch.manual_seed(1)
    first = digits_split("val").inputs
    torch.manual_seed(2)
    assert torch.equal(digits_split("val").inputs, first)


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
def test_split_is_stratified_and_leaves_both_sides_some_of_every_class(fraction: float) -> None:
    targets = torch.tensor([0] * 200 + [1] * 40 + [2] * 2)
    training, validation = split_indices(targets, fraction, seed=3)
    assert sorted(training.tolist() + validation.tolist()) == list(range(242))
    for label, size in [(0, 200), (1, 40), (2, 2)]:
        num = int((targets[validation] == label).sum())
        assert num == min(size - 1, max(1, round(fraction * size)))


def test_split_of_a_class_of_one_example_trains_on_it() -> None:
    training, validation = split_indices(torch.tensor([0, 0, 0, 1]), 0.5, seed=0)
    assert 3 in training.tolist()
    assert 3 not in validation.tolist()


def test_regression_split_is_a_share_of_all() -> None:
    training, validation = split_indices(torch.randn(200, 1), 0.25, seed=0)
    assert len(validation) == 50
    assert sorted(training.tolist() + validation.tolist()) == list(range(200))
    assert validation.tolist() != list(range(50))


def test_limit_is_a_mixed_sample_of_its_split() -> None:
    limited = digits_split("train", limit=100)
    assert len(limited) == 100
    assert identities(limited) < identities(digits_split("train"))
    assert len(limited.targets.unique()) == 10
    assert len(digits_split("val", limit=10**9)) == len(digits_split("val"))


def test_a_dataset_with_its_own_validation_split_keeps_all_it_trains_on() -> None:
    parts = {
        "train": Examples(random_images(20), torch.zeros(20, dtype=torch.long), ["a"]),
        "val": Examples(random_images(5, seed=1), torch.zeros(5, dtype=torch.long), ["a"]),
        "test": None,
    }
    load = partial(load_split, parts.__getitem__, val_fraction=0.5, split_seed=0)
    assert len(load("train")) == 20
    assert torch.equal(load("val").inputs, parts["val"].inputs)
    with pytest.raises(DataError, match="no test split"):
        load("test")


@pytest.mark.parametrize("labels", [[0, 1, 10], [-1, 0, 1], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
def test_labels_out_of_range_are_refused(labels: list[int]) -> None:
    with pytest.raises(DataError, match="labels count from 0"):
        Examples(random_images(len(labels)), torch.tensor(labels), [str(i) for i in range(10)])


def test_inputs_without_targets_are_refused() -> None:
    with pytest.raises(DataError, match="3 inputs, but 2 targets"):
        Examples(random_images(3), torch.tensor([0, 0]), ["a"])


def test_the_fingerprint_sees_one_pixel_and_one_label() -> None:
    images, targets = random_images(4), torch.tensor([0, 1, 0, 1])
    changed_pixel, changed_target = images.clone(), targets.clone()
    changed_pixel[2, 1, 3, 3] ^= 1
    changed_target[3] = 0
    prints = [
        Examples(inputs, labels, ["a", "b"]).fingerprint()
        for inputs, labels in [
            (images, targets),
            (images.clone(), targets.clone()),
            (changed_pixel, targets),
            (images, changed_target),
            (images.flip(0), targets.flip(0)),
        ]
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.int64), "inputs are torch.float64"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), "channels, height, width"),
        (torch.zeros(4, 3), torch.zeros(4), "targets are torch.float32 of shape"),
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int32), "targets are torch.int32"),
    ],
)
def test_examples_of_a_wrong_type_say_what_is_right(inputs: Any, targets: Any, message: str) -> None:
    with pytest.raises(DataError, match="of shape") as caught:
        Examples(inputs, targets, ["a"])
    assert message in str(caught.value)
