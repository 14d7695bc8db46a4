"""The numbers of the pictures: mean curves, rows with their intervals, what each key does by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lab.runs.reading import Run, read_curve
from lab.tables.cells import Estimate
from lab.tables.comparisons import AMONG_BEST, BEST
from lab.tables.rows import Row
from lab.tables.statistics import estimate
from lab.tables.summary import Summary, data_name

MOST_CURVES, MOST_EFFECTS = 7, 12  # in one picture

Curve = tuple[list[int], list[float], list[float | None], list[tuple[list[int], list[float]]]]


def mean_curve(curves: Sequence[Mapping[int, Mapping[str, float]]], name: str) -> dict[int, Estimate]:
    """A metric by epoch over several runs, as far as all of them have it."""
    epochs = [{epoch for epoch, metrics in curve.items() if name in metrics} for curve in curves]
    return {epoch: estimate([curve[epoch][name] for curve in curves]) for epoch in sorted(set.intersection(*epochs))}


def runs_of(row: Row) -> list[Run]:
    """The runs that a row's result is made of."""
    return [run for runs in row.by_seed().values() for run in runs]


def panels_of(summary: Summary) -> dict[str, list[tuple[str, Row]]]:
    """By dataset: (name, row) of the rows with a result, best first, the names without the dataset where it varies."""
    return {
        data_name(data): [(summary.label(row, without="data._target_"), row) for row in rows]
        for data, rows in summary.by_data().items()
    }


def forest_row(name: str, row: Row, metric: str) -> tuple[str, float, float | None, list[float], Any]:
    """(name, mean, half-width, single values, standing) of a row, for the picture of all rows."""
    assert row.result
    standing = row.standing if row.standing in (BEST, AMONG_BEST) else "other"
    return name, row.result.mean, row.result.half, list(row.metric(metric).values()), standing


def best_curves(summary: Summary) -> dict[str, dict[str, Curve]]:
    """By dataset and name: the mean curves of the best rows; empty where no run has a curve."""
    panels = panels_of(summary)
    best = list(dict.fromkeys(summary.label(row, without="data._target_") for row in summary.rows if row.result))[
        :MOST_CURVES
    ]
    curves: dict[str, dict[str, Curve]] = {}
    for data, rows in panels.items():
        curves[data] = {}
        for name, row in rows:
            if name in best:
                own = [read_curve(run) for run in runs_of(row)]
                curve = mean_curve(own, summary.metric)
                single = [{epoch: x[summary.metric] for epoch, x in one.items() if summary.metric in x} for one in own]
                lines = [(list(one), list(one.values())) for one in single]
                means, halves = [e.mean for e in curve.values()], [e.half for e in curve.values()]
                curves[data][name] = (list(curve), means, halves, lines)
    return curves if any(epochs for of in curves.values() for epochs, *_ in of.values()) else {}


def effects_of(summary: Summary) -> dict[str, list[tuple[str, dict[str, float]]]]:
    """For each key that varies: of the rows that agree in all other keys, in words, the result by value of this one."""
    rows = [row for row in summary.rows if row.result]
    effects: dict[str, list[tuple[str, dict[str, float]]]] = {}
    for index, name in enumerate(summary.names):
        if len({row.values[index] for row in rows}) < 2 or len(effects) == MOST_EFFECTS:
            continue
        lines: dict[tuple[str, ...], dict[str, float]] = {}
        for row in rows:
            others = (*row.values[:index], *row.values[index + 1 :])
            lines.setdefault(others, {})[row.values[index]] = row.result.mean if row.result else math.nan
        effects[name] = [(" ".join(others), means) for others, means in lines.items()]
    return effects
