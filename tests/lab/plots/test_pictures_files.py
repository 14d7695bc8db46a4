"""What holds for every picture: nothing is cut off, the same bytes each time, one kind of error, files that open."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from drawn import DIGITS, FIGURES, LONG_NAMES, PAGES, draw_one, make_records, texts_of
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lab.plots.classification import draw_confusion_matrix, draw_reliability
from lab.plots.comparisons import ForestRow, draw_forest
from lab.plots.figures import DrawingError, save_gif, save_png, to_image
from lab.plots.regression import draw_residuals
from lab.plots.searches import draw_history, draw_slices
from lab.plots.survival import draw_survival
from lab.plots.training import draw_learning_curves, draw_losses


@pytest.mark.parametrize("name", [*PAGES, *FIGURES])
@pytest.mark.parametrize(("classes", "epochs"), [(DIGITS, 20), (LONG_NAMES, 1), (["no", "yes"], 2)])
def test_no_ink_touches_the_border(name: str, classes: list[str], epochs: int) -> None:
    pixels = to_image(draw_one(name, classes, epochs)).astype(int)
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)])
    border = np.concatenate([border, pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)])
    assert (border == border[0]).all()
    assert (pixels != border[0]).any()


@pytest.mark.parametrize("name", [*PAGES, *FIGURES])
def test_png_is_the_picture_and_the_same_bytes_each_time(name: str, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    for file in ("one.png", "two.png"):
        picture = draw_one(name)
        save_png(picture, tmp_path / file)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), to_image(picture))
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "two.png"}  # no temporary file stays
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["curves", "predictions", "confusion", "filters", "losses", "reliability"])
def test_pictures_are_as_wide_as_tensorboard_shows_them(name: str) -> None:
    assert to_image(draw_one(name)).shape[1] <= 2 * 480


def test_what_every_run_draws_does_without_matplotlib() -> None:
    code = (
        "import sys; sys.path[:0] = ['tests/lab/plots']\n"
        "from lab.plots.animations import animate_embedding\n"
        "from lab.plots.classification import draw_confusion_matrix\n"
        "from lab.plots.figures import to_image\n"
        "from lab.plots.sheets import draw_predictions\n"
        "from lab.plots.training import draw_learning_curves\n"
        "to_image(draw_learning_curves([{'epoch': 1, 'val/loss': 1.0}]))\n"
        "print('matplotlib' in sys.modules)"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "False"


def test_what_cannot_be_drawn_is_one_kind_of_error() -> None:
    for draw in (
        lambda: draw_confusion_matrix(np.eye(3), ["a"]),
        lambda: draw_learning_curves([{"val/loss": 1.0}]),
        lambda: draw_learning_curves([{"epoch": 1, "val/loss": "one"}]),
        lambda: draw_losses({"SGD": ([1, 2], [1.0])}),
        lambda: draw_forest({}, "loss", higher=False),
        lambda: draw_slices({}, "loss", higher=False),
        lambda: to_image(None),  # type: ignore[arg-type]
    ):
        with pytest.raises(DrawingError):
            to_image(draw())


def test_names_are_written_as_they_are() -> None:
    names = ["$5", "$a_b$", "a_b^c", r"\\frac{1}", "#%&", "two\nlines"]
    for picture in ("confusion", "predictions", "probabilities", "effects", "importances"):
        written = texts_of(draw_one(picture, names))
        for name in names[: 4 if picture == "importances" else 5 if picture == "effects" else 6]:
            assert any(" ".join(name.split()) in text for text in written), (picture, name)


def test_saving_over_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "curve.png").mkdir()
    with pytest.raises(OSError):
        save_png(draw_learning_curves(make_records(1)), tmp_path / "curve.png")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


ANY = st.one_of(st.floats(), st.sampled_from([0.0, 1e300, -1e300, 1e-300, math.inf, math.nan, 1.0]))


@settings(deadline=None, max_examples=25)
@given(values=st.lists(ANY, min_size=1, max_size=6))
def test_any_numbers_are_drawn_or_refused(values: list[float]) -> None:
    """Nothing hangs, takes all memory, or ends in another error, whatever a run has measured."""
    records = [{"epoch": n, "train/loss": value, "val/accuracy": value, "lr": value} for n, value in enumerate(values)]
    rows = [ForestRow("a", value, value, values, "best") for value in values]
    for draw in (
        lambda: draw_learning_curves(records, best_epoch=0),
        lambda: draw_losses({"a": (values, values), "b": (range(len(values)), values)}, y_limits=(0, 2), smoothing=3),
        lambda: draw_residuals(values, values[::-1]),
        lambda: draw_reliability(np.array(values)[:, None], [0] * len(values)),
        lambda: draw_survival(range(len(values)), values, values, kills=[1]),
        lambda: draw_forest({"a": rows}, "val/loss", higher=False),
        lambda: draw_history(values, "val/loss", higher=False),
    ):
        with contextlib.suppress(DrawingError):
            to_image(draw())


# --------------------------------------------------------------------------------------------------------------- GIFs


def test_gif_has_every_frame_its_colours_and_times(tmp_path: Path) -> None:
    frames = [np.full((60, 80, 3), 255, np.uint8) for _ in range(7)]
    for index, frame in enumerate(frames):
        frame[10:20, 10 * index : 10 * index + 10] = (214, 39, 40)
    for name in ("a.gif", "b.gif"):
        save_gif(frames, tmp_path / name, frames_per_second=5, hold_last_seconds=1.5)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 7 and image.size == (80, 60) and image.info["loop"] == 0
        for index, frame in enumerate(frames):
            image.seek(index)
            assert image.info["duration"] == (200 if index < 6 else 1700)
            difference = np.asarray(image.convert("RGB")).astype(int) - frame
            assert np.abs(difference).max() <= 4
            assert (np.asarray(image.convert("RGB"))[0, 0] == 255).all()  # white paper stays white


def test_gif_takes_pictures_and_a_single_frame_and_refuses_none(tmp_path: Path) -> None:
    save_gif([draw_learning_curves(make_records(n)) for n in (1, 2)], tmp_path / "two.gif")
    save_gif([np.zeros((9, 9, 3), np.uint8)], tmp_path / "one.gif")
    with Image.open(tmp_path / "two.gif") as two, Image.open(tmp_path / "one.gif") as one:
        assert two.n_frames == 2 and getattr(one, "n_frames", 1) == 1
    with pytest.raises(DrawingError, match="at least one frame"):
        save_gif([], tmp_path / "none.gif")


def test_gif_that_would_be_too_large_loses_frames_and_no_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [np.repeat(rng.integers(0, 2, (60, 80, 1)) * 255, 3, axis=2).astype(np.uint8) for _ in range(40)]
    save_gif(frames, tmp_path / "whole.gif", hold_last_seconds=0)
    whole = (tmp_path / "whole.gif").stat().st_size
    save_gif(frames, tmp_path / "small.gif", hold_last_seconds=0, most_bytes=whole // 2)
    assert (tmp_path / "small.gif").stat().st_size <= whole // 2
    with Image.open(tmp_path / "small.gif") as image:
        assert 12 <= image.n_frames < 40
        total = 0
        for index in range(image.n_frames):
            image.seek(index)
            total += image.info["duration"]
        assert total == pytest.approx(4000, rel=0.06)
        last = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(last - frames[-1]).max() <= 4  # the outcome is always shown
    save_gif(frames, tmp_path / "tiny.gif", most_bytes=whole // 8)
    with Image.open(tmp_path / "tiny.gif") as image:
        assert image.size == (40, 30)
