"""The picture of a run that was killed again and again, upon one that was never stopped."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lab.plots.canvas import Box, Page, Panel, width_of
from lab.plots.colours import BLACK, GREY, TEN, WHITE, mix
from lab.plots.figures import DrawingError, Frames, drawing, finite, span_of

WIDTH, HEIGHT = 840, 400  # as wide as a README
REDS = ("#AA2200", "#551122", "#FF4422")  # too near to the red of a kill
NIGHT = "#0D1117"  # the page of a code host at night
CURVE: Box = (58, 70, WIDTH - 16, 286)
DIFFERENCE: Box = (58, 318, WIDTH - 16, 362)


@drawing
def draw_survival(
    steps: ArrayLike,
    undisturbed: ArrayLike,
    survivor: ArrayLike,
    *,
    kills: Sequence[float],
    metric: str = "training loss",
    dark: bool = False,
) -> Page:
    """A wide pale line, the run that was never stopped; on it a thin one that changes colour with each process.

    Takes steps [n], the metric of both runs [n], and the step at which each process was killed. A cross marks each kill;
    below is the difference of the two. dark: for a page that is dark.
    """
    return _draw(*_checked(steps, undisturbed, survivor), kills, metric, dark, smooth=2)


@drawing
def animate_survival(
    steps: ArrayLike,
    undisturbed: ArrayLike,
    survivor: ArrayLike,
    *,
    kills: Sequence[float],
    metric: str = "training loss",
    dark: bool = False,
    frames: int = 60,
) -> Frames:
    """The same picture as it comes about: the thin line grows, and rests at each kill."""
    numbers, before, after = _checked(steps, undisturbed, survivor)
    ends = np.unique(np.concatenate([np.linspace(numbers[0], numbers[-1], frames), np.asarray(kills, dtype=float)]))
    pictures = []
    for end in ends:
        image = np.asarray(_draw(numbers, before, after, kills, metric, dark, smooth=1, until=float(end)).render())
        pictures += [image] * (3 if end in kills else 1)
    return pictures


def _checked(*arrays: ArrayLike) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    steps, before, after = (finite(values) for values in arrays)
    if not len(steps) == len(before) == len(after) > 1:
        raise DrawingError(f"the two runs need the same steps, got {len(steps)}, {len(before)} and {len(after)}")
    return steps, before, after


def _draw(
    steps: NDArray[Any],
    before: NDArray[Any],
    after: NDArray[Any],
    kills: Sequence[float],
    metric: str,
    dark: bool,
    *,
    smooth: int,
    until: float = np.inf,
) -> Page:
    """The page with the thin line up to a step."""
    ground, ink = (NIGHT, "#E6EDF3") if dark else (WHITE, BLACK)
    page = Page(WIDTH, HEIGHT, smooth=smooth, background=ground)
    pale, done = mix(GREY, ground, 0.38), steps <= until
    happened = [kill for kill in sorted(kills) if kill <= until]
    gap = after - before
    every = np.concatenate([before, after])
    log = span_of(every) > 20
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    margin = 0.06 * (high - low) or 1.0
    limits = (low / 1.2, high * 1.2) if log else (max(0.0, low - margin) if low >= 0 else low - margin, high + margin)
    span = (float(steps[0]), float(steps[-1]))
    curve = Panel(page, CURVE, span, limits, log=log)
    curve.axes(size=12, ink=ink)
    page.line(curve.x(steps), curve.y(before), colour=pale, thickness=11)
    most = 1.2 * float(np.nanmax(np.abs(gap)))
    below = Panel(page, DIFFERENCE, span, (-(most or 1.0), most or 1.0))
    below.axes(ticks=0, ink=ink)
    below.below("step", ticks=6, whole=True, size=12, ink=ink)
    page.line([CURVE[0], CURVE[2]], [float(below.y(0))] * 2, colour=mix(GREY, ground, 0.4), thickness=0.8)
    page.text(CURVE[0] - 5, float(below.y(0)), "0", size=12, anchor="rm", colour=ink)
    edges = [-np.inf, *sorted(kills), np.inf]
    for index, (start, end) in enumerate(itertools.pairwise(edges)):
        # The first step of a process is drawn from the last one of the process before it, so that no gap is left.
        part = np.flatnonzero((steps > start) & (steps <= end) & done)
        part = np.append(part[:1] - 1, part) if len(part) and part[0] > 0 else part
        colour = _line_colour(index, dark)
        page.line(curve.x(steps[part]), curve.y(after[part]), colour=colour, thickness=2.4)
        page.line(below.x(steps[part]), below.y(gap[part]), colour=colour, thickness=2.4)
    red = "#FF7B72" if dark else "#C00000"
    for kill in happened:
        height = float(curve.y(np.interp(kill, steps, after)))
        page.dots(curve.x(kill), height, fill=pale, shape="o", radius=6.5)
        page.dots(curve.x(kill), height, fill=red, shape="x", radius=5)
    _write_words(page, metric, gap[done], len(kills), len(happened), ink, red)
    return page


def _line_colour(index: int, dark: bool) -> str:
    """The colour of a process, none of them the red of a kill; on a dark page the deep ones are lighter."""
    colour = [colour for colour in TEN if colour not in REDS][index % 7]
    return mix(colour, WHITE, 0.5 if colour in ("#006677", "#002277", "#7700CC") else 0.85) if dark else colour


def _write_words(page: Page, metric: str, gap: NDArray[Any], count: int, happened: int, ink: str, red: str) -> None:
    """What is seen, above each panel."""
    pale = mix(ink, page.background, 0.65)
    equal = not np.nan_to_num(gap, nan=1.0).any()
    end = "not one bit is different" if equal else f"the largest difference is {np.nanmax(np.abs(gap)):.2g}"
    page.text(16, 26, f"Killed {happened} times and resumed: {end}", size=17, bold=True, colour=ink)
    page.text(16, 52, metric, size=12, bold=True, colour=ink)
    left = WIDTH - 16.0
    words = f"{count} kills (SIGKILL)"
    page.text(left, 52, words, size=12, colour=pale, anchor="rs")
    left -= width_of(words, 12)
    page.dots(left - 10, 48, fill=red, shape="x", radius=4.5)
    for index in range(4):
        start = left - 206 + 8 * index
        page.line([start, start + 8], [48, 48], colour=_line_colour(index, page.background == NIGHT), thickness=2.4)
    page.text(left - 168, 52, f"{count + 1} processes in turn", size=12, colour=pale)
    page.line([left - 352, left - 322], [48, 48], colour=mix(GREY, page.background, 0.38), thickness=11)
    page.text(left - 314, 52, "never stopped", size=12, colour=pale)
    figure = "0 at every step" if equal else "resumed minus never stopped"
    page.text(16, 308, f"difference: {figure}", size=12, bold=True, colour=ink)
