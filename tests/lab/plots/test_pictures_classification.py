"""Pictures of a classifier: every class and probability where it belongs, figures against independent computations."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from drawn import DIGITS, LONG_NAMES, box_of, make_examples, overlap, texts_of

from lab.plots.canvas import Page
from lab.plots.classification import (
    calibration_error,
    draw_class_probabilities,
    draw_confusion_matrix,
    draw_precision_recall,
    draw_reliability,
    precision_recall,
)
from lab.plots.colours import BLUE, BLUE_TINT, RED, RED_TINT
from lab.plots.figures import DrawingError, to_image
from lab.plots.sheets import draw_mistakes, draw_predictions, to_pixels


def keep_rectangles(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """The rectangles that are drawn from now on, as (box, look)."""
    drawn: list[tuple[Any, dict[str, Any]]] = []
    draw = Page.rectangle

    def note(page: Page, box: Any, **look: Any) -> None:
        drawn.append((box, look))
        draw(page, box, **look)

    monkeypatch.setattr(Page, "rectangle", note)
    return drawn


@pytest.mark.parametrize("size", [2, 10, 20, 21, 100])
def test_confusion_matrix_at_every_size(size: int) -> None:
    counts = np.random.default_rng(0).integers(1, 900, (size, size))
    counts[0] = 0  # a class without examples
    page = draw_confusion_matrix(counts, LONG_NAMES[:size])
    written = texts_of(page)
    cells = [mark.text for mark in page.words if mark.anchor == "mm" and mark.text.isdigit()]
    assert cells == ([str(count) for count in counts.ravel()] if size <= 20 else [])
    assert {"true class", "predicted class", "recall", "-"} <= set(written)
    assert f"accuracy {np.trace(counts) / counts.sum():.4f} on {counts.sum():,} examples" in written
    recalls = [float(text) for text in written if re.fullmatch(r"[01]\.\d{3}", text)]
    shown = range(1, size) if size <= 34 else range(3, size, 3)
    np.testing.assert_allclose(recalls, [counts[i, i] / counts[i].sum() for i in shown], atol=5.1e-4)
    rows = [mark for mark in page.words if mark.anchor == "rm" and not mark.turned]
    assert len(rows) == (size if size <= 34 else 34)
    assert not any(overlap(a, b) for a, b in itertools.pairwise(rows))
    assert min(box_of(mark)[0] for mark in rows) > 16  # beside the label, which is turned
    below = [mark for mark in page.words if mark.text == rows[0].text and mark is not rows[0]]
    assert len(below) == 1 and below[0].turned


def test_confusion_colours_grow_with_the_share_of_the_row() -> None:
    page = draw_confusion_matrix([[99, 1], [0, 100]], ["a", "b"])
    pixels = to_image(page)[: round(2 * page.height)].astype(int)
    left = next(mark for mark in page.words if mark.text == "99")
    right = next(mark for mark in page.words if mark.text == "1")
    (strong, weak) = (pixels[round(2 * mark.y) + 40, round(2 * mark.x) + 40] for mark in (left, right))
    assert strong.sum() < 300 < 600 < weak.sum() < 765  # one of a hundred is seen


def test_right_and_wrong_are_told_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = keep_rectangles(monkeypatch)
    images, probabilities, targets = make_examples(2, 10)
    page = draw_predictions(images, probabilities, targets, DIGITS)
    assert [text for text in texts_of(page) if text[0] in "✓✗"] == ["✓ 0", "✗ 1 → 2"]
    frames = [look for _, look in drawn if look.get("outline")]
    assert [frame["thickness"] for frame in frames] == [1, 2.5]
    assert [frame["outline"] for frame in frames] == [BLUE, RED]


def test_the_true_class_is_always_among_the_bars_and_bold(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = keep_rectangles(monkeypatch)
    images, probabilities, _ = make_examples(1, 10)
    last = int(probabilities[0].argmin())
    page = draw_predictions(images, probabilities, [last], DIGITS)
    names = [mark for mark in page.words if mark.text in DIGITS]
    assert len(names) == 5 and [mark.text for mark in names if mark.bold] == [str(last)]
    bars = [(box[2] - box[0], look["fill"]) for box, look in drawn if look.get("fill")]
    shown = [probabilities[0, int(mark.text)] for mark in names]
    np.testing.assert_allclose([width for width, _ in bars], 76 * np.array(shown))
    assert bars[0][1] == RED_TINT and bars[-1][1] == BLUE_TINT


@pytest.mark.parametrize(("count", "classes", "channels"), [(1, 2, 1), (16, 10, 3), (7, 100, 3), (30, 3, 2)])
def test_sheets_at_every_size(count: int, classes: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[Any] = []
    monkeypatch.setattr(Page, "image", lambda page, pixels, box, **_: boxes.append(box))
    images, probabilities, targets = (torch.from_numpy(array) for array in make_examples(count, classes, channels))
    for draw, most in ((draw_predictions, 16), (draw_mistakes, 25)):
        boxes.clear()
        page = draw(images, probabilities, targets, LONG_NAMES[:classes])
        assert len(boxes) == min(count, most)
        for left, top, right, bottom in boxes:
            assert (right - left) / (bottom - top) == pytest.approx(6 / 8)  # not stretched
        assert not [pair for pair in itertools.combinations(page.words, 2) if overlap(*pair)]


def test_images_are_shown_as_they_are() -> None:
    colour, grey = np.random.default_rng(0).random((3, 4, 4)), np.full((1, 4, 4), 0.3)
    np.testing.assert_allclose(to_pixels(colour), colour.transpose(1, 2, 0))
    np.testing.assert_allclose(to_pixels(grey), np.full((4, 4, 3), 0.3))
    pixels = to_image(draw_mistakes(colour[None], [[0.1, 0.9]], [0], ["a", "b"]))
    np.testing.assert_allclose(pixels[2 * 60, 2 * 20] / 255, colour[:, 2, 0], atol=0.01)


def test_mistakes_are_named_in_the_order_given() -> None:
    images = np.zeros((2, 1, 4, 4))
    page = draw_mistakes(images, [[0.03, 0.97, 0], [0.6, 0.3, 0.1]], [0, 2], ["cat", "dog", "hippopotamus"])
    assert texts_of(page) == ["cat → dog, 0.97", "cat, 0.60", "hippopotamus →"]  # the lower line first
    assert texts_of(draw_mistakes(images[:0], np.zeros((0, 3)), [], ["a", "b", "c"])) == ["no mistakes"]


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_class_probabilities_before_and_after(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = keep_rectangles(monkeypatch)
    before, after = np.random.default_rng(0).dirichlet(np.ones(classes), 2)
    target = int(after.argmin())
    page = draw_class_probabilities(np.zeros((1, 4, 4)), before, after, target, LONG_NAMES[:classes])
    names = [mark for mark in page.words if re.search(r"_?\d+$", mark.text) and mark.anchor == "rm"]
    numbers = [int(re.findall(r"\d+$", mark.text)[0]) for mark in names]
    assert [mark.bold for mark in names] == [number == target for number in numbers]
    assert len(numbers) == classes if classes <= 20 else len(numbers) <= 13
    assert {before.argmax(), after.argmax(), target} <= set(numbers)
    written = [text for text in texts_of(page) if re.fullmatch(r"[01]\.\d\d", text)]
    assert written == [f"{values[number]:.2f}" for values in (before, after) for number in numbers]
    assert sum(look["fill"] == BLUE for _, look in drawn) == 2


# -------------------------------------------------------------------------------------------------------- calibration


def test_calibration_error_against_its_definition() -> None:
    rng = np.random.default_rng(0)
    for classes, bins in ((2, 15), (10, 15), (10, 7)):
        probabilities, targets = rng.dirichlet(np.ones(classes) * 0.3, 500), rng.integers(0, classes, 500)
        expected = 0.0
        for index in range(bins):  # bin by bin, as the paper writes it
            inside = [row for row in range(500) if index / bins < max(probabilities[row]) <= (index + 1) / bins]
            if inside:
                right = np.mean([probabilities[row].argmax() == targets[row] for row in inside])
                expected += len(inside) / 500 * abs(right - np.mean([max(probabilities[row]) for row in inside]))
        assert calibration_error(probabilities, targets, bins=bins) == pytest.approx(expected)


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    assert calibration_error(probabilities, [0, 1, 1, 1]) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    assert calibration_error(np.eye(3), [0, 1, 2]) == 0
    assert calibration_error(np.eye(3), [1, 2, 0]) == 1


def test_reliability_says_its_figures() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    written = texts_of(draw_reliability(probabilities, [0, 1, 1, 1]))
    likelihood = -np.mean(np.log([0.9, 0.1, 0.6, 0.6]))
    assert f"ECE 0.4000    NLL {likelihood:.4f}    accuracy 0.7500" in written
    for bad in (np.zeros((0, 2)), np.full((4, 2), np.nan)):
        with pytest.raises(DrawingError, match="needs examples"):
            draw_reliability(bad, [0] * len(bad))


def test_precision_and_recall_against_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    scores = np.round(rng.random(300), 2)  # many are equal
    targets = (rng.random(300) < scores).astype(int)
    precision, recall, thresholds = precision_recall(scores, targets)
    expected = metrics.precision_recall_curve(targets, scores)
    np.testing.assert_allclose(thresholds, expected[2][::-1])
    np.testing.assert_allclose(precision, expected[0][-2::-1])
    np.testing.assert_allclose(recall, expected[1][-2::-1])
    area = metrics.average_precision_score(targets, scores)
    assert f"yes: average precision {area:.4f}" in texts_of(draw_precision_recall(scores, targets, "yes"))
    with pytest.raises(DrawingError, match="both classes"):
        draw_precision_recall(scores, np.ones(300))
