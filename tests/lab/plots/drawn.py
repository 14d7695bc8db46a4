"""One of every picture, and what the tests of pictures look at."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from lab.plots.canvas import Page, Words, font_of
from lab.plots.classification import (
    draw_class_probabilities,
    draw_confusion_matrix,
    draw_precision_recall,
    draw_reliability,
)
from lab.plots.comparisons import EffectLine, ForestRow, MeanCurve, draw_effects, draw_forest, draw_mean_curves
from lab.plots.figures import to_image
from lab.plots.regression import draw_residuals, draw_restored_curves
from lab.plots.searches import Slice, draw_history, draw_importances, draw_slices
from lab.plots.sheets import draw_mistakes, draw_predictions
from lab.plots.speed import draw_growth, draw_speed
from lab.plots.survival import draw_survival
from lab.plots.training import draw_first_filters, draw_learning_curves, draw_losses

LONG_NAMES = [f"a_rather_$long$ name_of_class number_{index}" for index in range(100)]
DIGITS = [str(digit) for digit in range(10)]
PAGES = (
    "curves",
    "losses",
    "filters",
    "confusion",
    "predictions",
    "mistakes",
    "probabilities",
    "reliability",
    "precision",
    "residuals",
    "restored",
    "survival",
    "night",
    "speed",
    "growth",
)
FIGURES = ("forest", "effects", "means", "slices", "history", "importances")


def make_examples(count: int, classes: int, channels: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, probabilities and targets, of which every second one is predicted wrong."""
    rng = np.random.default_rng(0)
    targets = np.arange(count) % classes
    scores = rng.random((count, classes))
    scores[np.arange(count), (targets + np.arange(count) % 2) % classes] += classes
    return rng.random((count, channels, 8, 6)), scores / scores.sum(1, keepdims=True), targets


def make_records(epochs: int) -> list[dict[str, Any]]:
    return [
        {"epoch": epoch, "train/loss": 1 / epoch, "val/loss": 2 / epoch, "train/accuracy": 0.8, "val/accuracy": 0.7}
        for epoch in range(1, epochs + 1)
    ]


def make_rows(count: int, *, half: float | None = 0.01) -> list[ForestRow]:
    """Rows of a table, the first three of which cannot be told apart."""
    standings = ["best", "one of the best", "one of the best", *["other"] * count]
    return [
        ForestRow(f"model=m{index} optimizer.lr=0.001", 0.9 - 0.01 * index, half, [0.9 - 0.01 * index] * 3, standing)
        for index, standing in enumerate(standings[:count])
    ]


def draw_one(name: str, classes: list[str] = DIGITS, epochs: int = 20) -> Page | Figure:
    """A picture by its name, of a classifier with these classes, after so many epochs."""
    images, probabilities, targets = make_examples(16, len(classes))
    x = np.linspace(-1, 1, 40)
    steps = np.arange(1, 200)
    records = [record | {"lr": 0.00099, "grad_norm": 12345.6} for record in make_records(epochs)]
    curve = MeanCurve(range(epochs), x[:epochs], [0.1] * epochs, [(range(epochs), x[:epochs])])
    sizes = [(size, {"rate": 1e6 / size, "memory": 100.0 + size}) for size in (10, 1000, 40_000)]
    trials = [*np.linspace(0.1, 0.9, 12)]
    pictures = {
        "curves": lambda: draw_learning_curves(records, best_epoch=epochs, title=classes[0], resumed=[1, epochs]),
        "losses": lambda: draw_losses(dict.fromkeys(classes[:7], (steps, 0.0001 + 1 / steps)), smoothing=5),
        "filters": lambda: draw_first_filters(np.random.default_rng(0).normal(size=(epochs, 1, 3, 3))),
        "confusion": lambda: draw_confusion_matrix(np.eye(len(classes), dtype=int) * 7 + 1, classes),
        "predictions": lambda: draw_predictions(images, probabilities, targets, classes),
        "mistakes": lambda: draw_mistakes(images, probabilities, targets, classes),
        "probabilities": lambda: draw_class_probabilities(images[0], probabilities[1], probabilities[0], 0, classes),
        "reliability": lambda: draw_reliability(probabilities, targets),
        "precision": lambda: draw_precision_recall(probabilities[:, 0], targets == 0, classes[0]),
        "residuals": lambda: draw_residuals(x**2, x, names=classes),
        "restored": lambda: draw_restored_curves(x, x, grid=x, curves={w: {"trained": x, "new": x} for w in (1, 2)}),
        "survival": lambda: draw_survival(steps, 1 / steps, 1 / steps, kills=[20, 90]),
        "night": lambda: draw_survival(steps, 1 / steps, 1.1 / steps, kills=[20, 90], dark=True),
        "speed": lambda: draw_speed(
            {name: {"ours": 0.9, "theirs": 0.2} for name in classes[:9]},
            dict.fromkeys(classes[:9], 1.5e6),
            ours="ours",
            reference="bare loop",
        ),
        "growth": lambda: draw_growth({"batch size": sizes, "parameters": sizes}, note="a note"),
        "forest": lambda: draw_forest({"digits": make_rows(40), classes[0]: make_rows(2)}, "val/accuracy", higher=True),
        "effects": lambda: draw_effects({name: [EffectLine("", {"1": 0.5, "2": 0.6})] for name in classes[:5]}, "loss"),
        "means": lambda: draw_mean_curves({"a": dict.fromkeys(classes[:7], curve), "b": {"x": curve}}, "val/loss"),
        "slices": lambda: draw_slices(
            {n: Slice(trials, trials, 0.1, 1, True) for n in classes[:4]}, "loss", higher=False
        ),
        "history": lambda: draw_history([*trials, None], "val/accuracy", higher=True),
        "importances": lambda: draw_importances(dict.fromkeys(classes[:4], 0.5), "val/accuracy"),
    }
    return pictures[name]()  # type: ignore[no-any-return]


def texts_of(picture: Page | Figure) -> list[str]:
    """All that is written in a picture, ticks included."""
    if isinstance(picture, Page):
        return [mark.text for mark in picture.words if mark.text]
    to_image(picture)
    return [text.get_text() for text in picture.findobj(Text) if text.get_visible() and text.get_text()]


def box_of(mark: Words) -> tuple[float, float, float, float]:
    """Where a line of text stands: left, top, right, bottom, in the page's units."""
    left, top, right, bottom = font_of(mark.size, mark.bold).getbbox(mark.text, anchor=mark.anchor)
    return mark.x + left / 2, mark.y + top / 2, mark.x + right / 2, mark.y + bottom / 2


def overlap(first: Words, second: Words) -> bool:
    """Whether two lines of text run into each other."""
    a, b = box_of(first), box_of(second)
    return min(a[2], b[2]) - max(a[0], b[0]) > 0.5 and min(a[3], b[3]) - max(a[1], b[1]) > 0.5
