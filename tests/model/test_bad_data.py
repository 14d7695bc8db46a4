"""Data with a mistake in it is refused in one line, before anything is written."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.commands import Outcome, assert_one_line, compose
from omegaconf import DictConfig
from PIL import Image

import train
from lab.config.command import checked
from lab.config.schema import TrainRequest
from lab.runs.directory import recorded_part
from model.examples import DataError, Examples
from utils import UserError


def pictures(split: str, root: str, *, wrong: str = "") -> Examples | None:
    """Images of three classes, with something wrong with the split that `wrong` begins with."""
    size = {"train": 60, "val": 30, "test": 30}[split]
    inputs, targets, classes = torch.zeros(size, 1, 4, 4, dtype=torch.uint8), torch.arange(size) % 3, ["a", "b", "c"]
    match wrong.split() if wrong.startswith(split) else []:
        case _, "empty":
            inputs, targets = inputs[:0], targets[:0]
        case _, "channels":
            inputs = inputs.expand(-1, 3, -1, -1)
        case _, "larger":
            inputs = torch.zeros(size, 1, 8, 8, dtype=torch.uint8)
        case _, "classes":
            targets, classes = torch.arange(size) % 4, ["a", "b", "c", "d"]
        case _, "names":
            classes = ["a", "b", "x"]
        case _, "regression":
            return Examples(inputs, torch.zeros(size, 3))
        case _, "nan":
            return Examples(torch.full((size, 4), math.nan), targets, classes)
        case _, "infinity":
            return Examples(torch.zeros(size, 4), torch.full((size, 1), math.inf))
        case _, "one":
            targets, classes = targets * 0, ["a"]
        case _, "labels":
            targets = targets + 1
    return Examples(inputs, targets, classes)


WRONG_DATA = {
    "train empty": ["train", "no examples"],
    "val empty": ["val", "no examples"],
    "train nan": ["inputs of 60 of 60 examples", "nan"],
    "train infinity": ["targets of 60 of 60 examples", "infinity"],
    "val nan": ["inputs", "nan"],
    "train one": ["one class a"],
    "train labels": ["labels from 1 to 3", "3 classes"],
    "val labels": ["labels from 1 to 3"],
    "val channels": ["3x4x4", "1x4x4"],
    "val larger": ["1x8x8", "1x4x4"],
    "val classes": ["a, b, c, d", "a, b, c"],
    "val names": ["a, b, x"],
    "val regression": ["regression", "classification"],
}
SMALL = ["data._target_=test_bad_data.pictures", "data.batch_size=20", "trainer.epochs=1", "trainer.device=cpu"]


@pytest.fixture(scope="module")
def asked() -> DictConfig:
    """The configuration of a run on `pictures`."""
    return recorded_part(checked(compose(*SMALL, "+data.wrong=''", "trainer.images=false"), TrainRequest))


@pytest.mark.parametrize("wrong", WRONG_DATA)
def test_data_with_a_mistake_is_refused_before_anything_is_written(
    wrong: str, asked: DictConfig, tmp_path: Path
) -> None:
    cfg = asked.copy()
    cfg.data.wrong = wrong
    with pytest.raises((DataError, UserError)) as caught:
        train.train(cfg, tmp_path / "run")
    assert "\n" not in str(caught.value)
    for part in WRONG_DATA[wrong]:
        assert part in str(caught.value), caught.value
    assert list(tmp_path.iterdir()) == []


def test_data_without_a_mistake_is_not(asked: DictConfig, tmp_path: Path) -> None:
    assert math.isfinite(train.train(asked, tmp_path / "run")["val/loss"])


def test_a_mistake_in_the_data_ends_a_command_in_one_line(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run_command("train", *SMALL, "+data.wrong='val channels'", f"experiments_dir={tmp_path / 'x'}")
    assert_one_line(outcome, "3x4x4", "1x4x4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "part"),
    [("empty", "no examples"), ("channels", "3x4x4"), ("classes", "classes"), ("regression", "classes")],
)
def test_a_test_split_unlike_the_training_data_is_refused(
    wrong: str, part: str, run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    run = run_train(*SMALL, f"+data.wrong='test {wrong}'")
    assert_one_line(run_command("evaluate", f"run={run}"), part)
    assert not list(run.glob("evaluation*")) and not list(run.glob("*.png"))


def damage_images(folder: Path) -> dict[str, bytes]:
    """Contents of a file that should be an image."""
    picture = io.BytesIO()
    Image.frombytes("RGB", (8, 8), random.Random(0).randbytes(192)).save(picture, "PNG")
    bomb = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(bomb, "PNG")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(executed) (w) file\n%%EOF\n"
    return {
        "truncated": picture.getvalue()[:150],
        "empty": b"",
        "text": b"no image",
        "a bomb": bomb.getvalue(),
        "a program": postscript,  # which Pillow would hand to Ghostscript
    }


@pytest.mark.parametrize("case", damage_images(Path()))
def test_an_image_that_is_none_is_named(
    case: str, run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        path = tmp_path / "images" / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 10, 10)).save(path)
    path.write_bytes(damage_images(tmp_path)[case])
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    arguments = ["data=image_folder", f"data.root={tmp_path / 'images'}", "data.image_size=8", "data.num_workers=0"]
    outcome = run_command("train", *arguments, "data.batch_size=2", f"experiments_dir={tmp_path / 'x'}")
    assert_one_line(outcome, f"{path} is not an image that can be read")
    assert not (tmp_path / "x").exists()
