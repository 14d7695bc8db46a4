"""A `torch.utils.data.Dataset` of anyone's as a split: the same batches whoever reads them, wherever an epoch goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from streamed_cases import Noisy, epochs_of, split_of
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Subset, TensorDataset

from model.batching import Batch
from model.splits import dataset_of, describe, load_split
from model.streamed import Streamed
from model.trees import DataError, leaves
from utils import PROJECT


class Sentences(Dataset):
    """Token ids of different lengths, padded by their own collate function."""

    classes = ("a", "b")

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": torch.arange(index % 7 + 1), "targets": index % 2}

    @staticmethod
    def collate_fn(items: list[dict[str, Any]]) -> dict[str, Any]:
        lengths = torch.tensor([len(item["inputs"]) for item in items])
        ids = pad_sequence([item["inputs"] for item in items], batch_first=True, padding_value=-1)
        return {"inputs": {"ids": ids, "lengths": lengths}, "targets": torch.tensor([i["targets"] for i in items])}


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    for one, other in zip(left, right, strict=True):
        assert one.size == other.size
        assert all(map(torch.equal, leaves(one[:2]), leaves(other[:2])))


@pytest.mark.parametrize("make", [Noisy, Sentences], ids=["random items", "collate function"])
def test_batches_are_the_same_whoever_reads_them_and_wherever_they_start(make: Callable[[], Any]) -> None:
    examples = split_of(make())
    alone = epochs_of(examples)
    torch.rand(7), np.random.rand(7), random.random()  # what ran before makes no difference
    assert_equal(alone, epochs_of(examples, num_workers=2))
    assert_equal(alone[-3:], epochs_of(examples, (2,), start=len(alone) // 2 - 3, num_workers=1))
    numbers = alone[0].inputs["ids"] if make is Sentences else alone[0].inputs
    assert not torch.equal(numbers, epochs_of(examples, seed=6)[0].inputs["ids" if make is Sentences else slice(None)])


def test_what_an_item_draws_depends_on_seed_epoch_and_index_alone() -> None:
    def drawn(**options: Any) -> dict[int, Tensor]:
        rows = torch.cat([batch.inputs for batch in epochs_of(split_of(Noisy()), **options)])
        return {int(row[0]): row[1:] for row in rows}

    first = drawn(epochs=(1,))
    assert len(first) == 32 and len({tuple(values.tolist()) for values in first.values()}) == 32
    other_batches = drawn(epochs=(1,), batch_size=5)
    assert all(torch.equal(first[index], other_batches[index]) for index in first)
    for other in (drawn(epochs=(2,)), drawn(epochs=(1,), seed=6)):
        assert not any(torch.equal(first[index], other[index]) for index in first)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_reading_leaves_the_global_random_state_alone(num_workers: int) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    epochs_of(split_of(Noisy()), num_workers=num_workers)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[2]
    assert (np.random.get_state()[1] == before[1]).all()


def test_validation_is_cut_off_each_class_in_proportion() -> None:
    dataset = Noisy()
    dataset.targets = [0] * 30 + [1] * 10
    training, validation = split_of(dataset), split_of(dataset, "val")
    assert validation.targets.tolist() == [0] * 6 + [1] * 2 and len(training) == 32
    assert not set(training.rows.tolist()) & set(validation.rows.tolist())
    assert len(split_of(dataset, limit=7)) == 7


def test_the_spec_comes_from_the_first_item() -> None:
    spec = describe(split_of(Noisy()), None, None)
    assert (spec.input_shape, spec.output_size, spec.task) == ((4,), 3, "classification")
    assert spec.classes == ("even", "odd", "never")
    spec = describe(split_of(Sentences()), None, None)
    assert (spec.input_shape, spec.output_size, spec.task) == ((), 2, "classification")
    spec = describe(split_of(TensorDataset(torch.randn(9, 3, 4))), None, None)
    assert (spec.input_shape, spec.output_size, spec.task) == ((3, 4), 0, "custom")
    spec = describe(split_of(TensorDataset(torch.randn(9, 3), torch.randn(9, 2))), None, None)
    assert (spec.input_shape, spec.output_size, spec.task) == ((3,), 2, "regression")


def test_a_subset_keeps_what_the_whole_says_of_itself() -> None:
    examples = split_of(Subset(Subset(Sentences(), range(5, 30)), range(0, 25, 2)), val_fraction=0.01)
    assert isinstance(examples, Streamed) and examples.classes == ["a", "b"]
    lengths = torch.cat([batch.inputs["lengths"] for batch in epochs_of(examples, (1,), shuffle=False)])
    assert lengths.tolist() == [number % 7 + 1 for number in examples.rows.tolist()]
    assert set(examples.rows.tolist()) < set(range(5, 30, 2))


class Pictures(Dataset):
    """Images of Pillow, which have to be made tensors, with floats to be met."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Image.Image, float]:
        return Image.new("RGB", (6, 4), (index * 10, 0, 255 - index)), index / 2


def test_pillow_and_plain_numbers_become_tensors_and_are_normalised() -> None:
    examples = split_of(Pictures())
    spec = describe(examples, None, None)
    assert (spec.input_shape, spec.task, spec.output_size) == ((3, 4, 6), "regression", 1)
    red = examples.rows.double() * 10 / 255
    np.testing.assert_allclose((spec.mean[0], spec.std[0]), (red.mean(), red.std(unbiased=False)), atol=1e-6)
    batch = epochs_of(examples, (1,), batch_size=len(examples))[0]
    assert batch.inputs.dtype == batch.targets.dtype == torch.float32 and batch.targets.shape == (16, 1)
    restored = batch.inputs[:, 0, 0, 0] * spec.std[0] + spec.mean[0]
    torch.testing.assert_close(restored, batch.targets[:, 0] * 20 / 255)
    assert epochs_of(examples, (1,), crop_padding=1, flip=True)[0].inputs.shape == (6, 3, 4, 6)


def test_fingerprints() -> None:
    whole = split_of(Noisy())
    assert whole.fingerprint() == split_of(Noisy()).fingerprint() != split_of(Noisy(), "val").fingerprint()
    assert whole.fingerprint() != split_of(Noisy(41)).fingerprint()
    changed = Noisy()
    changed.targets[37] = 2
    assert whole.fingerprint() != split_of(changed, split_seed=0).fingerprint()

    class Known(Noisy):
        content = "1"

        def fingerprint(self) -> str:
            return self.content

    known = split_of(Known()).fingerprint()
    Known.content = "2"
    assert known != split_of(Known()).fingerprint()


class Killed(Noisy):
    def __getitem__(self, index: int) -> Any:
        if torch.utils.data.get_worker_info() is not None and index == 11:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(DataError, match=r"a process that reads the data has ended .*data\.num_workers"):
        epochs_of(split_of(Killed(), "test"), num_workers=1)


def test_a_class_may_be_the_dataset_and_says_which_splits_it_has() -> None:
    class Both(Noisy):
        def __init__(self, split: str, root: str, *, num: int = 40) -> None:
            super().__init__(num)
            self.split = split

    class WithVal(Both):
        splits = ("train", "val")

    load = partial(load_split, dataset_of(Both, "", num=20), val_fraction=0.5, split_seed=0)
    assert [(len(load(name)), load(name).dataset.split) for name in ("train", "val", "test")] == [
        (10, "train"),
        (10, "train"),
        (20, "test"),
    ]
    load = partial(load_split, dataset_of(WithVal, "", num=20), val_fraction=0.5, split_seed=0)
    assert (len(load("train")), load("val").dataset.split) == (20, "val")
    with pytest.raises(DataError, match="no test split"):
        load("test")


def test_a_process_that_forgets_to_close_a_loader_ends_quietly() -> None:
    script = (
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "from model.data_loader import make_loader\n"
        "from model.splits import describe, stream\n"
        "examples = stream(TensorDataset(torch.zeros(60, 2), torch.zeros(60, 1)))\n"
        "options = {'batch_size': 2, 'device': torch.device('cpu'), 'num_workers': 2}\n"
        "loader = make_loader(examples, describe(examples, None, None), **options)\n"
        "batches = iter(loader)\n"
        "print(next(batches).size)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], check=False, cwd=PROJECT, capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "2\n", "")
