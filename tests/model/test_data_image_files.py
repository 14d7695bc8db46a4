"""Image files: what is one, what of it is read, and what is said of those that are left out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import CPU
from PIL import Image, ImageOps

from model.cache import Decoded
from model.data_loader import make_loader
from model.datasets import image_folder
from model.examples import Examples, Folder
from model.images import read_image
from model.splits import describe
from model.trees import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray = PIXELS, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def folder_of(root: Path, **options: Any) -> Folder:
    folder = image_folder("train", str(root), **{"image_size": 8} | options)
    assert folder is not None
    return folder


def as_array(image: Image.Image) -> np.ndarray:
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


@pytest.mark.parametrize(("suffix", "options"), [("webp", {"lossless": True}), ("bmp", {}), ("tif", {}), ("TIFF", {})])
def test_other_formats_are_images_too(suffix: str, options: dict[str, Any], tmp_path: Path) -> None:
    path = save(tmp_path / "train" / "a" / f"x.{suffix}", PIXELS[:, :20], **options)
    assert folder_of(tmp_path).files == [path]
    np.testing.assert_array_equal(read_image(path, 20).numpy(), PIXELS[:, :20].transpose(2, 0, 1))


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a" / "x.png")
    save(tmp_path / "train" / "b" / "y.png")
    folder = folder_of(tmp_path, channels=1)
    expected = as_array(Image.fromarray(PIXELS).convert("L").resize((8, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(folder.in_memory().inputs[0].numpy(), expected)
    spec = describe(folder, None, None)
    assert spec.input_shape == (1, 8, 8) and len(spec.mean) == 1
    assert next(iter(make_loader(folder, spec, batch_size=2, device=CPU))).inputs.shape == (2, 1, 8, 8)
    with pytest.raises(DataError, match=r"data\.channels 1 or 3"):
        folder_of(tmp_path, channels=4)


@pytest.mark.parametrize("shape", [(20, 40), (40, 20)])
def test_cropping_and_padding_keep_the_aspect(shape: tuple[int, int], tmp_path: Path) -> None:
    height, width = shape
    path = save(tmp_path / "x.png", np.full((height, width, 3), 200, np.uint8))
    padded = read_image(path, 20, resize="pad")[0]
    inside = padded == 200
    assert (int(inside.sum()), int((padded == 0).sum())) == (200, 200)
    assert torch.equal(inside, (inside.any(dim=1)[:, None] & inside.any(dim=0)[None, :]))
    assert bool(inside[10, 10]) and int(inside.any(dim=1).sum()) == (10 if width > height else 20)

    marked = np.zeros((height, width, 3), np.uint8)
    marked[(height - 20) // 2 : (height + 20) // 2, (width - 20) // 2 : (width + 20) // 2] = PIXELS[:, 10:30]
    cropped = read_image(save(path, marked), 20, resize="crop")
    np.testing.assert_array_equal(cropped.numpy(), PIXELS[:, 10:30].transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_the_right_way_up(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = save(tmp_path / "x.png", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(read_image(path, 8).numpy(), as_array(upright))
    plain = read_image(save(tmp_path / "y.png"), 8)
    assert torch.equal(read_image(path, 8), plain) == (orientation == 1)


def test_what_is_skipped_is_counted_by_what_it_is(tmp_path: Path) -> None:
    training = tmp_path / "train"
    for name in ("a/x.png", "a/sub/y.JPG", "b/z.bmp"):
        save(training / name)
    for name in ("a/._x.png", "a/.DS_Store", "a/.ipynb_checkpoints/x.png", "b/notes.txt", "b/list.txt", "b/README"):
        (training / name).parent.mkdir(parents=True, exist_ok=True)
        (training / name).write_bytes(b"?")
    (training / ".ipynb_checkpoints").mkdir()
    (training / "__MACOSX").mkdir()
    folder = folder_of(tmp_path)
    assert folder.classes == ["a", "b"] and len(folder) == 3
    assert list(folder.notes) == [
        f"6 files in {training} are no images and are skipped: 3 hidden, 2 .txt, 1 without an ending"
    ]
    assert folder.subset(torch.tensor([1])).notes == folder.notes


@pytest.mark.parametrize("cached", [False, True])
def test_broken_images_are_skipped_on_request_and_named(cached: bool, tmp_path: Path) -> None:
    for number in range(6):
        save(tmp_path / "train" / "ab"[number % 2] / f"{number}.png")
    whole = (tmp_path / "train" / "a" / "2.png").read_bytes()
    (tmp_path / "train" / "a" / "2.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train" / "b" / "3.png").write_bytes(b"no image")
    cache = {"cache": str(tmp_path / "cache")} if cached else {}
    with pytest.raises(DataError, match=r"2\.png is not an image .*data\.skip_broken=true"):
        folder_of(tmp_path, **cache).in_memory()
    folder = folder_of(tmp_path, skip_broken=True, **cache)
    assert isinstance(folder, Decoded) == cached
    assert [path.name for path in folder.files] == ["0.png", "4.png", "1.png", "5.png"]
    assert folder.targets.tolist() == [0, 0, 1, 1] and len(folder.in_memory()) == 4
    (note,) = folder.notes
    assert note == f"2 images in {tmp_path / 'train'} cannot be read and are skipped: a/2.png, b/3.png"


def test_a_damaged_file_may_be_mended(tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / "train" / "ab"[number % 2] / f"{number}.png")
    path = tmp_path / "train" / "a" / "2.png"
    whole, before = path.read_bytes(), folder_of(tmp_path).fingerprint()
    path.write_bytes(whole[:100])
    assert folder_of(tmp_path).fingerprint() == before
    save(path, PIXELS[:5])
    assert folder_of(tmp_path).fingerprint() == before
    changes: list[Callable[[], Any]] = [
        lambda: path.rename(tmp_path / "train" / "b" / "2.png"),
        (tmp_path / "train" / "b" / "2.png").unlink,
        lambda: save(tmp_path / "train" / "b" / "7.png"),
    ]
    seen = {before}
    for change in changes:
        change()
        seen.add(folder_of(tmp_path).fingerprint())
    assert len(seen) == 4
    assert folder_of(tmp_path, channels=1).fingerprint() not in seen
    assert folder_of(tmp_path, resize="crop").fingerprint() not in seen


def test_names_that_are_no_text_are_files_and_classes_all_the_same(tmp_path: Path) -> None:
    strange = os.fsencode(tmp_path / "train") + b"/cl\xe9/\xff\xfe.png"
    path = save(Path(os.fsdecode(strange)))
    save(tmp_path / "train" / "b" / "x.png")
    folder = folder_of(tmp_path)
    assert list(folder.classes) == ["b", "cl\\xe9"]
    assert folder.fingerprint() == folder_of(tmp_path).fingerprint()
    assert describe(folder, None, None).classes == ("b", "cl\\xe9")
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cl\\xe9/\\xff\\xfe\.png is not an image") as caught:
        folder.in_memory()
    str(caught.value).encode()  # it can be written anywhere
    assert (
        folder_of(tmp_path, skip_broken=True, cache=str(tmp_path / "cache")).notes[0].endswith("cl\\xe9/\\xff\\xfe.png")
    )


def test_float_images_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "x.tiff"
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(path)
    with pytest.raises(DataError, match=r"x\.tiff is not an image that can be read \(its pixels are floats"):
        read_image(path, 8)


def test_class_names_are_text_and_each_is_given_once() -> None:
    targets = torch.tensor([0, 1, 1])
    assert Examples(torch.zeros(3, 2), targets, [3, 8]).classes == ["3", "8"]
    with pytest.raises(DataError, match="the class name 'a' is given twice"):
        Examples(torch.zeros(3, 2), targets, ["a", "a"])
