"""Pictures of tables, searches, regressions and benchmarks: what is best is seen to be, and nothing else is claimed."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from drawn import make_rows, texts_of
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

from lab.plots.canvas import Page
from lab.plots.colours import BLUE, GREY, RED, YELLOW, to_rgb
from lab.plots.comparisons import EffectLine, ForestRow, MeanCurve, draw_effects, draw_forest, draw_mean_curves
from lab.plots.figures import DrawingError, to_image
from lab.plots.regression import draw_residuals, draw_restored_curves
from lab.plots.searches import Slice, draw_history, draw_importances, draw_slices
from lab.plots.speed import draw_growth, draw_speed
from lab.plots.survival import animate_survival, draw_survival


def lines_of(axes: Axes, colour: str) -> list[list[float]]:
    """The y values, or for whiskers the x values, of the lines of one colour."""
    return [[float(x) for x in line.get_xdata()] for line in axes.get_lines() if line.get_color() == colour]


# ------------------------------------------------------------------------------------------------------- forest plot


def test_forest_shows_what_can_be_told_from_the_best() -> None:
    figure = draw_forest({"digits": make_rows(5), "mnist": make_rows(2)}, "val/accuracy", higher=True)
    digits, mnist = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["digits", "mnist"]
    assert mnist.get_xlabel() == "val/accuracy (higher is better)"
    assert [xs[0] for xs in lines_of(digits, BLUE) if len(xs) == 1] == [0.9, 0.89, 0.88]
    assert pytest.approx([xs[0] for xs in lines_of(digits, GREY) if len(xs) == 1]) == [0.87, 0.86]
    (band,) = digits.patches
    assert (band.get_x(), band.get_width()) == pytest.approx((0.89, 0.02))
    assert "0.900 ± 0.010" in texts_of(figure)
    low, high = digits.get_xlim()
    assert low < 0.85 and 0.91 < high <= 1.02 and digits.yaxis_inverted()


def test_forest_of_single_runs_has_dots_and_no_whiskers() -> None:
    figure = draw_forest({"digits": make_rows(3, half=None)}, "val/loss", higher=False)
    assert not figure.axes[0].patches
    assert {len(xs) for xs in lines_of(figure.axes[0], BLUE)} == {1, 3}  # dots, and the ticks of the runs
    assert "0.9000" in texts_of(figure)


def test_forest_shows_thirty_rows_of_more_and_says_so() -> None:
    figure = draw_forest({"digits": make_rows(40)}, "val/loss", higher=False)
    assert figure.axes[0].get_title() == "digits (the best 30 of 40 rows)"
    labels = [text for text in figure.axes[0].texts if text.get_ha() == "right"]
    to_image(figure)
    boxes = [label.get_window_extent() for label in labels]
    assert len(boxes) == 30 and not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


def test_forest_does_not_let_a_huge_interval_hide_the_rows() -> None:
    rows = [ForestRow("a", 0.9, 0.01, [0.9], "best"), ForestRow("b", 0.89, 3.0, [0.85, 0.93], "one of the best")]
    axes = draw_forest({"": rows}, "val/accuracy", higher=True).axes[0]
    low, high = axes.get_xlim()
    assert 0.7 < low < 0.85 and 0.93 < high < 1.05
    assert {line.get_marker() for line in axes.get_lines()} >= {"<", ">"}
    draw_forest({"": [ForestRow("a", math.nan, None, [math.nan], "other")]}, "val/loss", higher=False)


# --------------------------------------------------------------------------------------------------- effects, curves


def test_effects_connect_only_what_they_are_given_to_connect() -> None:
    lines = [
        EffectLine("lr=1", {"mlp": 0.9, "cnn": 0.95}),
        EffectLine("lr=2", {"cnn": 0.7}),
        EffectLine("", {"mlp": 0.8}),
    ]
    axes = draw_effects({"model": lines}, "val/accuracy").axes[0]
    drawn = {tuple(line.get_ydata()): line for line in axes.get_lines()}
    assert set(drawn) == {(0.95, 0.9), (0.7,), (0.8,)}
    assert drawn[0.95, 0.9].get_color() == BLUE and drawn[0.7,].get_color() == GREY
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cnn", "mlp"]


def test_effects_place_many_numbers_by_their_size() -> None:
    figure = draw_effects(
        {"lr": [EffectLine("", {str(2**n): n for n in range(14)})], "m": [EffectLine("", {"a": 1})]}, "y"
    )
    assert figure.axes[0].get_xscale() == "log"
    assert list(figure.axes[0].get_lines()[0].get_xdata()) == [2**n for n in range(14)]
    few = draw_effects({"lr": [EffectLine("", {"0.1": 2, "0.01": 1})]}, "y").axes[0]
    assert [label.get_text() for label in few.get_xticklabels()] == ["0.01", "0.1"]


def test_mean_curves_have_runs_or_bands_a_panel_for_each_dataset_and_honest_axes() -> None:
    epochs, runs = [1, 2, 3], [([1, 2, 3], [0.5, 0.8, 0.9]), ([1, 2, 3], [0.6, 0.9, 0.99])]
    few = MeanCurve(epochs, [0.55, 0.85, 0.945], [0.6, 0.6, 0.6], runs)
    many = MeanCurve(epochs, [0.3, 0.6, 0.7], [0.1, 0.1, 0.1], runs * 3)
    figure = draw_mean_curves({"digits": {"a": few, "b": many}, "mnist": {"a": few}}, "val/accuracy")
    digits, mnist = figure.axes[:2]
    assert [digits.get_title(), mnist.get_title()] == ["digits", "mnist"]
    assert sum(line.get_linewidth() < 1 for line in digits.get_lines()) == 2
    assert len(digits.collections) == 1 and not mnist.collections  # b has a band, a its runs
    assert digits.get_ylim() == mnist.get_ylim() and digits.get_ylim()[1] <= 1.02
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


# ------------------------------------------------------------------------------------------------------------ search


def test_slices_are_on_the_scale_of_the_space_and_ring_the_best() -> None:
    results = [0.5, 0.9, 0.7]
    slices = {
        "lr": Slice([0.01, 0.1, 0.03], results, 1e-4, 1, True),
        "model": Slice(["b", "a", "b"], results, choices="abc"),
    }
    figure = draw_slices(slices, "val/accuracy", higher=True)
    lr, model = figure.axes
    assert lr.get_xscale() == "log" and lr.get_xlim()[0] < 1e-4 and lr.get_xlim()[1] > 1
    assert [label.get_text() for label in model.get_xticklabels()] == ["a", "b", "c"]
    for axes in (lr, model):
        dots, ring = (part for part in axes.collections if isinstance(part, PathCollection))
        assert to_hex(ring.get_edgecolor()[0]).upper() == RED and float(ring.get_offsets()[0][1]) == 0.9
        assert list(np.argsort(dots.get_array())) == [0, 2, 1]  # the darker the better
    assert [float(line.get_ydata()[0]) for line in model.get_lines()] == [0.9, 0.6]  # medians
    lower = draw_slices(slices, "val/loss", higher=False).axes[0].collections[1]
    assert float(lower.get_offsets()[0][1]) == 0.5


def test_history_is_the_best_so_far() -> None:
    values = [0.5, None, 0.4, 0.8, math.nan, 0.6]
    axes = draw_history(values, "val/accuracy", higher=True).axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_allclose(lines["best so far"].get_ydata(), [0.5, 0.5, 0.5, 0.8, 0.8, 0.8])
    assert list(lines["without a result"].get_xdata()) == [1, 4]
    assert list(lines["best: trial 3, 0.8"].get_xdata()) == [3]
    lower = {line.get_label(): line for line in draw_history(values, "loss", higher=False).axes[0].get_lines()}
    np.testing.assert_allclose(lower["best so far"].get_ydata(), [0.5, 0.5, 0.4, 0.4, 0.4, 0.4])
    to_image(draw_history([None, None], "loss", higher=False))


def test_importances_are_bars_in_their_order() -> None:
    axes = draw_importances({"lr": 0.7, "model": 0.3}, "val/accuracy").axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.7, 0.3]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["lr", "model"]


# -------------------------------------------------------------------------------------------- regression, benchmarks


def test_residuals_say_their_figures() -> None:
    true = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    page = draw_residuals(true + np.array([[0.3, 0.0], [-0.3, 0.0], [0.3, 0.0]]), true, names=["height", "weight"])
    assert {"height:  RMSE 0.3    R² 0.8650", "weight:  RMSE 0"} <= set(texts_of(page))
    with pytest.raises(DrawingError, match="finite"):
        draw_residuals([math.nan], [1.0])


def test_equal_curves_are_all_seen() -> None:
    x = np.linspace(-1, 1, 50)
    names = ("trained", "restored whole", "rebuilt from parameters")
    page = draw_restored_curves(x, x, grid=x, curves={w: dict.fromkeys(names, x**2) for w in (4, 10, 50, 100)})
    assert {"width 4", "width 10", "width 50", "width 100", *names} <= set(texts_of(page))
    pixels = to_image(page).reshape(-1, 3).astype(int)
    for colour in (YELLOW, "#56B4E9", "#222222"):
        assert (np.abs(pixels - np.round(255 * to_rgb(colour))).sum(1) < 6).sum() > 500, colour


def test_speed_and_growth_show_every_figure() -> None:
    shares = {"mlp": {"ours": 0.95, "Lightning": 0.13}, "cnn": {"ours": 0.99, "Lightning": 0.4}}
    written = texts_of(draw_speed(shares, {"mlp": 125_061, "cnn": 17_191}, ours="ours", reference="bare loop"))
    assert {"mlp", "cnn", "125,061", "17,191", "bare loop", "ours", "Lightning"} <= set(written)
    points = {"batch size": [(16, {"rate": 2e4, "memory": 900.0}), (4096, {"rate": 3e5, "memory": 1100.0})]}
    assert {"batch size", "300k", "1100", "two threads"} <= set(texts_of(draw_growth(points, note="two threads")))


# ---------------------------------------------------------------------------------------------------------- survival


def test_survival_is_one_line_of_many_processes_upon_another(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[np.ndarray, str, float]] = []
    crosses: list[float] = []
    line, dots = Page.line, Page.dots

    def note(page: Page, x: Any, y: Any, **look: Any) -> None:
        drawn.append((np.asarray(y, float), look["colour"], look["thickness"]))
        line(page, x, y, **look)

    def note_dots(page: Page, x: Any, y: Any, **look: Any) -> None:
        crosses.extend([float(x)] * (look["shape"] == "x"))
        dots(page, x, y, **look)

    monkeypatch.setattr(Page, "line", note)
    monkeypatch.setattr(Page, "dots", note_dots)
    steps = np.arange(100)
    page = draw_survival(steps, 1 / (1 + steps), 1 / (1 + steps), kills=[19.5, 60])
    assert {"Killed 2 times and resumed: not one bit is different", "difference: 0 at every step"} <= set(
        texts_of(page)
    )
    wide = next(heights for heights, _, thickness in drawn if thickness == 11 and len(heights) == 100)
    parts = [(heights, colour) for heights, colour, thickness in drawn if thickness == 2.4 and len(heights) > 10]
    curve, gap = parts[::2], parts[1::2]
    assert len({colour for _, colour in curve}) == 3 and [len(heights) for heights, _ in curve] == [20, 42, 40]
    np.testing.assert_array_equal(np.concatenate([curve[0][0], curve[1][0][1:], curve[2][0][1:]]), wide)
    assert len({float(height) for heights, _ in gap for height in heights}) == 1
    assert len(crosses) == 3  # two, and one in the legend


def test_survival_does_not_hide_a_difference() -> None:
    steps = np.arange(1, 50)
    page = draw_survival(steps, 1 / steps, 1 / steps + 1e-7, kills=[10], dark=True)
    assert "Killed 1 times and resumed: the largest difference is 1e-07" in texts_of(page)
    assert to_image(page)[0, 0].sum() < 100  # a dark page
    with pytest.raises(DrawingError, match="same steps"):
        draw_survival(steps, 1 / steps, [1.0], kills=[])


def test_survival_grows_frame_by_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = np.arange(1, 50)
    frames = animate_survival(steps, 1 / steps, 1 / steps, kills=[10, 30], frames=8)
    inked = [int((np.ptp(frame.astype(int), axis=-1) > 60).sum()) for frame in frames]
    assert inked == sorted(inked) and inked[-1] > 2 * inked[0]
    assert len(frames) == 8 + 2 * 3
