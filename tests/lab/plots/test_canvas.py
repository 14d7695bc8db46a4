"""Pages drawn without matplotlib: scales, ticks, and marks that stand where their numbers say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.plots.canvas import CORNERS, Page, Panel, Scale, as_number, spread


@given(low=st.floats(-1e3, 1e3), size=st.floats(1e-2, 1e6))
def test_ticks_are_round_few_and_on_the_scale(low: float, size: float) -> None:
    scale = Scale(low, low + size, 0, 100)
    ticks = scale.ticks(5)
    assert 2 <= len(ticks) <= 6
    assert low - 1e-5 * size <= min(ticks) and max(ticks) <= low + 1.00001 * size
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-6)


@given(exponent=st.integers(-9, 6), decades=st.floats(0.3, 12))
def test_ticks_of_a_logarithm_are_on_the_scale(exponent: int, decades: float) -> None:
    low = 10.0**exponent
    ticks = Scale(low, low * 10**decades, 0, 100, log=True).ticks(5)
    assert 2 <= len(ticks) <= 12
    assert all(low * 0.999 <= tick <= low * 10**decades * 1.001 for tick in ticks)


def test_scales_go_where_they_should() -> None:
    np.testing.assert_allclose(Scale(0, 10, 50, 150)([0, 5, 10, np.nan]), [50, 100, 150, np.nan])
    np.testing.assert_allclose(Scale(0.01, 100, 0, 4, log=True)([0.01, 1, 100, 0, -1]), [0, 2, 4, np.nan, np.nan])
    assert float(Scale(3, 3, 0, 9)(3)) == 0  # one value alone
    assert Scale(0, 3, 0, 9).ticks(5, whole=True) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05, "0.05"), (-0.2, "\u22120.2"), (1500, "1500"), (20_000, "20k"), (3e6, "3M"), (1e10, "1e10"),
     (0.001, "0.001"), (9.9e-4, "9.9e\u22124"), (1e-5, "1e\u22125")],
)  # fmt: skip
def test_numbers_at_ticks_are_short(value: float, text: str) -> None:
    assert as_number(value) == text  # with a real minus sign


@given(st.lists(st.floats(0, 100), max_size=8))
def test_labels_are_spread_in_their_order(places: list[float]) -> None:
    moved = spread(places, 10, 0, 100)
    order = np.argsort(places, kind="stable")
    assert (np.diff(np.array(moved)[order]) > 10 - 1e-6).all()
    if len(places) > 1 and (np.diff(np.sort(places)) > 11).all():
        assert moved == pytest.approx(places)


def test_a_line_is_broken_where_it_is_not_finite() -> None:
    page = Page(100, 40, smooth=1)
    page.line([10, 40, np.nan, 60, 90], [20, 20, 20, 20, 20], colour="#FF0000")
    inked = (np.asarray(page.render())[40] == (255, 0, 0)).all(-1)
    assert inked[22:78].all() and not inked[84:118].any() and inked[122:178].all()


def test_dashes_leave_gaps() -> None:
    page = Page(200, 40, smooth=1)
    page.line([10, 190], [20, 20], colour="#FF0000", dash=(10, 5))
    inked = (np.asarray(page.render())[40] == (255, 0, 0)).all(-1)
    assert inked.sum() == pytest.approx(240, abs=30)


@pytest.mark.parametrize("shape", ["o", "O", "x", *CORNERS])
def test_every_mark_is_drawn_about_its_place(shape: str) -> None:
    page = Page(40, 40)
    page.dots([20, np.nan], [20, 5], fill="#000000", radius=5, shape=shape)
    places = np.argwhere(np.asarray(page.render()).min(-1) < 128)
    assert len(places) > 20 and np.abs(places.mean(0) - 40).max() < 2 and np.ptp(places, axis=0).max() <= 26


def test_what_is_drawn_within_a_box_stays_there() -> None:
    page = Page(40, 40, smooth=1)
    page.rectangle((0, 0, 5, 5), fill="#0000FF")
    with page.within((10, 10, 30, 30)):
        page.rectangle((0, 0, 40, 40), fill="#FF0000")
    page.rectangle((35, 35, 40, 40), fill="#00FF00")
    pixels = np.asarray(page.render())
    red = (pixels == (255, 0, 0)).all(-1)
    assert red[20:60, 20:60].all() and red.sum() == 1600
    assert (pixels[0, 0] == (0, 0, 255)).all() and (pixels[-1, -1] == (0, 255, 0)).all()


def test_a_panel_numbers_its_axes() -> None:
    page = Page(200, 200)
    panel = Panel(page, (40, 20, 180, 160), (1, 20), (0, 1))
    panel.axes()
    panel.below("epoch", whole=True)
    written = [mark.text for mark in page.words]
    assert written == ["0", "0.25", "0.5", "0.75", "1", "5", "10", "15", "20", "epoch"]
    places = {mark.text: mark for mark in page.words}
    assert places["1"].y == 20 and places["20"].x == 180
