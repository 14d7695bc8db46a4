"""Downloaded datasets: read as they lie on disk, and missed in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome
from data_cases import random_images

from model.datasets import mnist
from model.splits import describe

DATA_ROOT = Path(os.environ.get("DATA_ROOT", "data"))
needs_mnist = pytest.mark.skipif(
    not (DATA_ROOT / "MNIST" / "raw").is_dir(), reason="DATA_ROOT holds no MNIST/raw: set it to where MNIST is"
)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.error
    import urllib.request

    def refuse(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no network in a test")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


FILES = {
    "mnist": ("MNIST", "MNIST/raw/"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw/"),
    "kmnist": ("KMNIST", "KMNIST/raw/"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py/"),
    "cifar100": ("CIFAR100", "cifar-100-python/"),
}


@pytest.mark.parametrize("had_folder", [True, False], ids=["folder", "no folder"])
@pytest.mark.parametrize("data", FILES)
def test_data_that_is_not_there_ends_in_one_line(
    data: str, had_folder: bool, tmp_path: Path, run_command: Callable[..., Outcome], no_network: None
) -> None:
    root = tmp_path / "data"
    if had_folder:
        root.mkdir()
        (root / "mine.txt").write_text("keep")
    outcome = run_command("train", f"data={data}", f"data.root={root}", f"experiments_dir={tmp_path / 'experiments'}")
    name, files = FILES[data]
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert f"{name} is not in {root}" in outcome.err
    assert files in outcome.err
    assert "DATA_ROOT" in outcome.err
    assert [path.name for path in tmp_path.glob("**/*")] == (["data", "mine.txt"] if had_folder else [])


@needs_mnist
def test_mnist_is_read_as_it_lies_on_disk(no_network: None) -> None:
    sizes = {"train": 60_000, "test": 10_000}
    for split, size in sizes.items():
        examples = mnist(split, str(DATA_ROOT))
        assert examples is not None
        assert examples.inputs.shape == (size, 1, 28, 28)
        assert examples.inputs.dtype == torch.uint8
        assert examples.targets.dtype == torch.int64
        assert len(examples.classes) == 10
        prefix = {"train": "train", "test": "t10k"}[split]
        raw = DATA_ROOT / "MNIST" / "raw"
        pixels = np.frombuffer((raw / f"{prefix}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
        labels = np.frombuffer((raw / f"{prefix}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
        np.testing.assert_array_equal(examples.inputs.numpy().ravel(), pixels)
        np.testing.assert_array_equal(examples.targets.numpy(), labels)
    assert mnist("val", str(DATA_ROOT)) is None


def write_idx(path: Path, values: np.ndarray) -> None:
    """The format of MNIST's files."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(header + values.tobytes())


@pytest.mark.parametrize("data", ["mnist", "fashion_mnist", "kmnist"])
def test_files_in_mnists_format_train_and_evaluate(
    data: str, tmp_path: Path, run_train: Callable[..., Path], run_command: Callable[..., Outcome], no_network: None
) -> None:
    raw = tmp_path / FILES[data][1]
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for prefix, num in (("train", 200), ("t10k", 50)):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", generator.integers(0, 256, (num, 28, 28), np.uint8))
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", (np.arange(num) % 10).astype(np.uint8))
    run = run_train(f"data={data}", f"data.root={tmp_path}", "trainer.epochs=1", name=data)
    outcome = run_command("evaluate", f"run={run}")
    assert outcome.code == 0, outcome.err
    assert "50 test examples" in outcome.out


@pytest.mark.parametrize(("data", "num_classes", "key"), [("cifar10", 10, "labels"), ("cifar100", 100, "fine_labels")])
def test_files_in_cifars_format_are_colour_images(
    data: str, num_classes: int, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    import pickle

    import torchvision.datasets

    import model.datasets

    folder = tmp_path / FILES[data][1]
    folder.mkdir()
    pixels = {}
    training = [f"data_batch_{i}" for i in range(1, 6)] if data == "cifar10" else ["train"]
    for number, name in enumerate([*training, "test_batch" if data == "cifar10" else "test"]):
        images = random_images(num_classes, size=32, seed=number)
        pixels[name] = images
        content = {"data": images.flatten(1).numpy(), key: list(range(num_classes))}
        (folder / name).write_bytes(pickle.dumps(content))
    names = {"label_names" if data == "cifar10" else "fine_label_names": [f"class {i}" for i in range(num_classes)]}
    (folder / ("batches.meta" if data == "cifar10" else "meta")).write_bytes(pickle.dumps(names))
    # Their MD5 sums are those of the real files; the format is what matters here.
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())
    train_split = getattr(model.datasets, data)("train", str(tmp_path))
    test_split = getattr(model.datasets, data)("test", str(tmp_path))
    assert torch.equal(train_split.inputs, torch.cat([pixels[name] for name in training]))
    assert torch.equal(test_split.inputs, pixels["test_batch" if data == "cifar10" else "test"])
    assert train_split.targets.tolist() == list(range(num_classes)) * len(training)
    assert list(train_split.classes) == [f"class {i}" for i in range(num_classes)]
    assert describe(train_split, None, None).input_shape == (3, 32, 32)
