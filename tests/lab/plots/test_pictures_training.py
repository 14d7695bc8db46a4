"""Learning curves, losses and filters show what the numbers say, and nothing runs into anything else."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from drawn import make_records, overlap, texts_of

from lab.plots.canvas import Page, Panel
from lab.plots.colours import SKY, mix, to_rgb
from lab.plots.figures import to_image
from lab.plots.training import LOOKS, draw_first_filters, draw_learning_curves, draw_losses


def keep_panels(monkeypatch: pytest.MonkeyPatch) -> list[Panel]:
    """The panels of the pictures that are drawn from now on."""
    panels: list[Panel] = []
    start = Panel.__init__

    def note(panel: Panel, *args: Any, **kwargs: Any) -> None:
        start(panel, *args, **kwargs)
        panels.append(panel)

    monkeypatch.setattr(Panel, "__init__", note)
    return panels


def ink_at(page: Page, x: float, y: float, colour: str) -> bool:
    """Whether this colour is within two units of a place."""
    pixels = to_image(page).astype(int)
    left, top = round(2 * x), round(2 * y)
    near = pixels[max(0, top - 4) : top + 5, max(0, left - 4) : left + 5]
    return bool((np.abs(near - np.round(255 * to_rgb(colour))).sum(-1) < 40).any())


@pytest.mark.parametrize("epochs", [1, 2, 20, 200])
def test_learning_curves_show_points_and_the_best_epoch(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    panels = keep_panels(monkeypatch)
    page = draw_learning_curves(make_records(epochs), best_epoch=1)
    written = texts_of(page)
    assert {"loss", "accuracy", "best: epoch 1, 2", "best: epoch 1, 0.7", "epoch", "train", "val"} <= set(written)
    for panel, first in zip(panels, (2.0, 0.7), strict=True):
        assert ink_at(
            page, float(panel.x(epochs)), float(panel.y(first if epochs == 1 else 2 / epochs)), "#0072B2"
        ) or (first == 0.7)
        assert ink_at(page, float(panel.x(1)) + 5, float(panel.y(first)), "#222222")  # the ring
    words = [mark for mark in page.words if mark.text]
    assert not [pair for pair in itertools.combinations(words, 2) if overlap(*pair)]


def test_a_loss_that_spans_much_and_a_small_error_are_shown_by_logarithm(monkeypatch: pytest.MonkeyPatch) -> None:
    panels = keep_panels(monkeypatch)
    records = make_records(10)
    draw_learning_curves(records)
    assert [panel.y.log for panel in panels] == [False, False]
    records[-1] |= {"train/loss": 0.04, "val/accuracy": 0.98}
    page = draw_learning_curves(records, best_epoch=10)
    loss, error = panels[2:]
    assert loss.y.log and error.y.log
    assert {"1 \u2212 accuracy", "best: epoch 10, 0.02"} <= set(texts_of(page))
    assert ink_at(page, float(error.x(10)), float(error.y(0.02)), "#0072B2")
    records[-1] |= {"val/accuracy": 1.0}  # no error at all lies at the bottom
    page = draw_learning_curves(records)
    assert ink_at(page, float(panels[-1].x(10)), panels[-1].box[3], "#0072B2")


def test_axes_stay_within_what_a_metric_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    panels = keep_panels(monkeypatch)
    draw_learning_curves([{"epoch": e, "val/loss": 0.001 * e, "val/accuracy": 0.95 - 0.4 / e} for e in (1, 2, 3)])
    assert panels[0].y.low >= 0 and panels[1].y.high <= 1
    draw_learning_curves([{"epoch": e, "val/loss": -1.0 * e} for e in (1, 2)])
    assert panels[-1].y.low < -2


def test_learning_curves_take_any_first_metric_and_missing_values(monkeypatch: pytest.MonkeyPatch) -> None:
    panels = keep_panels(monkeypatch)
    records = [{"epoch": 0, "val/loss": 1.0}, {"epoch": 1, "val/loss": 0.5, "val/rmse": 0.7, "val/r2": 0.9}]
    written = texts_of(draw_learning_curves(records))
    assert "rmse" in written and "r2" not in written and "train" not in written
    assert len(panels) == 2
    to_image(draw_learning_curves([{"epoch": 0, "val/loss": 1.0}]))
    to_image(draw_learning_curves([]))


def test_a_loss_that_is_not_finite_is_told_and_spoils_no_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    panels = keep_panels(monkeypatch)
    records = make_records(5)
    records[2] |= {"train/loss": float("inf")}
    records[3] |= {"train/loss": "nan"}
    page = draw_learning_curves(records)
    assert "train not finite" in texts_of(page)
    assert 2 < panels[0].y.high < 3
    for epoch in (3, 4):
        assert ink_at(page, float(panels[0].x(epoch)), panels[0].box[1], "#E69F00")
    assert not ink_at(page, float(panels[0].x(2)), panels[0].box[1], "#E69F00")


def test_rate_and_gradient_norm_have_strips_and_a_resumption_a_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record | {"lr": 0.5 / record["epoch"], "grad_norm": 3.0} for record in make_records(8)]
    plain = draw_learning_curves(records)
    assert {"learning rate", "gradient norm", "0.5", "3"} <= set(texts_of(plain))
    panels = keep_panels(monkeypatch)
    page = draw_learning_curves(records, title="digits/mlp", resumed=[3, 6])
    assert {"digits/mlp", "▲ interrupted and resumed"} <= set(texts_of(page))
    for panel in panels:
        assert [ink_at(page, float(panel.x(epoch)), panel.box[3] - 1, "#8C8C8C") for epoch in (3, 6)] == [True, True]
    assert "▲ interrupted and resumed" not in texts_of(plain)
    assert len(texts_of(draw_learning_curves([{"epoch": 1, "val/loss": 1.0, "lr": 0.1, "grad_norm": 2.0}]))) > 5


# ------------------------------------------------------------------------------------------------------------- losses


def lines_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, str, Any]]:
    """The lines that are drawn from now on: heights, colour and dashes."""
    lines: list[tuple[np.ndarray, str, Any]] = []
    draw = Page.line

    def note(page: Page, x: Any, y: Any, *, colour: str, thickness: float = 1.8, dash: Any = None) -> None:
        lines.append((np.asarray(y, float), colour, dash))
        draw(page, x, y, colour=colour, thickness=thickness, dash=dash)

    monkeypatch.setattr(Page, "line", note)
    return lines


def test_smoothing_is_a_mean_that_keeps_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    panels, lines = keep_panels(monkeypatch), lines_of(monkeypatch)
    losses = np.array([4.0, 2.0, 6.0, np.nan, 1.0, 3.0])
    draw_losses({"SGD": (range(6), losses)}, smoothing=3, y_limits=(0, 5))
    curves = [heights for heights, _, _ in lines if len(heights) == 6]
    np.testing.assert_allclose(curves[0], panels[0].y(losses))
    np.testing.assert_allclose(curves[1], panels[0].y([3, 4, 4, np.nan, 2, 2]))
    assert panels[0].y.high == 5 and panels[0].y.log
    lines.clear()
    draw_losses({"SGD": (range(6), losses - 3)}, y_limits=(-2, 5))
    assert not panels[1].y.log and panels[1].y.low == -2
    assert len([heights for heights, _, _ in lines if len(heights) == 6]) == 1


def test_losses_above_all_limits_are_shown_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    panels = keep_panels(monkeypatch)
    page = draw_losses({"SGD": ([1, 2], [30.0, 20.0]), "none": ([], []), "lost": ([1], [math.nan])}, y_limits=(0, 2))
    assert panels[0].y.low < 20 < 30 < panels[0].y.high
    assert "SGD" in texts_of(page)
    to_image(draw_losses({}))


def test_optimisers_differ_in_more_than_colour_and_are_named_at_their_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_of(monkeypatch)
    names = ["SGD", "Momentum", "RMSprop", "Adam"]
    page = draw_losses({name: ([0, 1, 2], [1, 0.5, 0.1]) for name in names})  # that all end in one place
    drawn = [(colour, dash) for heights, colour, dash in lines if len(heights) == 3]
    assert len({colour for colour, _ in drawn}) == len({dash for _, dash in drawn}) == 4
    labels = [mark for mark in page.words if mark.text in names]
    assert len({mark.colour for mark in labels}) == 4
    assert not [pair for pair in itertools.combinations(labels, 2) if overlap(*pair)]
    assert len({*LOOKS}) == len(LOOKS) == 7


# ------------------------------------------------------------------------------------------------------------ filters


@pytest.mark.parametrize("shape", [(8, 1, 5, 5), (64, 3, 7, 7), (5, 4, 3, 3), (300, 3, 3, 3), (1, 1, 1, 1)])
def test_filters_share_a_symmetrical_scale(shape: tuple[int, ...]) -> None:
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    shown = weights if shape[1] == 3 else weights.mean(1)
    limit = f"{float(shown[:256].abs().max()):.2g}"
    written = texts_of(draw_first_filters(weights))
    assert {limit, f"\u2212{limit}"} <= set(written)
    assert ("first 256 of 300" in written[0]) == (shape[0] == 300)
    assert ("mean of 4 channels" in written[0]) == (shape[1] == 4)
    to_image(draw_first_filters(torch.zeros(shape)))


def test_filter_colours_are_the_weights() -> None:
    weights = np.zeros((2, 3, 1, 1))
    weights[0, :, 0, 0] = (0.5, -0.5, 0.0)  # the first is red at its most and green at its least
    pixels = to_image(draw_first_filters(weights)).astype(int)
    assert np.abs(pixels[2 * 60, 2 * 40] - (255, 0, 128)).max() <= 1
    assert np.abs(pixels[2 * 60, 2 * 100] - 128).max() <= 1


def test_colours_mix() -> None:
    assert mix("#FF0000", "#FFFFFF", 1) == "#FF0000" and mix("#000000", "#FFFFFF", 0.2) == "#CCCCCC"
    np.testing.assert_allclose(to_rgb(SKY), [86 / 255, 180 / 255, 233 / 255])
