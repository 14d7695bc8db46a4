"""Images decoded once are the images; the file is made anew when they change, and never half made."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import Outcome, read_lines

from model.cache import Decoded, decode_once
from model.datasets import image_folder
from model.examples import DataError, Folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Forty small images in two classes."""
    for number in range(40):
        path = tmp_path / "images" / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def both(root: Path, cache: Path) -> tuple[Folder, Decoded]:
    plain, decoded = image_folder("train", str(root), image_size=8), image_folder("train", str(root), image_size=8)
    assert plain is not None and decoded is not None
    images = decode_once(decoded, cache)
    assert len(images.pixels) == len(plain)
    return plain, images


def test_decoded_images_are_the_images(root: Path, tmp_path: Path) -> None:
    plain, decoded = both(root, tmp_path / "cache")
    indices = torch.tensor([3, 0, 17, 39])
    for one, other in ((plain, decoded), (plain.subset(indices), decoded.subset(indices))):
        assert torch.equal(one.in_memory().inputs, other.in_memory().inputs)
        assert torch.equal(one.in_memory().targets, other.in_memory().targets)
        assert torch.equal(one[1][0], other[1][0]) and one[1][1:] == other[1][1:]
    assert plain.fingerprint() == decoded.fingerprint()  # a run may go on with or without


def test_they_are_decoded_once_and_again_when_one_has_changed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both(root, tmp_path / "cache")
    assert "decoding 40 images once" in capsys.readouterr().out
    both(root, tmp_path / "cache")
    assert capsys.readouterr().out == ""
    image = next((root / "train" / "a").iterdir())
    PIL.Image.new("RGB", (9, 7), "white").save(image)
    plain, decoded = both(root, tmp_path / "cache")
    assert "decoding" in capsys.readouterr().out
    assert torch.equal(plain.in_memory().inputs, decoded.in_memory().inputs)


def test_a_file_that_is_not_whole_is_made_anew(root: Path, tmp_path: Path) -> None:
    both(root, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.pixels")
    os.truncate(file, 100)
    plain, decoded = both(root, tmp_path / "cache")
    assert torch.equal(plain.in_memory().inputs, decoded.in_memory().inputs)


def test_an_image_that_cannot_be_decoded_leaves_nothing_half_made(root: Path, tmp_path: Path) -> None:
    next((root / "train" / "b").iterdir()).write_text("no image")
    with pytest.raises(DataError, match="is not an image that can be read"):
        both(root, tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] in ([], [".lock"])


def test_no_room_for_them_is_told_before_they_are_decoded(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 2**10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"data.cache is .*, which cannot hold the decoded images"):
        both(root, tmp_path / "cache")


@pytest.mark.parametrize(("cache", "reason"), [("file", "which is a file"), ("file/x", "but .*/file is a file")])
def test_a_cache_that_is_a_file_is_called_one(cache: str, reason: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=rf"data\.cache is {tmp_path / cache}, {reason} and no folder"):
        both(root, tmp_path / cache)


def test_a_batch_larger_than_the_data_is_refused_before_it_is_decoded(
    root: Path, tmp_path: Path, run_command: Callable[..., Outcome]
) -> None:
    options = ["data=image_folder", f"data.root={root}", "data.batch_size=37", f"data.cache={tmp_path / 'cache'}"]
    outcome = run_command("train", *options, f"experiments_dir={tmp_path}", "trainer.device=cpu")
    assert outcome.code == 2 and "data.batch_size is 37, but the training split holds 36" in outcome.err
    assert "decoding" not in outcome.out and not (tmp_path / "cache").exists()


def test_training_gives_the_same_numbers_with_and_without(
    root: Path, tmp_path: Path, run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    images = ["data=image_folder", f"data.root={root}", "data.image_size=8", "data.num_workers=0", "data.batch_size=8"]
    options = [*images, "data.crop_padding=1", "data.flip=true", "model=cnn", "trainer.epochs=2"]
    plain, cached = run_train(*options), run_train(*options, f"data.cache={tmp_path / 'cache'}")
    assert read_lines(plain / "metrics.jsonl") == read_lines(cached / "metrics.jsonl")
    assert run_command("evaluate", f"run={cached}", "split=val").code == 0
    assert json.loads((cached / "evaluation_val.json").read_text())["num_examples"] == 4


def test_a_changed_bit_is_seen_and_mended(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, _ = both(root, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.pixels")
    written = file.read_bytes()
    for position in (0, len(written) // 2, len(written) - 1):
        file.write_bytes(written[:position] + bytes([written[position] ^ 4]) + written[position + 1 :])
        capsys.readouterr()
        _, decoded = both(root, tmp_path / "cache")
        assert "decoding" in capsys.readouterr().out
        assert torch.equal(plain.in_memory().inputs, decoded.in_memory().inputs)
        assert file.read_bytes() == written


def test_nothing_is_written_through_a_link_or_into_a_home(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for cache, message in [(str(tmp_path / "link"), "which is a link"), ("~/pixels", r"data\.cache is ~/pixels")]:
        with pytest.raises(DataError, match=message):
            image_folder("train", str(root), cache=cache)
    both(root, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.pixels")
    (outside := tmp_path / "elsewhere" / "mine").write_text("keep")
    for path in (file, file.with_name(f"{file.name}.lock")):
        path.unlink(missing_ok=True)
        path.symlink_to(outside)
        if path == file:
            assert len(both(root, tmp_path / "cache")[1]) == 40
        else:
            with pytest.raises(DataError, match="which is a link"):
                both(root, tmp_path / "cache")
        assert outside.read_text() == "keep"
