"""What a network learns, in motion: a map of its examples, the regions of its classes, a curve that it fits.

Frames of 960 x 720 pixels, for `save_gif`; between two snapshots stand frames in which one becomes the other. Edges are
not smoothed: what shows a GIF at half its size does that, and hard edges take half of the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lab.plots.canvas import Page, Panel
from lab.plots.colours import BLACK, BLUE, GREY, RED, WHITE, class_colours, mix, to_hex
from lab.plots.figures import Frames, drawing, finite, shorten

WIDTH, HEIGHT, FRAMES = 480, 360, 44  # about as many frames in all as a GIF of 400 KB holds
MARKS = "os^DvPx<>-"


@drawing
def animate_embedding(
    coordinates: ArrayLike,
    targets: ArrayLike,
    classes: Sequence[str],
    epochs: Sequence[int],
    *,
    accuracies: Sequence[float] | None = None,
) -> Frames:
    """A map of the examples (t-SNE, say) as training goes on, coordinates [snapshots, n, 2], coloured by targets [n].

    All frames share their limits; the caller aligns the coordinates. Up to 20 classes are named where most of them lie.
    """
    places, targets = np.asarray(coordinates, dtype=float), np.asarray(targets).astype(int)
    colours = [to_hex(colour) for colour in class_colours(len(classes))]
    low, high = np.nanmin(places, axis=(0, 1)), np.nanmax(places, axis=(0, 1))
    frames = []
    for earlier, later, share in _between(len(places)):
        page = Page(WIDTH, HEIGHT, smooth=1)
        panel = Panel(page, (20, 40, WIDTH - 20, HEIGHT - 20), (low[0], high[0]), (low[1], high[1]))
        spots = _blend(places, earlier, later, share)
        x, y = panel.x(spots[:, 0]), panel.y(spots[:, 1])
        for label, colour in enumerate(colours):
            group = targets == label
            shape = "o" if len(classes) > 20 else MARKS[label // 10 * 2]
            page.dots(x[group], y[group], fill=colour, shape=shape, radius=2.4)
        if len(classes) <= 20:
            for label in np.unique(targets):
                middle = [float(np.median(values[targets == label])) for values in (x, y)]
                ink = mix(colours[label], BLACK, 0.6)
                page.text(
                    middle[0], middle[1], shorten(classes[label], 11), bold=True, anchor="mm", halo=True, colour=ink
                )
        _write_head(page, f"epoch {epochs[earlier]}", None if accuracies is None else accuracies[earlier])
        frames.append(np.asarray(page.render()))
    return frames


@drawing
def animate_regions(
    points: ArrayLike,
    targets: ArrayLike,
    class_maps: ArrayLike,
    *,
    extent: tuple[float, float, float, float],
    predictions: ArrayLike,
    steps: Sequence[int],
    accuracies: Sequence[float],
) -> Frames:
    """A classifier of points in the plane while it learns.

    Takes points [n, 2], targets [n], class_maps [snapshots, height, width] (integers: the predicted class; floats: the
    probability of class 1 of two) with row 0 at the lowest y, extent (x0, x1, y0, y1), predictions [snapshots, n]. A
    point's shape is its true class, its colour the predicted one; a black rim marks it wrong.
    """
    points, maps = np.asarray(points, dtype=float), np.asarray(class_maps)
    targets, guesses = np.asarray(targets).astype(int), np.asarray(predictions).astype(int)
    colours = class_colours(1 + int(max(targets.max(), guesses.max(), maps.max(), 1)))
    areas, sure = maps.astype(int), np.ones(maps.shape)
    if np.issubdtype(maps.dtype, np.floating):
        areas, sure = (maps > 0.5).astype(int), np.abs(2 * maps - 1)
    grounds = 1 - 0.38 * sure[..., None] * (1 - colours[areas])
    frames = []
    for earlier, later, share in _between(len(maps)):
        page = Page(WIDTH, HEIGHT, smooth=1)
        panel = Panel(page, (40, 34, WIDTH - 14, HEIGHT - 40), extent[:2], extent[2:])
        page.image(_blend(grounds, earlier, later, share)[::-1], panel.box, smooth=True)
        panel.axes(ticks=5)
        panel.below("x1")
        page.text(9, HEIGHT / 2, "x2", size=10, anchor="mm", turned=True)
        now = guesses[earlier]
        x, y = panel.x(points[:, 0]), panel.y(points[:, 1])
        for is_wrong in (False, True):
            for true, guess in sorted({*zip(targets.tolist(), now.tolist(), strict=True)}):
                if (true != guess) == is_wrong:
                    group = (targets == true) & (now == guess)
                    look: dict[str, Any] = {"shape": MARKS[true % 6], "edge": BLACK if is_wrong else WHITE}
                    page.dots(x[group], y[group], fill=to_hex(colours[guess]), radius=3.6 if is_wrong else 2.8, **look)
        _write_head(page, f"step {steps[earlier]}", accuracies[earlier])
        frames.append(np.asarray(page.render()))
    return frames


@drawing
def animate_regression(
    x: ArrayLike, y: ArrayLike, curves: ArrayLike, *, grid: ArrayLike, steps: Sequence[int], losses: Sequence[float]
) -> Frames:
    """A curve that learns to fit points x [n], y [n], through its snapshots curves [snapshots, m] on grid [m]."""
    xs, ys, lines, grid = (np.asarray(values, dtype=float) for values in (x, y, curves, grid))
    room = 0.15 * (np.ptp(ys) or 1.0)
    frames = []
    for earlier, later, share in _between(len(lines)):
        page = Page(WIDTH, HEIGHT, smooth=1)
        panel = Panel(page, (46, 34, WIDTH - 14, HEIGHT - 40), (xs.min(), xs.max()), (ys.min() - room, ys.max() + room))
        panel.axes(ticks=5)
        panel.below("x")
        page.text(9, HEIGHT / 2, "y", size=10, anchor="mm", turned=True)
        page.dots(panel.x(xs), panel.y(ys), fill=mix(BLUE, WHITE, 0.65), radius=2.6)
        with page.within(panel.box):  # its first guesses may be far off
            page.line(panel.x(grid), panel.y(finite(_blend(lines, earlier, later, share))), colour=RED, thickness=2.6)
        page.text(8, 20, f"step {steps[earlier]}", bold=True)
        page.text(WIDTH - 14, 20, f"loss {losses[earlier]:.4f}", bold=True, anchor="rs")
        page.text(WIDTH / 2 - 30, 20, "data", colour=BLUE, anchor="ms")
        page.text(WIDTH / 2 + 30, 20, "network", colour=RED, anchor="ms")
        frames.append(np.asarray(page.render()))
    return frames


def _between(count: int) -> Iterator[tuple[int, int, float]]:
    """(snapshot, the next, how much of the next) for each frame: gently out of one and into the other."""
    inner = max(1, min(6, FRAMES // max(1, count - 1)))
    for index in range(count - 1):
        for step in range(inner):
            share = step / inner
            yield index, index + 1, share * share * (3 - 2 * share)
    yield count - 1, count - 1, 0.0


def _blend(values: NDArray[Any], earlier: int, later: int, share: float) -> NDArray[Any]:
    return values[earlier] if share == 0 else (1 - share) * values[earlier] + share * values[later]


def _write_head(page: Page, left: str, accuracy: float | None) -> None:
    page.text(14, 20, left, bold=True)
    if accuracy is not None:
        page.text(WIDTH - 14, 20, f"accuracy {accuracy:.3f}", bold=True, anchor="rs")
    page.line([14, WIDTH - 14], [27, 27], colour=mix(GREY, WHITE, 0.3), thickness=0.8)
