"""Folders of images that are damaged, or not as they should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import CPU, batches, load_folder, random_images, write_images
from PIL import Image

from model.data_loader import make_loader
from model.datasets import image_folder
from model.examples import DataError
from model.net import DataSpec


def corrupt(content: bytes) -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "text", b"this is no image\n"
    yield "cut", content[: len(content) // 2]
    yield "header only", content[:20]
    yield "html", b"<!DOCTYPE html><html>404</html>"


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_damaged_image_is_named(suffix: str, tmp_path: Path) -> None:
    write_images(tmp_path / "train", random_images(4, size=32), torch.zeros(4, dtype=torch.long), suffix)
    path = tmp_path / "train" / "0" / f"0002{suffix}"
    whole = path.read_bytes()
    for _, content in corrupt(whole):
        path.write_bytes(content)
        folder = load_folder(tmp_path)
        with pytest.raises(DataError, match=f"0002{suffix} is not an image") as caught:
            folder[2]
        assert "\n" not in str(caught.value)
        with pytest.raises(DataError, match=f"0002{suffix}"):
            batches(make_loader(folder, DataSpec((3, 8, 8), 1, "classification"), batch_size=2, device=CPU), 1)


def test_an_image_that_expands_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train" / "a" / "bomb.png"
    path.parent.mkdir(parents=True)
    Image.new("1", (20_000, 10_000)).save(path)
    with pytest.raises(DataError, match=r"bomb\.png"):
        load_folder(tmp_path)[0]


FOLDER_MISTAKES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "no folder": (lambda root: None, "train", "no image folder in .*expected there: train/<class>"),
    "no class": (lambda root: (root / "train").mkdir(), "train", "holds no image"),
    "empty class": (lambda root: (root / "train" / "a").mkdir(parents=True), "train", "holds no image"),
    "unknown class": (
        lambda root: [
            (root / name).mkdir(parents=True) for name in ("train/a", "train/b", "test/a", "test/zebra")
        ],
        "test",
        "zebra",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDER_MISTAKES)
def test_folders_that_are_not_as_expected(case: str, tmp_path: Path) -> None:
    prepare, split, message = FOLDER_MISTAKES[case]
    prepare(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        image_folder(split, str(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_corrupt_image_is_one_line_also_from_a_worker(num_workers: int, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "train" / "a").mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / "a" / f"{number}.png")
    (tmp_path / "train" / "a" / "5.png").write_bytes(b"no image")
    folder = image_folder("train", str(tmp_path), image_size=8)
    spec = DataSpec((3, 8, 8), 1, "classification", (0.5,), (0.5,), ("a",))
    loader = make_loader(folder, spec, batch_size=2, num_workers=num_workers, device=torch.device("cpu"))
    with pytest.raises(DataError, match=r"5\.png is not an image that can be read") as caught:
        list(loader)
    loader.close()
    assert "\n" not in str(caught.value)


def test_sixteen_bit_images_are_scaled_and_what_programs_leave_is_no_class(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    values = (np.arange(64, dtype=np.uint32).reshape(8, 8) * 65535 // 63).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "train" / "a" / "deep.png")
    folder = image_folder("train", str(tmp_path), image_size=8)
    assert folder.classes == ["a"]
    image, _, _ = folder[0]
    np.testing.assert_allclose(image[0].numpy(), values / 257, atol=1)
