"""Pictures of a regression: what it predicts against what is true, and curves that several networks share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from lab.plots.canvas import Page, Panel, width_of
from lab.plots.colours import BLACK, BLUE, BLUE_TINT, GREY, RED, SKY, WHITE, YELLOW, mix
from lab.plots.figures import DrawingError, drawing, shorten

WIDTH, MOST_POINTS = 480, 2000
# Thickness, colour and dashes of curves that may be equal: each later one leaves the one below to be seen.
LAYERS: list[tuple[float, str, tuple[float, float] | None]] = [
    (7.0, YELLOW, None), (3.4, SKY, None), (1.4, BLACK, (5, 3)), (1.4, RED, (1.5, 5)),
]  # fmt: skip


@drawing
def draw_residuals(predictions: ArrayLike, targets: ArrayLike, *, names: Sequence[str] = ()) -> Page:
    """Predicted against true, and the residuals against the prediction, with RMSE and R²: a row for each quantity.

    Takes predictions and targets [n] or [n, quantities]; at most four quantities and 2,000 examples are drawn, the figures
    are over all.
    """
    guesses, truths = (np.asarray(values, dtype=float).reshape(len(values), -1) for values in (predictions, targets))  # type: ignore[arg-type]
    known = np.isfinite(guesses).all(axis=1) & np.isfinite(truths).all(axis=1)
    if not known.any():
        raise DrawingError("no prediction is finite")
    guesses, truths = guesses[known], truths[known]
    quantities = min(4, guesses.shape[1])
    page = Page(WIDTH, 236 * quantities)
    some = np.unique(np.linspace(0, len(guesses) - 1, min(len(guesses), MOST_POINTS)).astype(int))
    for index in range(quantities):
        top = 236.0 * index
        guess, true = guesses[:, index], truths[:, index]
        residuals = guess - true
        rmse, spread = math.sqrt(np.mean(residuals**2)), float(np.sum((true - true.mean()) ** 2))
        score = f"    R² {1 - np.sum(residuals**2) / spread:.4f}" if spread else ""
        name = f"{shorten(names[index], 20)}:  " if names else ""
        page.text(8, top + 18, f"{name}RMSE {rmse:.4g}{score}", bold=True)
        low, high = min(true.min(), guess.min()), max(true.max(), guess.max())
        room = 0.05 * (high - low) or 0.5
        ends = (float(low - room), float(high + room))
        panel = Panel(page, (46, top + 44, 222, top + 196), ends, ends)
        panel.axes()
        panel.below("true", ticks=4)
        page.text(8, top + 37, "predicted", size=10, colour=GREY)
        page.line(panel.x(ends), panel.y(ends), colour=GREY, thickness=1, dash=(4, 3))
        page.dots(panel.x(true[some]), panel.y(guess[some]), fill=mix(BLUE, WHITE, 0.7), radius=1.8)
        most = float(np.abs(residuals).max()) * 1.05 or 1.0
        right = Panel(page, (284, top + 44, 418, top + 196), ends, (-most, most))
        right.axes()
        right.below("predicted", ticks=4)
        page.text(246, top + 37, "residual", size=10, colour=GREY)
        page.line([284, 418], [float(right.y(0))] * 2, colour=GREY, thickness=1, dash=(4, 3))
        page.dots(right.x(guess[some]), right.y(residuals[some]), fill=mix(BLUE, WHITE, 0.7), radius=1.8)
        counts, edges = np.histogram(residuals, 25, (-most, most))
        for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True):
            if count:
                bar = (424.0, float(right.y(end)) + 0.3, 424 + 46 * count / counts.max(), float(right.y(start)) - 0.3)
                page.rectangle(bar, fill=BLUE_TINT)
    return page


@drawing
def draw_restored_curves(
    x: ArrayLike, y: ArrayLike, *, grid: ArrayLike, curves: Mapping[int, Mapping[str, ArrayLike]]
) -> Page:
    """A panel for each width of network: points x [n], y [n] and up to four curves by name, [m], given on grid [m].

    Later curves are thinner and more broken, so that equal ones are all seen, one upon the other.
    """
    xs, ys, grid = (np.asarray(values, dtype=float) for values in (x, y, grid))
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    page = Page(40 + 210 * columns, 196 * rows + 26)
    every = np.concatenate([ys, *[np.asarray(values, float) for named in curves.values() for values in named.values()]])
    room = 0.05 * float(np.nanmax(every) - np.nanmin(every)) or 0.5
    limits = (float(np.nanmin(every)) - room, float(np.nanmax(every)) + room)
    for index, (width, named) in enumerate(curves.items()):
        left, top = 46 + 210 * (index % columns), 196.0 * (index // columns)
        panel = Panel(page, (left, top + 28, left + 176, top + 156), (float(grid.min()), float(grid.max())), limits)
        panel.axes()
        panel.below("x", ticks=4)
        page.text(left, top + 19, f"width {width}", bold=True)
        page.dots(panel.x(xs), panel.y(ys), fill=mix(GREY, WHITE, 0.55), radius=1.5)
        for values, (thickness, colour, dash) in zip(named.values(), LAYERS, strict=False):
            page.line(panel.x(grid), panel.y(np.asarray(values)), colour=colour, thickness=thickness, dash=dash)
    place = 14.0
    for name, (thickness, colour, dash) in zip(next(iter(curves.values()), {}), LAYERS, strict=False):
        page.line([place, place + 26], [page.height - 14] * 2, colour=colour, thickness=thickness, dash=dash)
        page.text(place + 32, page.height - 10, name, size=10, colour=BLACK)
        place += 50 + width_of(name, 10)
    return page
