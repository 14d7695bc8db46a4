"""Pictures of a classifier: what it takes for what, how sure it is, and whether it is as often right as it is sure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lab.plots.canvas import Page, Panel, width_of
from lab.plots.colours import BLACK, BLUE, BLUE_TINT, GREY, GREY_TINT, ORANGE, RED, WHITE, mix
from lab.plots.figures import DrawingError, drawing, shorten, thin
from lab.plots.sheets import to_pixels

WIDTH = 480


@drawing
def draw_confusion_matrix(counts: ArrayLike, classes: Sequence[str]) -> Page:
    """The confusion matrix, counts [classes, classes] with the true class in rows, coloured by its share of the row.

    The colour grows with the root of the share, so that rare mistakes are seen. Up to 20 classes cells show counts; at
    the right margin stands the recall of each class.
    """
    numbers = np.asarray(counts)
    size = len(numbers)
    shares = numbers / np.maximum(numbers.sum(1, keepdims=True), 1)
    shown = thin(size, 34)
    names = [shorten(classes[index], 16) for index in shown]
    font = 11.0 if size <= 20 else 9.0
    room = max(width_of(name, font) for name in names)
    left, right = room + 34, 58
    cell = min((WIDTH - left - right) / size, max(38.0, 150 / size))
    upright = room > cell * (size / len(shown)) - 4
    side, top = cell * size, 44.0
    page = Page(max(left + side + right, 260), top + side + (room + 12 if upright else 20) + 24, smooth=1)
    accuracy = np.trace(numbers) / max(1, numbers.sum())
    page.text(8, 18, f"accuracy {accuracy:.4f} on {numbers.sum():,} examples", bold=True, size=10)
    strength = np.sqrt(shares)[..., None]
    tints = 1 - strength * (1 - np.array([0.0, 0.28, 0.5]))
    page.image(tints, (left, top, left + side, top + side))
    page.rectangle((left, top, left + side, top + side), outline=GREY, thickness=0.5)
    if size <= 20:
        most = max(2, len(str(int(numbers.max()))))
        letters = min(11.0, 1.4 * cell / most)
        for (row, column), number in np.ndenumerate(numbers):
            ink = WHITE if shares[row, column] > 0.3 else BLACK if number else "#B0B0B0"
            place = (left + (column + 0.5) * cell, top + (row + 0.5) * cell)
            page.text(*place, f"{number:g}", size=round(letters, 1), anchor="mm", colour=ink)
    for index, name in zip(shown, names, strict=True):
        middle = (index + 0.5) * cell
        page.text(left - 6, top + middle, name, size=font, anchor="rm")
        page.text(left + middle, top + side + 6, name, size=font, anchor="rm" if upright else "mt", turned=upright)
        recall = shares[index, index]
        page.text(
            left + side + 8, top + middle, f"{recall:.3f}" if numbers[index].any() else "-", size=font, anchor="lm"
        )
    page.text(left + side + 8, top - 7, "recall", size=font, bold=True)
    page.text(14, top + side / 2, "true class", anchor="mm", turned=True, colour=GREY)
    page.text(left + side / 2, page.height - 8, "predicted class", anchor="ms", colour=GREY)
    return page


@drawing
def draw_class_probabilities(
    image: ArrayLike, before: ArrayLike, after: ArrayLike, target: int, classes: Sequence[str]
) -> Page:
    """One image [channels, height, width] and its class probabilities [classes] before and after training.

    Up to 20 classes all are shown; of more, the true one and the likeliest of either. The true class is bold and blue.
    """
    values = np.asarray([np.asarray(before), np.asarray(after)], dtype=float)
    shown: Any = np.arange(len(classes))
    if len(classes) > 20:
        shown = np.unique([target, *np.argsort(-values, axis=1, kind="stable")[:, :6].ravel()])
    names = [shorten(classes[label], 14) for label in shown]
    row = 17.0
    height = max(130.0, 36 + row * len(shown))
    page = Page(WIDTH, height + 8, smooth=1)
    pixels = to_pixels(image)
    tall, wide = 96 * np.array(pixels.shape[:2]) / max(pixels.shape[:2])
    page.image(pixels, (10, 30, 10 + wide, 30 + tall))
    page.text(10, 18, f"true class: {shorten(classes[target], 12)}", bold=True, size=10)
    left = 122 + max(width_of(name, 11, bold=True) for name in names)
    long = (WIDTH - left - 80) / 2
    for side, (title, probabilities) in enumerate(zip(("before training", "after training"), values, strict=True)):
        start = left + 8 + side * (long + 38)
        page.text(start, 18, title, bold=True, size=10)
        for place, label in enumerate(shown):
            top, is_target = 26 + row * place, bool(label == target)
            bar = (start, top + 1, start + max(1.0, long * float(probabilities[label])), top + row - 2)
            page.rectangle(bar, fill=BLUE if is_target else "#B8B8B8")
            page.text(bar[2] + 4, top + row / 2, f"{probabilities[label]:.2f}", size=9, anchor="lm")
            if side == 0:
                page.text(left, top + row / 2, names[place], bold=is_target, anchor="rm")
    return page


# -------------------------------------------------------------------------------------------------------- calibration


def calibration_error(probabilities: ArrayLike, targets: ArrayLike, *, bins: int = 15) -> float:
    """The expected calibration error of top-1 predictions, over bins of equal width (Guo et al. 2017, arXiv 1706.04599).

    Takes probabilities [n, classes] and targets [n].
    """
    sure, right, counts = _bin_confidences(probabilities, targets, bins)
    return float(np.nansum(np.abs(sure - right) * counts) / max(1, counts.sum()))


def _bin_confidences(
    probabilities: ArrayLike, targets: ArrayLike, bins: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """For each of `bins` intervals of confidence, (0, 1/bins], ...: mean confidence, accuracy (nan: empty), examples."""
    values, labels = np.asarray(probabilities, dtype=float), np.asarray(targets)
    confidence, is_right = values.max(axis=1), values.argmax(axis=1) == labels
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore"):
        sure = np.bincount(places, confidence, minlength=bins) / counts
        right = np.bincount(places, is_right, minlength=bins) / counts
    return sure, right, counts


@drawing
def draw_reliability(probabilities: ArrayLike, targets: ArrayLike, *, bins: int = 15) -> Page:
    """How often a classifier is right where it is so sure, with its calibration error and negative log-likelihood.

    Takes probabilities [n, classes] and targets [n]. A bar is the accuracy in a bin of confidence, orange the gap to
    what was promised; below, how many examples each bin has.
    """
    values, labels = np.asarray(probabilities, dtype=float), np.asarray(targets).astype(int)
    if not len(values) or not np.isfinite(values).all():
        raise DrawingError("a reliability diagram needs examples with finite probabilities")
    sure, right, counts = _bin_confidences(values, labels, bins)
    likelihood = -np.log(np.maximum(values[np.arange(len(labels)), labels], 1e-12)).mean()
    page = Page(360, 420, smooth=2)
    error, accuracy = calibration_error(values, labels, bins=bins), (values.argmax(1) == labels).mean()
    page.text(8, 18, f"ECE {error:.4f}    NLL {likelihood:.4f}    accuracy {accuracy:.4f}", bold=True)
    panel = Panel(page, (46, 40, 346, 300), (0, 1), (0, 1))
    panel.axes(ticks=5)
    page.text(8, 34, "accuracy", size=10, colour=GREY)
    edges = panel.x(np.linspace(0, 1, bins + 1))
    below = Panel(page, (46, 322, 346, 384), (0, 1), (0, max(1, counts.max())))
    for index in np.flatnonzero(counts):
        low, high = sorted((float(panel.y(right[index])), float(panel.y(sure[index]))))
        left, end = edges[index] + 0.7, edges[index + 1] - 0.7
        page.rectangle((left, float(panel.y(right[index])), end, 300), fill=BLUE_TINT)
        page.rectangle((left, low, end, max(high, low + 0.5)), fill=mix(ORANGE, WHITE, 0.75))
        page.rectangle((left, float(panel.y(right[index])) - 1, end, float(panel.y(right[index])) + 1), fill=BLUE)
        page.rectangle((left, float(below.y(counts[index])), end, 384), fill=GREY_TINT)
    page.line([46, 346], [300, 40], colour=GREY, thickness=1, dash=(4, 3))
    page.text(56, 58, "orange: gap to the confidence", size=9, colour=GREY)
    page.text(8, 316, "examples", size=10, colour=GREY)
    page.text(41, 327, f"{counts.max():,}", size=9, anchor="rm")
    below.axes(ticks=0)
    below.below("confidence")
    return page


@drawing
def draw_precision_recall(scores: ArrayLike, targets: ArrayLike, name: str = "class 1") -> Page:
    """Precision against recall of one class of two over all thresholds, with the average precision.

    Takes scores [n], higher for the class, and targets [n] of 0 and 1. The ring is the threshold of 0.5.
    """
    values, labels = np.asarray(scores, dtype=float), np.asarray(targets).astype(int)
    if not 0 < labels.sum() < len(labels):
        raise DrawingError("precision and recall need examples of both classes")
    precision, recall, thresholds = precision_recall(values, labels)
    area = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    page = Page(360, 330, smooth=3)
    page.text(8, 18, f"{shorten(name, 24)}: average precision {area:.4f}", bold=True)
    panel = Panel(page, (46, 44, 346, 290), (0, 1), (0, 1))
    panel.axes(ticks=5)
    page.text(8, 37, "precision", size=10, colour=GREY)
    panel.below("recall")
    share = float(labels.mean())
    base = float(panel.y(share))
    page.line([46, 346], [base, base], colour=GREY, thickness=1, dash=(4, 3))
    page.text(52, base - 5 if share < 0.9 else base + 13, f"chance {share:.2f}", size=9, colour=GREY)
    steps = np.repeat(recall, 2)[:-1], np.repeat(precision, 2)[1:]
    page.line(panel.x(np.append(0.0, steps[0])), panel.y(np.append(precision[0], steps[1])), colour=BLUE, thickness=2)
    chosen = np.flatnonzero(thresholds >= 0.5)
    if len(chosen):
        page.dots(panel.x(recall[chosen[-1]]), panel.y(precision[chosen[-1]]), fill=RED, shape="O", radius=5)
    return page


def precision_recall(scores: NDArray[Any], targets: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Precision and recall at each threshold that occurs, from the highest down, and the thresholds."""
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(targets[order])
    last = np.flatnonzero(np.append(np.diff(ordered) != 0, True))  # equal scores are accepted together
    return hits[last] / (last + 1), hits[last] / hits[-1], ordered[last]
