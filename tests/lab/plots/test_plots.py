"""What a reader of the pictures would miss: files that open, marks that can be told apart, names that are not mangled."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from lab.plots.classification import (
    animate_embedding,
    animate_regions,
    draw_class_probabilities,
    draw_confusion_matrix,
    draw_mistakes,
    draw_predictions,
)
from lab.plots.figures import BLUE, BLUE_TINT, RED_TINT, class_colours, save_gif, save_png, to_image
from lab.plots.training import (
    animate_regression,
    draw_first_filters,
    draw_learning_curves,
    draw_losses,
    draw_restored_curves,
)

LONG_NAMES = [f"a_rather_$long$ name_of_class number_{index}" for index in range(100)]
DIGITS = [str(digit) for digit in range(10)]


def read_texts(figure: Figure) -> list[str]:
    """All that is written in a figure, ticks included."""
    to_image(figure)
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def assert_nothing_clipped(figure: Figure) -> None:
    """All that is drawn lies within the page."""
    to_image(figure)
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert min(box.x0, box.y0) > -0.01 and box.x1 < width + 0.01 and box.y1 < height + 0.01, box


def make_examples(count: int, classes: int, channels: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, probabilities and targets, of which every second one is predicted wrong."""
    rng = np.random.default_rng(0)
    targets = np.arange(count) % classes
    scores = rng.random((count, classes))
    scores[np.arange(count), (targets + np.arange(count) % 2) % classes] += classes
    return rng.random((count, channels, 8, 6)), scores / scores.sum(1, keepdims=True), targets


def make_records(epochs: int) -> list[dict[str, float]]:
    return [
        {"epoch": epoch, "train/loss": 1 / epoch, "val/loss": 2 / epoch, "train/accuracy": 0.8, "val/accuracy": 0.7}
        for epoch in range(1, epochs + 1)
    ]


def draw_everything() -> dict[str, Figure]:
    images, probabilities, targets = make_examples(4, 10)
    x = np.linspace(-1, 1, 20)
    return {
        "curves": draw_learning_curves(make_records(3), best_epoch=2),
        "losses": draw_losses({"SGD": (x, x**2), "Adam": (x, x**4)}, smoothing=5),
        "filters": draw_first_filters(np.random.default_rng(0).normal(size=(6, 1, 3, 3))),
        "confusion": draw_confusion_matrix(np.eye(10, dtype=int) * 7 + 1, DIGITS),
        "predictions": draw_predictions(images, probabilities, targets, DIGITS),
        "mistakes": draw_mistakes(images, probabilities, targets, DIGITS),
        "probabilities": draw_class_probabilities(images[0], np.full(10, 0.1), probabilities[0], 0, DIGITS),
        "restored": draw_restored_curves(x, x, grid=x, curves={10: {"trained": x, "restored": x}}),
    }


def keep_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that frames are taken from, as they stand at the end."""
    figures: list[Figure] = []
    for module in ("classification", "training"):
        monkeypatch.setattr(f"lab.plots.{module}.to_image", lambda figure: figures.append(figure) or to_image(figure))
    return figures


# -------------------------------------------------------------------------------------------------------------- files


def test_png_is_the_picture_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name, figure in draw_everything().items():
        save_png(figure, tmp_path / f"{name}.png")
    for name, figure in draw_everything().items():
        save_png(figure, tmp_path / "again.png")
        assert (tmp_path / "again.png").read_bytes() == (tmp_path / f"{name}.png").read_bytes(), name
        with Image.open(tmp_path / f"{name}.png") as image:
            width, height = figure.get_size_inches() * figure.dpi
            assert image.format == "PNG" and abs(image.width - width) <= 1 and abs(image.height - height) <= 1
            np.testing.assert_array_equal(np.asarray(image), to_image(figure))
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".png"]  # no temporary file stays


def test_saving_over_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "curve.png").mkdir()
    with pytest.raises(OSError):
        save_png(draw_learning_curves(make_records(1)), tmp_path / "curve.png")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


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


def test_gif_takes_figures_and_a_single_frame_and_refuses_none(tmp_path: Path) -> None:
    save_gif([draw_learning_curves(make_records(n)) for n in (1, 2)], tmp_path / "two.gif")
    save_gif([np.zeros((9, 9, 3), np.uint8)], tmp_path / "one.gif")
    with Image.open(tmp_path / "two.gif") as two, Image.open(tmp_path / "one.gif") as one:
        assert two.n_frames == 2 and getattr(one, "n_frames", 1) == 1
    with pytest.raises(ValueError, match="at least one frame"):
        save_gif([], tmp_path / "none.gif")


def test_matplotlib_settings_stay_as_they_were() -> None:
    before = dict(matplotlib.rcParams)
    draw_everything()
    assert dict(matplotlib.rcParams) == before


# ----------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("epochs", [1, 2, 200])
def test_learning_curves_show_points_and_the_best_epoch(epochs: int) -> None:
    figure = draw_learning_curves(make_records(epochs), best_epoch=1)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    for axes, best in zip(figure.axes, (2.0, 0.7), strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert {"train", "val", f"best: epoch 1, {best:.4g}"} <= set(lines)
        assert len(lines["val"].get_xdata()) == epochs
        assert epochs > 30 or (lines["val"].get_marker() == "o" and lines["val"].get_markersize() > 0)
    assert all(tick == int(tick) for tick in figure.axes[0].get_xticks())
    assert_nothing_clipped(figure)


def test_learning_curves_take_any_first_metric_and_missing_values() -> None:
    records = [{"epoch": 0, "val/loss": 1.0}, {"epoch": 1, "val/loss": 0.5, "val/rmse": 0.7, "val/r2": 0.9}]
    figure = draw_learning_curves(records)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "rmse"]
    assert list(figure.axes[1].get_lines()[0].get_xdata()) == [1]
    assert len(draw_learning_curves([{"epoch": 0, "val/loss": 1.0}]).axes) == 1
    to_image(draw_learning_curves([]))


def test_a_loss_that_is_not_finite_is_told_and_spoils_no_scale() -> None:
    records = make_records(5)
    records[2] |= {"train/loss": float("inf")}
    records[3] |= {"train/loss": "nan"}  # type: ignore[dict-item]
    axes = draw_learning_curves(records).axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines["train not finite"].get_xdata()) == [3, 4]
    assert 2 < axes.get_ylim()[1] < 3


def test_smoothing_is_a_mean_that_keeps_gaps() -> None:
    losses = np.array([4.0, 2.0, 6.0, np.nan, 1.0, 3.0])
    axes = draw_losses({"SGD": (range(6), losses)}, smoothing=3, y_limits=(0, 5)).axes[0]
    raw, bold = axes.get_lines()
    np.testing.assert_array_equal(raw.get_ydata(), losses)
    np.testing.assert_allclose(bold.get_ydata(), [3, 4, 4, np.nan, 2, 2])
    assert axes.get_ylim() == (0, 5)
    (line,) = draw_losses({"SGD": (range(6), losses)}).axes[0].get_lines()
    np.testing.assert_array_equal(line.get_ydata(), losses)


def test_optimisers_differ_in_more_than_colour() -> None:
    axes = draw_losses({name: ([0, 1], [1, 0]) for name in ("SGD", "Momentum", "RMSprop", "Adam")}).axes[0]
    assert len({line.get_color() for line in axes.get_lines()}) == 4
    assert len({str(line._unscaled_dash_pattern) for line in axes.get_lines()}) == 4
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["SGD", "Momentum", "RMSprop", "Adam"]


@pytest.mark.parametrize("shape", [(8, 1, 5, 5), (64, 3, 7, 7), (5, 4, 3, 3), (300, 3, 3, 3), (1, 1, 1, 1)])
def test_filters_share_a_symmetrical_scale(shape: tuple[int, ...]) -> None:
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    figure = draw_first_filters(weights)
    shown = weights if shape[1] == 3 else weights.mean(1)
    low, high = figure.axes[1].get_ylim()
    assert -low == high == pytest.approx(float(shown[:256].abs().max()))
    assert ("first 256 of 300" in figure.axes[0].get_title()) == (shape[0] == 300)
    to_image(figure)
    to_image(draw_first_filters(torch.zeros(shape)))


def test_filter_colours_are_the_weights() -> None:
    weights = np.zeros((2, 3, 1, 1))
    weights[0, :, 0, 0] = (0.5, -0.5, 0.0)  # the first is red at its most and green at its least
    page = draw_first_filters(weights).axes[0].get_images()[0].get_array()
    assert page.shape == (18, 36, 3)
    np.testing.assert_allclose(page[9, 9], (1.0, 0.0, 0.5))
    np.testing.assert_allclose(page[9, 27], (0.5, 0.5, 0.5))


# ----------------------------------------------------------------------------------------------------- classification


@pytest.mark.parametrize("size", [2, 10, 20, 21, 100])
def test_confusion_matrix_at_every_size(size: int) -> None:
    counts = np.random.default_rng(0).integers(0, 900, (size, size))
    counts[0] = 0  # a class without examples
    figure = draw_confusion_matrix(counts, LONG_NAMES[:size])
    axes = figure.axes[0]
    cells = [text.get_text() for text in axes.texts]
    assert cells == ([str(count) for count in counts.ravel()] if size <= 20 else [])
    shares = np.asarray(axes.get_images()[0].get_array())
    np.testing.assert_allclose(shares.sum(1), [0.0] + [1.0] * (size - 1))
    assert axes.get_xlabel() == "predicted class" and axes.get_ylabel() == "true class"
    to_image(figure)
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert len(boxes) <= 34 and not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
    assert min(box.y0 for box in boxes) >= 0


def test_right_and_wrong_are_told_without_colour() -> None:
    images, probabilities, targets = make_examples(2, 10)
    axes = draw_predictions(images, probabilities, targets, DIGITS).axes[0]
    titles = [text.get_text() for text in axes.texts if text.get_text()[0] in "✓✗"]
    assert titles == ["✓ 0", "✗ 1 → 2"]
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle) and not patch.get_fill()]
    assert [frame.get_linestyle() for frame in frames] == ["-", "--"]


def test_the_true_class_is_always_among_the_bars_and_bold() -> None:
    images, probabilities, _ = make_examples(1, 10)
    last = int(probabilities[0].argmin())
    axes = draw_predictions(images, probabilities, [last], DIGITS).axes[0]
    names = [text for text in axes.texts if text.get_text() in DIGITS]
    assert len(names) == 5
    assert [text.get_text() for text in names if text.get_fontweight() == "bold"] == [str(last)]
    bars = [patch for patch in axes.patches if patch.get_fill()]
    shown = [probabilities[0, int(name.get_text())] for name in names]
    widths = np.array([bar.get_width() for bar in bars])
    np.testing.assert_allclose(widths / widths[0], np.array(shown) / shown[0])
    assert to_hex(bars[-1].get_facecolor()) == BLUE_TINT.lower()
    assert to_hex(bars[0].get_facecolor()) == RED_TINT.lower()


@pytest.mark.parametrize(("count", "classes", "channels"), [(1, 2, 1), (16, 10, 3), (7, 100, 3), (30, 3, 2)])
def test_sheets_at_every_size(count: int, classes: int, channels: int) -> None:
    images, probabilities, targets = (torch.from_numpy(array) for array in make_examples(count, classes, channels))
    names = LONG_NAMES[:classes]
    predictions = draw_predictions(images, probabilities, targets, names)
    mistakes = draw_mistakes(images, probabilities, targets, names)
    assert len(predictions.axes[0].get_images()) == min(count, 16)
    assert len(mistakes.axes[0].get_images()) == min(count, 25)
    for figure in (predictions, mistakes):
        assert_nothing_clipped(figure)
        image = figure.axes[0].get_images()[0]
        left, right, bottom, top = image.get_extent()
        assert (right - left) / abs(top - bottom) == pytest.approx(6 / 8)  # not stretched
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        assert not any(a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[:index])


def test_images_are_shown_as_they_are() -> None:
    colour, grey = np.random.default_rng(0).random((1, 3, 4, 4)), np.full((1, 1, 4, 4), 0.3)
    for images, expected in ((colour, colour[0].transpose(1, 2, 0)), (grey, np.full((4, 4, 3), 0.3))):
        shown = draw_mistakes(images, [[0.1, 0.9]], [0], ["a", "b"]).axes[0].get_images()[0].get_array()
        np.testing.assert_allclose(shown, expected)


def test_mistakes_are_named_in_the_order_given() -> None:
    images = np.zeros((2, 1, 4, 4))
    figure = draw_mistakes(images, [[0.03, 0.97, 0], [0.6, 0.3, 0.1]], [0, 2], ["cat", "dog", "hippopotamus"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["cat → dog, 0.97", "hippopotamus →\ncat, 0.60"]
    assert "no mistakes" in read_texts(draw_mistakes(images[:0], np.zeros((0, 3)), [], ["a", "b", "c"]))


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_class_probabilities_before_and_after(classes: int) -> None:
    rng = np.random.default_rng(0)
    before, after = rng.dirichlet(np.ones(classes), 2)
    target = int(after.argmin())
    figure = draw_class_probabilities(np.zeros((1, 4, 4)), before, after, target, LONG_NAMES[:classes])
    _, first, second = figure.axes
    bold = [label.get_text() for label in first.get_yticklabels() if label.get_fontweight() == "bold"]
    assert len(bold) == 1 and bold[0].endswith(f"_{target}")
    numbers = [int(re.findall(r"\d+$", label.get_text())[0]) for label in first.get_yticklabels()]
    assert len(numbers) == classes if classes <= 20 else len(numbers) <= 13
    assert {before.argmax(), after.argmax(), target} <= set(numbers)
    for axes, values in ((first, before), (second, after)):
        np.testing.assert_allclose([bar.get_width() for bar in axes.patches], values[numbers])
    blue = [bar for bar in second.patches if to_hex(bar.get_facecolor()) == BLUE.lower()]
    assert [bar.get_width() for bar in blue] == [after[target]]
    assert_nothing_clipped(figure)


@pytest.mark.parametrize("name", ["$5", "$a_b$", "a_b^c", r"\frac{1}", "#%&", "two\nlines"])
def test_class_names_are_written_as_they_are(name: str) -> None:
    plain = " ".join(name.split())
    images, probabilities, _ = make_examples(1, 2)
    figures = [
        draw_confusion_matrix(np.eye(2), [name, "b"]),
        draw_predictions(images, probabilities, [0], [name, "b"]),
        draw_class_probabilities(images[0], [0.5, 0.5], [0.1, 0.9], 0, [name, "b"]),
    ]
    for figure in figures:
        assert any(plain in text for text in read_texts(figure))
        assert not any(text.get_parse_math() for text in figure.findobj(Text) if plain in text.get_text())


def test_regions_show_prediction_by_colour_and_mistakes_by_a_cross(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = keep_figures(monkeypatch)
    points, targets = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([0, 1, 0, 1])
    maps = np.tile(np.linspace(0, 1, 8), (2, 8, 1))
    predictions = np.array([[True, True, True, True], [False, True, False, False]])  # as `probability > 0.5` gives them
    keywords = {"extent": (-1, 2, -1, 2), "predictions": predictions, "steps": [0, 50], "accuracies": [0.5, 0.75]}
    frames = animate_regions(points, targets, maps, **keywords)
    assert [frame.shape for frame in frames] == [(360, 480, 3)] * 2 and (frames[0] != frames[1]).any()
    axes = figures[-1].axes[0]
    zeros, ones, wrong = axes.collections
    np.testing.assert_array_equal(wrong.get_offsets(), [[1.0, 1.0]])
    colours = class_colours(2)
    np.testing.assert_allclose(zeros.get_facecolor()[:, :3], colours[[0, 0]])
    np.testing.assert_allclose(ones.get_facecolor()[:, :3], colours[[1, 0]])
    assert axes.get_title("left") == "step 50" and axes.get_title("right") == "accuracy 0.750"
    region = axes.get_images()[0].get_array()
    assert region[0, 0, 2] > region[0, 0, 0] and region[0, -1, 0] > region[0, -1, 2]  # blue to the left, orange right


def test_regions_of_many_classes_come_as_integers() -> None:
    rng = np.random.default_rng(0)
    keywords = {"extent": (0, 1, 0, 1), "predictions": rng.integers(0, 5, (1, 30)), "steps": [1], "accuracies": [0.2]}
    frames = animate_regions(rng.random((30, 2)), rng.integers(0, 5, 30), rng.integers(0, 5, (1, 9, 9)), **keywords)
    assert len(frames) == 1 and len(np.unique(frames[0].reshape(-1, 3), axis=0)) > 5


@pytest.mark.parametrize("classes", [2, 10, 20, 100])
def test_embedding_frames_share_their_limits_and_make_a_small_gif(classes: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = np.arange(300) % classes
    places = rng.normal(size=(8, 300, 2)) * np.linspace(1, 9, 8)[:, None, None]
    frames = animate_embedding(places, targets, LONG_NAMES[:classes], range(8))
    inked = [np.argwhere((frame[30:, :200] < 200).any(-1)) for frame in frames]
    assert np.ptp(inked[0], axis=0).max() < np.ptp(inked[-1], axis=0).max()  # the cloud grows, the limits stay
    assert inked[-1][:, 1].min() > 12  # and none of it is cut off
    save_gif(frames, tmp_path / "map.gif")
    assert (tmp_path / "map.gif").stat().st_size < 300_000
    with Image.open(tmp_path / "map.gif") as image:
        assert image.n_frames == 8 and image.size == (480, 360)
        image.seek(7)
        shown = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(shown - frames[-1]).max() < 60 and np.abs(shown - frames[-1]).mean() < 1
    assert (shown[frames[-1].min(-1) == 255] == 255).all()  # white paper stays white


def test_ten_classes_have_ten_colours_and_twenty_a_second_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({tuple(colour) for colour in class_colours(10)}) == 10
    assert len({tuple(colour) for colour in class_colours(100)}) == 100
    figures = keep_figures(monkeypatch)
    animate_embedding(np.zeros((1, 20, 2)), np.arange(20), LONG_NAMES[:20], [3], accuracies=[0.5])
    looks = {(tuple(dot.get_facecolor()[0]), len(dot.get_paths()[0])) for dot in figures[0].axes[0].collections}
    assert len(looks) == 20
    assert {"epoch 3", "accuracy 0.500"} <= set(read_texts(figures[0]))


# --------------------------------------------------------------------------------------------------------- regression


def test_regression_frames_follow_the_curve(tmp_path: Path) -> None:
    x = np.linspace(-1, 1, 50)
    curves = np.stack([x * 0 + 90.0, x * 0, x**2])  # the first lies far outside
    frames = animate_regression(x, x**2, curves, grid=x, steps=[0, 5, 10], losses=[9.0, float("nan"), 0.1])
    assert [frame.shape for frame in frames] == [(360, 480, 3)] * 3
    red = [(abs(frame.astype(int) - (214, 39, 40)).sum(-1) < 30)[:300] for frame in frames]
    assert red[0].sum() == 0 and red[1].sum() > 300 and red[2].sum() > 300  # the scale is that of the data
    assert np.ptp(np.argwhere(red[1])[:, 0]) < 5 < np.ptp(np.argwhere(red[2])[:, 0])
    save_gif(frames, tmp_path / "fit.gif")
    with Image.open(io.BytesIO((tmp_path / "fit.gif").read_bytes())) as image:
        assert image.n_frames == 3


def test_equal_curves_are_all_seen() -> None:
    x = np.linspace(-1, 1, 50)
    names = ("trained", "restored whole", "rebuilt from parameters")
    figure = draw_restored_curves(x, x, grid=x, curves={w: dict.fromkeys(names, x**2) for w in (4, 10, 50, 100)})
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["width 4", "width 10", "width 50", "width 100"]
    widths = [line.get_linewidth() for line in panels[0].get_lines()]
    assert widths == sorted(widths, reverse=True) and len(set(widths)) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["data", *names]
    pixels = to_image(figure).reshape(-1, 3).astype(int)
    for line in panels[0].get_lines():
        colour = np.array([int(to_hex(line.get_color())[i : i + 2], 16) for i in (1, 3, 5)])
        assert (abs(pixels - colour).sum(1) < 6).sum() > 500, line.get_label()
    assert_nothing_clipped(figure)
