"""Pictures of a search: its trials against each hyperparameter, how the best came about, and what mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lab.plots.colours import BLACK, BLUE, BLUE_TINT, RED
from lab.plots.figures import finite, shorten, span_of
from lab.plots.pages import label_first_column, open_figure, open_panels, scale_by_logarithm, styled


class Slice(NamedTuple):
    """One hyperparameter: its value and the result in each trial, and its range or its choices in the space."""

    values: Sequence[Any]
    results: Sequence[float]
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: Sequence[Any] = ()


@styled
def draw_slices(slices: Mapping[str, Slice], metric: str, *, higher: bool) -> Figure:
    """The result of each trial against each hyperparameter, name -> slice, a panel for each, on the scale of the space.

    The darker a dot the better its rank; the best trial has a ring, and of each choice a step shows the median.
    """
    figure, panels = open_panels(len(slices), width=2.5, height=2.1)
    every = finite([result for piece in slices.values() for result in piece.results])
    for axes, (name, piece) in zip(panels, slices.items(), strict=True):
        results = finite(piece.results)
        is_choice = bool(piece.choices) or not all(map(_is_plain_number, piece.values))
        places = _place_choices(axes, piece, results) if is_choice else np.asarray(piece.values, dtype=float)
        if not is_choice:
            _set_range(axes, piece)
        known = ~np.isnan(results)
        ranks = (results[known] if higher else -results[known]).argsort(kind="stable").argsort()
        shade = 0.25 + 0.75 * ranks / max(1, len(ranks) - 1)
        axes.scatter(places[known], results[known], s=20, c=shade, cmap="Blues", vmin=0, vmax=1.15, linewidths=0)
        if known.any():
            best = np.flatnonzero(known)[ranks.argmax()]
            axes.scatter(places[best], results[best], s=80, facecolors="none", edgecolors=RED, linewidths=1.5)
        axes.set_xlabel(shorten(name, 34))
        axes.grid(axis="y")
    if span_of(every) > 20:
        scale_by_logarithm(panels[0], "y")
    label_first_column(panels, metric)
    return figure


def _place_choices(axes: Axes, piece: Slice, results: NDArray[Any]) -> NDArray[Any]:
    """Names the choices on the axis and draws their medians; returns where the trials stand, spread out a little."""
    names = list(dict.fromkeys(map(str, piece.choices or sorted(map(str, piece.values)))))
    columns = np.array([names.index(str(value)) for value in piece.values], dtype=float)
    for place in range(len(names)):
        of_choice = results[(columns == place) & ~np.isnan(results)]
        if len(of_choice):
            axes.plot((place - 0.35, place + 0.35), [np.median(of_choice)] * 2, color=BLACK, linewidth=1.2)
    crowded = sum(len(shorten(name, 12)) for name in names) > 24
    labels = [shorten(name, 12) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=30 * crowded, ha="right" if crowded else "center")
    axes.set_xlim(-0.5, len(names) - 0.5)
    spread = 0.5 * (np.arange(len(columns)) * 0.618 % 1) - 0.25  # the same each time, and even
    return columns + spread


def _set_range(axes: Axes, piece: Slice) -> None:
    """The axis of a number: as wide as the space, with a little room for the dots."""
    low = min(piece.values) if piece.low is None else piece.low
    high = max(piece.values) if piece.high is None else piece.high
    if piece.log:
        scale_by_logarithm(axes, "x")
        axes.set_xlim(low * (low / high) ** 0.04, high * (high / low) ** 0.04) if low < high else None
    elif low < high:
        axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        axes.xaxis.set_major_locator(MaxNLocator(5))


def _is_plain_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@styled
def draw_history(values: Sequence[float | None], metric: str, *, higher: bool) -> Figure:
    """The result of each trial by its number, and the best so far as a step; None, a trial without a result, is a cross."""
    results = finite([np.nan if value is None else value for value in values])
    known = ~np.isnan(results)
    figure = open_figure(4.8, 2.7)
    axes = figure.subplots()
    numbers = np.arange(len(results))
    axes.plot(numbers[known], results[known], "o", color=BLUE_TINT, markersize=4.5, label="trial")
    if known.any():
        filled = np.where(known, results, -np.inf if higher else np.inf)
        best = np.maximum.accumulate(filled) if higher else np.minimum.accumulate(filled)
        axes.plot(numbers, finite(best), drawstyle="steps-post", color=BLUE, label="best so far")
        winner = int(filled.argmax() if higher else filled.argmin())
        label = f"best: trial {winner}, {results[winner]:.4g}"
        axes.plot(winner, results[winner], "o", color=RED, markersize=9, markerfacecolor="none", label=label)
        if span_of(results) > 20:
            scale_by_logarithm(axes, "y")
    if not known.all():
        ends: dict[str, Any] = {"transform": axes.get_xaxis_transform()}
        label = "without a result"
        axes.plot(numbers[~known], np.full((~known).sum(), 0.03), "x", color=BLACK, markersize=5, label=label, **ends)
    axes.set(xlabel="trial", ylabel=metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.grid(axis="y")
    figure.legend(loc="outside upper center", ncols=4, columnspacing=1.2, handletextpad=0.4)
    return figure


@styled
def draw_importances(shares: Mapping[str, float], metric: str) -> Figure:
    """How much each hyperparameter matters for a metric, in shares of 1, as bars in the order given."""
    figure = open_figure(4.8, 0.6 + 0.26 * len(shares))
    axes = figure.subplots()
    rows = range(len(shares))
    axes.barh(rows, list(shares.values()), height=0.7, color=[BLUE, *[BLUE_TINT] * (len(shares) - 1)])
    for row, share in zip(rows, shares.values(), strict=True):
        axes.text(share + 0.01 * max(shares.values()), row, f"{share:.2f}", va="center", fontsize=8)
    axes.set_yticks(rows, [shorten(name, 30) for name in shares])
    axes.set(ylim=(len(shares) - 0.4, -0.6), xticks=[], xlim=(0, 1.12 * max(shares.values())))
    axes.set_xlabel(f"share of the differences in {metric}")
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    return figure
