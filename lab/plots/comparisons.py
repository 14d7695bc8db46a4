"""Pictures of the rows of a table: how they compare, what each key changes, and how they learned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lab.plots.colours import BLACK, BLUE, BLUE_TINT, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from lab.plots.figures import finite, is_number, possible_range, shorten, thin
from lab.plots.pages import label_first_column, open_figure, open_panels, scale_by_logarithm, styled, width_of

# The looks of curves: they differ in more than colour.
LINES = [(BLUE, "-"), (RED, "--"), (GREEN, "-."), (ORANGE, (0, (1, 0.8))), (PURPLE, "-"), (SKY, "--"), (BLACK, "-.")]
MOST_ROWS = 30  # of one panel of a forest plot
MOST_EFFECTS = 40  # lines of one panel of effects


# ------------------------------------------------------------------------------------------------------- forest plot


class ForestRow(NamedTuple):
    """A row of the table: its mean, the half-width of its interval (None for a single run) and its single results."""

    label: str
    mean: float
    half: float | None
    values: Sequence[float]
    standing: Literal["best", "one of the best", "other"]


@styled
def draw_forest(panels: Mapping[str, Sequence[ForestRow]], metric: str, *, higher: bool) -> Figure:
    """Mean and interval of each row, best first, the single runs as ticks: a panel for each dataset, by name.

    The band of the best row is shaded, what cannot be told from it is blue, the rest grey. Each panel shows its best 30
    rows, and whiskers that are far longer than the rows differ end in an arrow.
    """
    shown = {name: rows[:MOST_ROWS] for name, rows in panels.items()}
    labels = {name: [shorten(row.label, 64) for row in rows] for name, rows in shown.items()}
    numbers = {name: _means_and_halves(rows) for name, rows in shown.items()}
    left = 0.25 + max(width_of(label, 8, bold=True) for texts in labels.values() for label in texts)
    right = 0.2 + max(width_of(number, 8, bold=True) for texts in numbers.values() for number in texts)
    heights = [0.2 * len(rows) + 0.1 for rows in shown.values()]
    above, between, below = 0.3, 0.62, 0.5
    width, height = left + 3.4 + right, above + sum(heights) + between * (len(heights) - 1) + below
    figure = open_figure(width, height, layout=None)
    top = above
    for (name, rows), tall in zip(shown.items(), heights, strict=True):
        axes = figure.add_axes((left / width, 1 - (top + tall) / height, 3.4 / width, tall / height))
        _place_rows(axes, rows, labels[name], numbers[name], _forest_limits(rows, metric))
        more = len(panels[name]) - len(rows)
        axes.set_title(
            shorten(name, 40) + f" (the best {len(rows)} of {len(panels[name])} rows)" * bool(more), fontweight="bold"
        )
        top += tall + between
    axes.set_xlabel(f"{metric} ({'higher' if higher else 'lower'} is better)")
    return figure


def _place_rows(
    axes: Axes, rows: Sequence[ForestRow], labels: Sequence[str], numbers: Sequence[str], limits: tuple[float, float]
) -> None:
    """Dots, whiskers, ticks and words of one panel, the first row on top."""
    low, high = limits
    axes.set(xlim=limits, ylim=(len(rows) - 0.5, -0.5))
    beside = {"transform": axes.get_yaxis_transform(), "va": "center_baseline", "fontsize": 8}
    for place, (row, label, number) in enumerate(zip(rows, labels, numbers, strict=True)):
        colour = GREY if row.standing == "other" else BLUE
        weight = "bold" if row.standing == "best" else "normal"
        words: dict[str, Any] = {**beside, "color": GREY if row.standing == "other" else BLACK, "fontweight": weight}
        axes.text(-0.025, place, label, ha="right", **words)
        axes.text(1.025, place, number, ha="left", **words)
        if row.standing == "best" and row.half:
            axes.axvspan(row.mean - row.half, row.mean + row.half, color=BLUE_TINT, alpha=0.35, linewidth=0, zorder=0)
        if row.half and math.isfinite(row.mean):
            ends = max(low, row.mean - row.half), min(high, row.mean + row.half)
            axes.plot(ends, (place, place), color=colour, linewidth=1.6, solid_capstyle="butt")
            for end, edge, arrow in zip(ends, limits, "<>", strict=True):
                if end == edge and abs(row.mean - end) < row.half:
                    axes.plot(end, place, marker=arrow, color=colour, markersize=4.5, clip_on=False)
        axes.plot(
            row.values, [place] * len(row.values), "|", color=colour, markersize=6, markeredgewidth=0.9, alpha=0.7
        )
        axes.plot(row.mean, place, "D" if row.standing == "best" else "o", color=colour, markersize=5.5)
    axes.set_yticks([])
    axes.spines.left.set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x")


def _forest_limits(rows: Sequence[ForestRow], metric: str) -> tuple[float, float]:
    """Limits that show all results, and at most half as much again of their intervals, which are huge for two runs."""
    centres = finite([value for row in rows for value in (row.mean, *row.values)])
    centres = centres[~np.isnan(centres)] if not np.isnan(centres).all() else np.zeros(1)
    halves = finite([row.half or 0.0 for row in rows])
    means = finite([row.mean for row in rows])
    ends = [float(np.nanmin(np.append(means - halves, centres))), float(np.nanmax(np.append(means + halves, centres)))]
    return _limits(centres, ends, metric)


def _limits(values: Iterable[float], ends: Sequence[float], metric: str) -> tuple[float, float]:
    """Limits that hold all values, their intervals' `ends` where there is room, and nothing that cannot be."""
    low, high = min(values), max(values)
    room = 0.5 * (high - low) or 0.05 * abs(high) or 1.0
    bottom, top = max(ends[0], low - room), min(ends[1], high + room)
    margin = 0.04 * (top - bottom) or room
    least, most = possible_range(metric, low)
    # A dot on the very border of what can be is shown whole.
    return max(bottom - margin, least - margin * (low - margin < least)), min(top + margin, most + margin / 2)


def _means_and_halves(rows: Sequence[ForestRow]) -> list[str]:
    """ "0.9712 ± 0.0034" for each row: as many places as give the middle one of the intervals two digits."""
    halves = sorted(row.half for row in rows if row.half and math.isfinite(row.half))
    places = min(8, max(0, 1 - math.floor(math.log10(halves[len(halves) // 2])))) if halves else 4
    return [f"{row.mean:.{places}f}" + (f" ± {row.half:.{places}f}" if row.half is not None else "") for row in rows]


# ------------------------------------------------------------------------------------------------------------ effects


class EffectLine(NamedTuple):
    """Rows that agree in all keys but one: the values of the others, as words, and {value of the one key: mean}."""

    label: str
    means: Mapping[str, float]


@styled
def draw_effects(lines: Mapping[str, Sequence[EffectLine]], metric: str) -> Figure:
    """A panel for each key, name -> lines, the best row's first: what a change of this key alone does to the result.

    Only rows that agree in all other keys are connected. Up to twelve values, and those that are no numbers, stand side by
    side; more numbers are placed by their size. The first line is blue. Of more than 40 lines the first 40 are drawn.
    """
    figure, panels = open_panels(len(lines), width=2.7, height=2.2, note=0.4 if len(lines) == 1 else 0.27)
    for axes, (name, of_key) in zip(panels, lines.items(), strict=True):
        values = sorted({value for line in of_key for value in line.means}, key=_in_order)
        places = dict(zip(values, _places(values), strict=True))
        for rank, line in reversed([*enumerate(of_key[:MOST_EFFECTS])]):
            known = sorted((value for value in line.means), key=_in_order)
            look: dict[str, Any] = {"color": GREY, "linewidth": 1.1, "markersize": 3.5, "alpha": 0.7}
            if rank == 0:
                look = {"color": BLUE, "linewidth": 2.2, "markersize": 5.5}
            axes.plot([places[v] for v in known], finite([line.means[v] for v in known]), "o-", **look)
        _name_places(axes, values, list(places.values()))
        axes.set_xlabel(shorten(name, 36))
        axes.grid(axis="y")
    label_first_column(panels, metric)
    note = "a line connects rows that agree in all other keys,%sblue: those of the best row"
    note %= "\n" if len(lines) == 1 else " "
    figure.text(0.5, 0.07 / figure.get_figheight(), note, ha="center", va="bottom", fontsize=8, color=GREY)
    return figure


def _name_places(axes: Axes, values: Sequence[str], places: Sequence[float]) -> None:
    """Names values that stand side by side; numbers that spread over orders of magnitude get a logarithmic axis."""
    if list(places) != list(range(len(places))):
        if min(places) > 0 and np.median(places) < max(places) / 5:
            scale_by_logarithm(axes, "x")
        return
    shown = thin(len(places), 12)
    names = [shorten(value, 14) for value in values]
    crowded = sum(map(len, names)) > 26
    axes.set_xticks(shown, [names[i] for i in shown], rotation=30 * crowded, ha="right" if crowded else "center")
    axes.set_xlim(-0.4, len(places) - 0.6)


def _in_order(value: str) -> tuple[bool, float, str]:
    """Sorts numbers by size, before words."""
    return (False, float(value), value) if is_number(value) else (True, 0.0, value)


def _places(values: Sequence[str]) -> list[float]:
    """Where values stand on an axis: many numbers at their size, others side by side."""
    by_size = len(values) > 12 and all(map(is_number, values))
    return [float(value) for value in values] if by_size else list(range(len(values)))


# ------------------------------------------------------------------------------------------------------------- curves


class MeanCurve(NamedTuple):
    """A metric by epoch: the mean over runs, the half-width of its band (None: none), and each run's (epochs, values)."""

    epochs: Sequence[int]
    means: Sequence[float]
    halves: Sequence[float | None]
    runs: Sequence[tuple[Sequence[int], Sequence[float]]] = ()


@styled
def draw_mean_curves(panels: Mapping[str, Mapping[str, MeanCurve]], metric: str) -> Figure:
    """The mean curves of up to seven rows by name, a panel for each dataset by name.

    Up to four runs are thin lines, since their band is wider than they; more are a band.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))[: len(LINES)]
    note = 0.12 + 0.17 * len(names)
    figure, axes_of = open_panels(len(panels), width=7.0 if len(panels) == 1 else 3.4, height=2.7, note=note, most=2)
    looks = dict(zip(names, LINES, strict=False))
    seen: list[float] = []
    for axes, (title, curves) in zip(axes_of, panels.items(), strict=True):
        for name, curve in curves.items():
            if name in looks:
                seen += _draw_curve(axes, curve, *looks[name])
        if title:
            axes.set_title(shorten(title, 40), fontweight="bold")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.margins(x=0.02)
        axes.grid(axis="y")
    seen = [value for value in seen if math.isfinite(value)]
    if seen:  # bands are huge for two or three runs
        axes_of[0].set_ylim(*_limits(seen, axes_of[0].get_ylim(), metric))
    label_first_column(axes_of, metric)
    handles = [axes_of[0].plot([], [], color=colour, linestyle=line)[0] for colour, line in looks.values()]
    figure.legend(handles, [shorten(name, 100) for name in names], loc="lower left", handlelength=2.6, borderpad=0.2)
    return figure


def _draw_curve(axes: Axes, curve: MeanCurve, colour: str, line: Any) -> list[float]:
    """Draws one row; returns the values that have to be seen."""
    centre = finite(curve.means)
    few = curve.runs if len(curve.runs) <= 4 else ()
    for epochs, values in few:
        axes.plot(epochs, finite(values), color=colour, linewidth=0.7, alpha=0.55)
    if not few:
        half = finite([half or 0.0 for half in curve.halves])
        axes.fill_between(curve.epochs, centre - half, centre + half, color=colour, alpha=0.13, linewidth=0)
    axes.plot(curve.epochs, centre, marker="o" if len(curve.epochs) == 1 else None, color=colour, linestyle=line)
    return [*centre, *(value for _, values in few for value in values)]
