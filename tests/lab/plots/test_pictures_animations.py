"""Animations: frames that lead from one snapshot to the next, in colours that stay apart, in small files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import LONG_NAMES
from PIL import Image

from lab.plots.animations import animate_embedding, animate_regions, animate_regression
from lab.plots.canvas import Page, Panel
from lab.plots.colours import BLACK, RED, WHITE, class_colours, to_hex, to_rgb
from lab.plots.figures import save_gif

# Machado, Oliveira and Fernandes 2009, severity 1: what eyes without one of the three cones see, in linear RGB.
BLINDNESS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "none": np.eye(3),
}


def lab(linear: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB [n, 3]."""
    xyz = linear @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    ratio = xyz / [0.9505, 1.0, 1.089]
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_ten_classes_stay_apart_for_the_colour_blind(blindness: str) -> None:
    colours = class_colours(10)
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = lab(np.clip(linear @ np.array(BLINDNESS[blindness]).T, 0, 1))
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 1000 * np.eye(10)
    assert apart.min() > 13  # 2.3 is what can just be told apart; the ten before had 6
    assert np.linalg.norm(seen - lab(np.ones((1, 3))), axis=1).min() > 20  # and from the paper


def test_many_classes_have_colours_of_their_own() -> None:
    assert len({tuple(colour) for colour in class_colours(100)}) == 100
    np.testing.assert_array_equal(class_colours(20)[10:], class_colours(10))  # these differ by marker


def keep_dots(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The marks that are drawn from now on."""
    drawn: list[dict[str, Any]] = []
    draw = Page.dots

    def note(page: Page, x: Any, y: Any, **look: Any) -> None:
        drawn.append({"x": np.atleast_1d(x), "y": np.atleast_1d(y), **look})
        draw(page, x, y, **look)

    monkeypatch.setattr(Page, "dots", note)
    return drawn


def test_regions_show_prediction_by_colour_and_mistakes_by_a_rim(monkeypatch: pytest.MonkeyPatch) -> None:
    points, targets = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([0, 1, 0, 1])
    maps = np.tile(np.linspace(0, 1, 8), (2, 8, 1))
    predictions = np.array([[True, True, True, True], [False, True, False, False]])  # as `probability > 0.5` gives them
    keywords: dict[str, Any] = {"extent": (-1, 2, -1, 2), "steps": [0, 50], "accuracies": [0.5, 0.75]}
    drawn = keep_dots(monkeypatch)
    frames = animate_regions(points, targets, maps, predictions=predictions, **keywords)
    assert {frame.shape for frame in frames} == {(720, 960, 3)} and (frames[0] != frames[-1]).any()
    last = drawn[-3:]
    assert [len(dots["x"]) for dots in last] == [2, 1, 1]
    colours = [to_hex(colour) for colour in class_colours(2)]
    assert [(dots["fill"], dots["edge"]) for dots in last] == [
        (colours[0], WHITE),
        (colours[1], WHITE),
        (colours[0], BLACK),
    ]
    assert last[0]["shape"] == "o" != last[1]["shape"] == last[2]["shape"]
    ground = frames[-1].astype(int)
    expected = np.round(255 * (1 - 0.38 * (1 - class_colours(2))))
    assert np.abs(ground[120, 84] - expected[0]).max() < 12 and np.abs(ground[120, 925] - expected[1]).max() < 12


def test_regions_of_many_classes_come_as_integers() -> None:
    rng = np.random.default_rng(0)
    keywords: dict[str, Any] = {"extent": (0, 1, 0, 1), "steps": [1], "accuracies": [0.2]}
    frames = animate_regions(
        rng.random((30, 2)),
        rng.integers(0, 5, 30),
        rng.integers(0, 5, (1, 9, 9)),
        predictions=rng.integers(0, 5, (1, 30)),
        **keywords,
    )
    assert len(frames) == 1 and len(np.unique(frames[0].reshape(-1, 3), axis=0)) > 5


@pytest.mark.parametrize("classes", [10, 100])
def test_embedding_frames_share_their_limits_and_make_a_small_gif(classes: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = np.arange(300) % classes
    places = rng.normal(size=(5, 300, 2)) * np.linspace(1, 9, 5)[:, None, None]
    frames = animate_embedding(places, targets, LONG_NAMES[:classes], range(5))
    assert len(frames) > 16  # and so between the snapshots, too
    inked = [np.argwhere((frame[60:] < 200).any(-1)) for frame in frames]
    assert np.ptp(inked[0], axis=0).max() < np.ptp(inked[-1], axis=0).max()  # the cloud grows, the limits stay
    assert inked[-1].min() > 2  # and none of it is cut off
    save_gif(frames, tmp_path / "map.gif")
    assert (tmp_path / "map.gif").stat().st_size <= 400_000
    with Image.open(tmp_path / "map.gif") as image:
        assert image.n_frames >= 12
        image.seek(image.n_frames - 1)
        shown = np.asarray(image.convert("RGB").resize((960, 720))).astype(int)
    assert np.abs(shown - frames[-1]).mean() < 3


def test_clusters_are_named_in_place_and_points_move_from_snapshot_to_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[Page] = []
    render = Page.render
    monkeypatch.setattr(Page, "render", lambda page: pages.append(page) or render(page))
    drawn = keep_dots(monkeypatch)
    targets = np.arange(40) % 2
    places = np.stack([np.zeros((40, 2)), np.where(targets[:, None] == 1, [3.0, 0.0], [0.0, 4.0])])
    animate_embedding(places, targets, ["cat", "dog"], [0, 7], accuracies=[0.5, 1.0])
    assert {"epoch 7", "accuracy 1.000", "cat", "dog"} == {mark.text for mark in pages[-1].words}
    cat, dog = (next(mark for mark in pages[-1].words if mark.text == name) for name in ("cat", "dog"))
    assert cat.y < dog.y and cat.x < dog.x
    way = [dots["x"][0] for dots in drawn[1::2]]  # of the dogs
    assert (np.diff(way) > 0).all() and len(way) == len(pages) > 5


def test_twenty_classes_have_a_second_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = keep_dots(monkeypatch)
    animate_embedding(np.random.default_rng(0).random((1, 20, 2)), np.arange(20), LONG_NAMES[:20], [3])
    assert len({(dots["fill"], dots["shape"]) for dots in drawn}) == 20


def test_regression_frames_follow_the_curve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    panels: list[Panel] = []
    axes = Panel.axes
    monkeypatch.setattr(Panel, "axes", lambda panel, **look: panels.append(panel) or axes(panel, **look))
    x = np.linspace(-1, 1, 50)
    curves = np.stack([x * 0 + 90.0, x * 0, x**2])  # the first lies far outside
    frames = animate_regression(x, x**2, curves, grid=x, steps=[0, 5, 10], losses=[9.0, float("nan"), 0.1])
    assert {frame.shape for frame in frames} == {(720, 960, 3)}
    red = [(np.abs(frame[80:] - np.round(255 * to_rgb(RED))).sum(-1) < 30) for frame in frames]
    assert red[0].sum() == 0 and red[-1].sum() > 1000  # the scale is that of the data
    assert {(panel.y.low, panel.y.high) for panel in panels} == {(panels[0].y.low, panels[0].y.high)}
    heights = np.argwhere(red[-1])[:, 0] + 80
    assert heights.min() / 2 == pytest.approx(float(panels[-1].y(1)), abs=3)
    assert heights.max() / 2 == pytest.approx(float(panels[-1].y(0)), abs=3)
    save_gif(frames, tmp_path / "fit.gif")
    assert (tmp_path / "fit.gif").stat().st_size < 400_000
