"""Pictures of training: its curves, and the filters it found. Every run draws them, so they do without matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lab.plots.canvas import Box, Page, Panel, as_number, spread, width_of
from lab.plots.colours import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, WHITE, mix, to_rgb
from lab.plots.figures import DrawingError, drawing, finite, possible_range, shorten, span_of

WIDTH = 480  # at which TensorBoard and a README in two columns show a picture
LOOKS: list[tuple[str, tuple[float, float] | None]] = [
    (BLUE, None), (RED, (9, 3)), (GREEN, (3, 2.5)), (ORANGE, (16, 3)), (PURPLE, None), (SKY, (6, 3)), (BLACK, (3, 2.5)),
]  # fmt: skip
SPLITS = {"train": (ORANGE, "s", (6.0, 2.5)), "val": (BLUE, "o", None)}
STRIPS = {"lr": "learning rate", "grad_norm": "gradient norm"}


# ------------------------------------------------------------------------------------------------------------- curves


class Measure(NamedTuple):
    """What a panel shows: its heading, {split: (epochs, values)}, whether by logarithm, what to call the best value."""

    heading: str
    series: dict[str, tuple[NDArray[Any], NDArray[Any]]]
    log: bool
    best: str


@drawing
def draw_learning_curves(
    records: Sequence[Mapping[str, Any]],
    *,
    best_epoch: int | None = None,
    title: str = "",
    resumed: Sequence[int] = (),
) -> Page:
    """The loss, and the first other metric, of training and validation by epoch; below, learning rate and gradient norm.

    A record is one epoch: "epoch" and numbers named "train/...", "val/...", "lr", "grad_norm". What a record lacks is
    skipped; what is not finite ("nan" as text, too) leaves a gap and a cross at the top. A loss that spans more than
    twenty times its least is shown by logarithm, and so is the error where an accuracy exceeds 95%. resumed: the epochs
    at which the run went on after an interruption.
    """
    names = [key for split in ("val/", "train/") for record in records for key in record if key.startswith(split)]
    metrics = ["loss", *[name.partition("/")[2] for name in names if not name.endswith("/loss")][:1]]
    strips = [key for key in STRIPS if any(record.get(key) is not None for record in records)]
    columns = len(metrics)
    stacks = [strips[column::columns] for column in range(columns)]
    top = 24.0 if title or resumed else 4.0
    height = top + 20 + 130 + 46 * len(stacks[0]) + 36
    page = Page(WIDTH, height)
    page.text(8, 16, shorten(title, 36 if resumed else 60), bold=True, size=12)
    epochs = [record["epoch"] for record in records] or [0]
    x = (min(epochs) - 0.5, max(epochs) + 0.5) if len(set(epochs)) < 3 else (min(epochs), max(epochs))
    for column, metric in enumerate(metrics):
        left, right = column * WIDTH / columns + 46, (column + 1) * WIDTH / columns - 36
        box = (left, top + 20, right, top + 150)
        panel = _draw_measure(page, box, x, _measure(records, metric), best_epoch, labelled=not stacks[column])
        _mark_resumed(page, panel, resumed)
        for place, key in enumerate(stacks[column]):
            strip = (left, box[3] + 24 + 46 * place, right, box[3] + 46 + 46 * place)
            is_last = place == len(stacks[column]) - 1
            panel = _draw_strip(page, strip, x, *_series(records, key), STRIPS[key], labelled=is_last)
            _mark_resumed(page, panel, resumed)
    if resumed:
        page.text(WIDTH - 8, 16, "▲ interrupted and resumed", size=9, colour=GREY, anchor="rs")
    return page


def _series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """The epochs that have a value, and their values with nan for what is not finite."""
    known = [record for record in records if record.get(key) is not None]
    return np.array([record["epoch"] for record in known]), finite([float(record[key]) for record in known])


def _measure(records: Sequence[Mapping[str, Any]], metric: str) -> Measure:
    """A metric as it is shown: an accuracy near 1 as the error, which still shows what changes there."""
    series = {split: _series(records, f"{split}/{metric}") for split in SPLITS}
    series = {split: pair for split, pair in series.items() if len(pair[0])}
    if metric == "accuracy" and "val" in series and np.nanmax(np.append(series["val"][1], 0)) > 0.95:
        errors = {split: (epochs, np.maximum(0.0, 1 - values)) for split, (epochs, values) in series.items()}
        return Measure("1 \u2212 accuracy", errors, True, "")
    every = np.concatenate([values for _, values in series.values()]) if series else np.zeros(0)
    return Measure(metric, series, span_of(every) > 20, metric)


def _draw_measure(
    page: Page, box: Box, x: tuple[float, float], measure: Measure, best_epoch: int | None, *, labelled: bool
) -> Panel:
    """One metric of both splits, the lines named at their ends, the best epoch in the heading."""
    left, top, right, bottom = box
    every = [value for _, values in measure.series.values() for value in values]
    panel = Panel(page, box, x, _limits(every, measure), log=measure.log)
    panel.axes()
    if labelled:
        panel.below("epoch", ticks=4, whole=True)
    page.text(left - 38, top - 7, measure.heading, bold=True, size=10)
    ends = {}
    for split, (epochs, values) in measure.series.items():
        colour, shape, dash = SPLITS[split]
        # On a logarithmic axis nothing lies at the bottom: no errors at all.
        heights = panel.y(np.maximum(values, panel.y.low) if measure.log else values)
        page.line(panel.x(epochs), heights, colour=colour, dash=dash)
        if len(epochs) <= 30:  # points that touch would say no more than the line
            page.dots(panel.x(epochs), heights, fill=colour, shape=shape, radius=2.4)
        lost = epochs[np.isnan(values)]
        page.dots(panel.x(lost), np.full(len(lost), top), fill=colour, shape="x", radius=3)
        if len(lost):
            page.text(right, top + 12, f"{split} not finite", size=9, colour=colour, anchor="rs")
        if np.isfinite(heights).any():
            ends[split] = float(heights[np.isfinite(heights)][-1])
        if split == "val" and best_epoch is not None and best_epoch in epochs:
            _mark_best(page, panel, best_epoch, epochs, values, heights)
    for split, place in zip(ends, spread(list(ends.values()), 11, top, bottom), strict=True):
        page.text(right + 6, place, split, size=10, colour=_ink(SPLITS[split][0]), anchor="lm")
    return panel


def _mark_best(
    page: Page, panel: Panel, best_epoch: int, epochs: NDArray[Any], values: NDArray[Any], heights: NDArray[Any]
) -> None:
    """A thin line and a ring at the best epoch, and its value above the panel, where it crosses nothing."""
    _, top, right, bottom = panel.box
    chosen = np.flatnonzero(epochs == best_epoch)[-1]
    place = float(panel.x(best_epoch))
    page.line([place, place], [top, bottom], colour=mix(GREY, WHITE, 0.6), thickness=0.8)
    page.dots(place, heights[chosen], fill=BLACK, shape="O", radius=5)
    text = f"best: epoch {best_epoch}, {values[chosen]:.4g}"
    page.text(right + 30, top - 7, text, size=9, colour=BLACK, anchor="rs")


def _draw_strip(
    page: Page,
    box: Box,
    x: tuple[float, float],
    epochs: NDArray[Any],
    values: NDArray[Any],
    name: str,
    *,
    labelled: bool,
) -> Panel:
    """A slim panel of one line, with the numbers of its ends."""
    known = values[np.isfinite(values)]
    high = float(known.max()) if len(known) else 1.0
    panel = Panel(page, box, x, (min(0.0, float(known.min()) if len(known) else 0.0), high or 1.0))
    panel.axes(ticks=0)
    if labelled:
        panel.below("epoch", ticks=4, whole=True)
    for value in (panel.y.low, panel.y.high):
        page.text(box[0] - 5, float(panel.y(value)), as_number(value, 2), size=9, colour=GREY, anchor="rm")
    page.line(panel.x(epochs), panel.y(values), colour=GREY, thickness=1.4)
    if len(epochs) == 1:
        page.dots(panel.x(epochs), panel.y(values), fill=GREY)
    page.text(box[0] - 38, box[1] - 6, name, size=9, bold=True, colour=GREY)
    return panel


def _mark_resumed(page: Page, panel: Panel, resumed: Sequence[int]) -> None:
    """A dotted line, and a triangle on the axis, at each epoch of a resumption."""
    for epoch in resumed:
        place, (_, top, _, bottom) = float(panel.x(epoch)), panel.box
        page.line([place, place], [top, bottom], colour=GREY, thickness=0.8, dash=(2, 3))
        page.dots(place, bottom, fill=GREY, shape="^", radius=3.5)


def _limits(values: Sequence[float], measure: Measure) -> tuple[float, float]:
    """The limits of an axis that holds all values, within what the metric can be."""
    known = [value for value in values if math.isfinite(value)]
    if measure.log:
        positive = [value for value in known if value > 0] or [0.1]
        has_none = any(value <= 0 for value in known)
        return min(positive) / (2 if has_none else 1.15), max(max(positive) * 1.15, min(positive) * 2)
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
    least, most = possible_range(measure.heading, low)
    return max(low - margin, least), min(high + margin, most)


def _ink(colour: str) -> str:
    """A colour dark enough for words on white."""
    return mix(colour, BLACK, 0.75) if sum(to_rgb(colour)) > 1.5 else colour


# ------------------------------------------------------------------------------------------------------------- losses


@drawing
def draw_losses(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    y_limits: tuple[float, float] | None = None,
    smoothing: int = 1,
) -> Page:
    """One line of loss against step for each optimiser: name -> (steps [k], losses [k]), named at its end.

    The axis is logarithmic where all losses are positive. With `smoothing` above 1 the bold line is the centred mean of
    so many points, with the losses themselves faint.
    """
    names = {name: shorten(name, 24) for name in series}
    curves = {name: (np.asarray(steps, dtype=float), finite(losses)) for name, (steps, losses) in series.items()}
    if any(len(steps) != len(values) for steps, values in curves.values()):
        raise DrawingError("each line needs as many losses as steps")
    looks = {name: LOOKS[index % len(LOOKS)] for index, name in enumerate(series)}
    bold = {name: _smooth(values, smoothing) for name, (_, values) in curves.items()}
    seen = np.concatenate([np.zeros(0), *bold.values()])
    is_log = bool(np.nanmin(np.append(seen, np.inf)) > 0)
    low, high = _limits(seen.tolist(), Measure("loss", {}, is_log, ""))
    if y_limits is not None and y_limits[1] > low:  # all of a short run may lie above
        low, high = (low if is_log else y_limits[0]), y_limits[1]
    steps = np.concatenate([np.zeros(1), *[steps for steps, _ in curves.values()]])
    page = Page(WIDTH, 300)
    box = (46.0, 24.0, WIDTH - 12 - max([30.0, *map(width_of, names.values())]), 262.0)
    panel = Panel(page, box, (float(steps.min()), float(steps.max())), (low, high), log=is_log)
    panel.axes(ticks=5)
    panel.below("step", whole=True)
    page.text(8, 14, "loss", bold=True, size=10)
    ends = {}
    with page.within(box):
        for layer in ("faint", "bold"):
            for name, (steps, values) in curves.items():
                colour, dash = looks[name]
                if layer == "faint" and smoothing > 1:
                    page.line(panel.x(steps), panel.y(values), colour=mix(colour, WHITE, 0.22), thickness=0.7)
                elif layer == "bold":
                    page.line(panel.x(steps), panel.y(bold[name]), colour=colour, dash=dash, thickness=2)
                    known = np.flatnonzero(np.isfinite(bold[name]))
                    last = float(panel.y(bold[name][known[-1]])) if len(known) else box[3]
                    ends[name] = min(max(last, box[1]), box[3])
    for name, place in zip(ends, spread(list(ends.values()), 13, box[1], box[3]), strict=True):
        page.text(box[2] + 6, place, names[name], size=11, colour=_ink(looks[name][0]), anchor="lm")
    return page


def _smooth(values: NDArray[Any], window: int) -> NDArray[Any]:
    """The centred mean over `window` values; gaps stay gaps and do not spread, and the ends take what there is."""
    if not len(values):
        return values
    known = np.isfinite(values)
    kernel = np.ones(max(1, min(window, len(values))))
    total = np.convolve(np.where(known, values, 0.0), kernel, "same")
    return np.where(known, total / np.maximum(np.convolve(known, kernel, "same"), 1), np.nan)


# ------------------------------------------------------------------------------------------------------------ filters


@drawing
def draw_first_filters(weights: ArrayLike) -> Page:
    """The filters [out, in, height, width] of a first convolution, all on one scale that is symmetrical about zero.

    Three input channels are shown as RGB with grey for zero, any other number by its mean. At most 256 filters.
    """
    filters = np.asarray(weights, dtype=float)
    count, channels, height, width = filters.shape
    values = (filters if channels == 3 else filters.mean(1, keepdims=True))[:256].transpose(0, 2, 3, 1)
    limit = float(np.abs(values).max()) or 1.0
    tiles = values / (2 * limit) + 0.5 if channels == 3 else shade(values[..., 0] / limit)
    columns = min(len(tiles), max(1, math.ceil(math.sqrt(1.8 * len(tiles)))))
    rows = math.ceil(len(tiles) / columns)
    side = min((WIDTH - 100) / columns, 64.0)
    tall = side * height / width
    page = Page(WIDTH, 34 + rows * tall + 8, smooth=1)
    mean = "" if channels in (1, 3) else f", mean of {channels} channels"
    most = "" if count <= 256 else "the first 256 of "
    page.text(12, 20, f"{most}{count} filters, {height} by {width}{mean}", bold=True)
    for index, tile in enumerate(tiles):
        left, top = 12 + index % columns * side, 34 + index // columns * tall
        inner = (left, top, left + side - 3, top + tall - 3)
        page.rectangle(inner, fill="#808080")
        page.image(tile, (inner[0] + 0.5, inner[1] + 0.5, inner[2] - 0.5, inner[3] - 0.5))
    low, high = 38.0, max(34 + rows * tall - 6, 74.0 if rows * tall >= 50 else 60.0)
    ramp = np.linspace(1, -1, 101)[:, None]
    page.image(np.repeat((ramp[..., None] + 1) / 2, 3, axis=2) if channels == 3 else shade(ramp), (420, low, 430, high))
    for place, value in ((low, limit), ((low + high) / 2, 0.0), (high, -limit)):
        page.text(434, place, f"{value:.2g}".replace("-", "\u2212"), size=9, anchor="lm")
    return page


def shade(values: NDArray[Any]) -> NDArray[Any]:
    """[...] in [-1, 1] -> [..., 3]: blue below zero, white at it, red above."""
    ends = np.array([to_rgb("#2166AC"), to_rgb(WHITE), to_rgb("#B2182B")])
    return np.stack([np.interp(values, (-1, 0, 1), column) for column in ends.T], axis=-1)
