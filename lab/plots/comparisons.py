"""Pictures of many runs: the trials of a search, and the rows of a table."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lab.plots.figures import BLACK, BLUE, LINES, ORANGE, finite, open_figure, shorten, styled, thin

# ------------------------------------------------------------------------------------------------------------ searches


@styled
def draw_slices(
    slices: Mapping[str, tuple[Sequence[Any], Sequence[float]]], metric: str, *, log: Collection[str] = ()
) -> Figure:
    """The result of each trial against each hyperparameter: {name: (values [n], results [n])}, a panel for each.

    log: the names whose axis is logarithmic; values that are not numbers are set side by side.
    """
    columns = min(3, len(slices))
    rows = math.ceil(len(slices) / columns)
    figure = open_figure(0.6 + 2.5 * columns, 0.3 + 2.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(slices) :]:
        axes.axis("off")
    for number, (axes, (name, (values, results))) in enumerate(zip(panels.flat, slices.items(), strict=False)):
        numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        if numeric:
            axes.scatter(values, results, s=16, color=BLUE, alpha=0.6, linewidths=0)
            if name in log:
                _scale_by_logarithm(axes, "x")
        else:
            names = sorted({str(value) for value in values})
            axes.scatter(
                [names.index(str(value)) for value in values], results, s=16, color=BLUE, alpha=0.6, linewidths=0
            )
            axes.set_xticks(range(len(names)), [shorten(label, 12) for label in names], rotation=30, ha="right")
            axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_xlabel(name)
        axes.grid(axis="y")
        if number % columns == 0:
            axes.set_ylabel(metric)
    return figure


@styled
def draw_contour(
    x: Sequence[float],
    y: Sequence[float],
    results: Sequence[float],
    *,
    names: Sequence[str],
    metric: str,
    log: Collection[str] = (),
) -> Figure:
    """The results [n] of trials over two hyperparameters x and y [n], interpolated between the trials, which are marked."""
    figure = open_figure(4.8, 3.6)
    axes = figure.subplots()
    points = [
        np.log10(values) if name in log else np.asarray(values, float)
        for name, values in zip(names, (x, y), strict=True)
    ]
    if len(np.unique(np.stack(points), axis=1).T) >= 4 and all(np.ptp(values) > 0 for values in points):
        # Triangulated on the axes' own scales, so that a logarithmic range is interpolated as it is drawn.
        filled = axes.tricontourf(x, y, np.asarray(results, float), levels=10, cmap="cividis")
        figure.colorbar(filled, ax=axes, label=metric)
    axes.scatter(x, y, s=14, color="white", edgecolors=BLACK, linewidths=0.7)
    axes.set(xlabel=names[0], ylabel=names[1])
    for name, which in zip(names, "xy", strict=True):
        if name in log:
            _scale_by_logarithm(axes, which)
    return figure


def _scale_by_logarithm(axes: Axes, which: str) -> None:
    """Makes an axis, "x" or "y", logarithmic, its ticks labelled in plain numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_formatter(lambda place, _: f"{place:g}")
    axis.set_minor_formatter(lambda place, _: "")


# -------------------------------------------------------------------------------------------------------- several runs


@styled
def draw_mean_curves(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float], Sequence[float | None]]], metric: str
) -> Figure:
    """Up to seven mean curves by name, each as (epochs, means, half-widths of the band, None where there is no band)."""
    is_wide = max(map(len, curves)) > 30
    figure = open_figure(8.4, 3.4 + 0.18 * is_wide * len(curves))
    axes = figure.subplots()
    for (name, (epochs, means, halves)), (colour, line) in zip(curves.items(), LINES, strict=False):
        centre, half = finite(means), np.array([half or 0.0 for half in halves])
        dot = "o" if len(epochs) == 1 else None
        axes.plot(epochs, centre, marker=dot, color=colour, linestyle=line, label=shorten(name, 110))
        axes.fill_between(epochs, centre - half, centre + half, color=colour, alpha=0.13, linewidth=0)
    _show_lines_rather_than_bands(axes, [value for _, means, _ in curves.values() for value in means])
    axes.set(xlabel="epoch", ylabel=metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    axes.grid(axis="y")
    figure.legend(loc="outside lower left" if is_wide else "outside right upper", handlelength=2.6)
    return figure


def _show_lines_rather_than_bands(axes: Axes, values: Sequence[float]) -> None:
    """Limits that show all of the lines and at most as much again of their bands, which are huge for two or three runs."""
    low, high = min(values), max(values)
    room = 0.5 * (high - low) or 0.05 * abs(high) or 1.0
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, low - room), min(top, high + room))


@styled
def draw_effects(effects: Mapping[str, Mapping[str, Sequence[float]]], metric: str) -> Figure:
    """A panel for each key, name -> value -> results: every result as a dot, and the mean of each value as a line.

    Up to twelve values, and those that are no numbers, stand side by side; more numbers are placed by their size.
    """
    columns = min(3, len(effects))
    rows = math.ceil(len(effects) / columns)
    figure = open_figure(2.8 * columns + 0.2, 2.3 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (name, results) in zip(panels, effects.items(), strict=False):
        places = _places(list(results))
        dots = [(place, y) for place, ys in zip(places, results.values(), strict=True) for y in ys]
        axes.plot(*zip(*dots, strict=True), "o", color=BLUE, markersize=4.5, alpha=0.55, markeredgewidth=0)
        if places == list(range(len(results))):
            line = "-" if all(map(_is_number, results)) else ""  # between words there is no slope
            means = [np.mean(ys) for ys in results.values()]
            axes.plot(places, means, color=ORANGE, linestyle=line, marker="_", markersize=16, linewidth=1.2)
            shown = thin(len(places), 12)
            names = [shorten(value, 14) for value in results]
            crowded = sum(map(len, names)) > 26
            axes.set_xticks(
                shown, [names[i] for i in shown], rotation=30 * crowded, ha="right" if crowded else "center"
            )
            axes.set_xlim(-0.5, len(places) - 0.5)
        elif min(places) > 0 and np.median(places) < max(places) / 5:  # spread evenly over orders of magnitude
            _scale_by_logarithm(axes, "x")
        axes.set_xlabel(shorten(name, 36))
        axes.grid(axis="y")
    for axes in panels[::columns]:
        axes.set_ylabel(metric)
    for axes in panels[len(effects) :]:
        axes.axis("off")
    return figure


def _places(values: Sequence[str]) -> list[float]:
    """Where values stand on an axis: many numbers at their size, others side by side."""
    by_size = len(values) > 12 and all(map(_is_number, values))
    return [float(value) for value in values] if by_size else list(range(len(values)))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
