"""Folders of images: what is read from them, whoever reads it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Outcome
from data_cases import batches, digits_split, load_folder, loader_for, write_images
from PIL import Image

from model.datasets import image_folder
from model.splits import describe, load_split


@pytest.fixture
def digit_folder(tmp_path: Path) -> Path:
    """120 digits as 8x8 grey PNG files, in root/train and root/test."""
    for split in ("train", "test"):
        examples = digits_split(split, limit=120)
        write_images(tmp_path / split, examples.inputs, examples.targets)
    return tmp_path


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_folder_gives_the_batches_that_memory_gives(num_workers: int, digit_folder: Path) -> None:
    folder = load_folder(digit_folder)
    options = {"batch_size": 16, "crop_padding": 2, "flip": True, "drop_last": True}
    streaming, memory = (
        loader_for(folder, num_workers=num_workers, **options),
        loader_for(folder.in_memory(), **options),
    )
    assert type(streaming) is not type(memory)
    assert len(streaming) == len(memory)
    for epoch in (1, 2, 7, 1):
        pairs = list(zip(batches(streaming, epoch), batches(memory, epoch), strict=True))
        assert len(pairs) == 7
        for (left, left_targets), (right, right_targets) in pairs:
            assert torch.equal(left, right)
            assert torch.equal(left_targets, right_targets)
    streaming.close()


def test_a_folder_holds_the_images_that_were_written(digit_folder: Path) -> None:
    folder = load_folder(digit_folder)
    examples = digits_split("train", limit=120)
    assert folder.classes == [str(digit) for digit in range(10)]
    assert len(folder) == 120
    image, target, index = folder[17]
    number = int(folder.files[17].stem)
    assert index == 17
    assert target == examples.targets[number]
    assert torch.equal(image, examples.inputs[number].expand(3, 8, 8))  # grey becomes colour
    spec = describe(folder, None, None)
    pixels = folder.in_memory().inputs.numpy() / 255
    np.testing.assert_allclose(spec.mean, pixels.mean(axis=(0, 2, 3)), atol=1e-6)
    assert spec.input_shape == (3, 8, 8)


@pytest.mark.parametrize("kind", ["memory", "folder", "folder with workers"])
def test_iterating_leaves_the_global_random_state_alone(kind: str, digit_folder: Path) -> None:
    folder = load_folder(digit_folder)
    loader = loader_for(
        folder.in_memory() if kind == "memory" else folder,
        num_workers=2 if kind == "folder with workers" else 0,
        crop_padding=1,
        flip=True,
    )
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for epoch in (1, 2):
        batches(loader, epoch)
    loader.close()
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_an_epoch_left_halfway_does_not_disturb_the_next(digit_folder: Path) -> None:
    for examples in (load_folder(digit_folder), load_folder(digit_folder).in_memory()):
        loader, fresh = loader_for(examples), loader_for(examples)
        loader.set_epoch(1)
        iterator = iter(loader)
        next(iterator)
        next(iterator)
        for (left, _), (right, _) in zip(batches(loader, 2), batches(fresh, 2), strict=True):
            assert torch.equal(left, right)


def test_classes_have_the_training_folders_numbers(tmp_path: Path) -> None:
    for split, names in [("train", "cba"), ("val", "bc"), ("test", "c")]:
        for number, name in enumerate(names):
            path = tmp_path / split / name / "x.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    found = {split: load_folder(tmp_path, split) for split in ("train", "val", "test")}
    assert all(list(folder.classes) == ["a", "b", "c"] for folder in found.values())
    assert {split: folder.targets.tolist() for split, folder in found.items()} == {
        "train": [0, 1, 2],
        "val": [1, 2],
        "test": [2],
    }
    load = partial(load_split, lambda split: image_folder(split, str(tmp_path)), val_fraction=0.5, split_seed=0)
    assert len(load("train")) == 3  # its own validation folder is used, and nothing is cut off
    assert [path.parent.parent.name for path in load("val").files] == ["val", "val"]


def test_images_of_every_kind_become_colour_of_one_size(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    (folder / "nested").mkdir(parents=True)
    gradient = np.linspace(0, 255, 40 * 20).reshape(20, 40).astype(np.uint8)
    colour = np.stack([gradient, gradient[::-1], gradient[:, ::-1]], axis=2)
    Image.fromarray(gradient).save(folder / "grey.png")
    Image.fromarray(colour).save(folder / "colour.JPG", format="JPEG")
    Image.fromarray(colour).convert("P").save(folder / "palette.png")
    Image.fromarray(colour).convert("RGBA").save(folder / "nested" / "alpha.PNG", format="PNG")
    Image.fromarray(colour).save(folder / "exact.jpeg", quality=100)
    (folder / "notes.txt").write_text("not an image, and not taken for one")
    images = load_folder(tmp_path, image_size=10)
    assert len(images) == 5
    assert images.in_memory().inputs.shape == (5, 3, 10, 10)
    for index, path in enumerate(images.files):
        picture = Image.open(path).convert("RGB").resize((10, 10), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(images[index][0].numpy(), np.array(picture).transpose(2, 0, 1))


def test_a_damaged_image_ends_a_run_in_one_line(
    digit_folder: Path, tmp_path: Path, run_command: Callable[..., Outcome]
) -> None:
    """In a worker process too, whose errors come with a traceback of their own."""
    spoiled = sorted((digit_folder / "train").glob("*/*.png"))[40]
    spoiled.write_bytes(b"spoiled")
    for num_workers in (0, 1):
        outcome = run_command(
            "train",
            "data=image_folder",
            f"data.root={digit_folder}",
            f"data.num_workers={num_workers}",
            "data.image_size=8",
            "data.batch_size=16",
            "data.mean=[0.5]",
            "data.std=[0.5]",
            "trainer.epochs=1",
            "trainer.device=cpu",
            f"experiments_dir={tmp_path / 'experiments'}",
        )
        assert outcome.code == 2
        assert len(outcome.err.strip().splitlines()) == 1, outcome.err
        assert spoiled.name in outcome.err


def test_a_folder_trains_and_evaluates(
    digit_folder: Path, run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    run = run_train(
        "data=image_folder",
        f"data.root={digit_folder}",
        "data.image_size=8",
        "data.num_workers=0",
        "data.batch_size=16",
        "trainer.epochs=2",
    )
    outcome = run_command("evaluate", f"run={run}")
    assert outcome.code == 0, outcome.err
    assert "120 test examples" in outcome.out
