"""The numbers of the pictures: mean curves, rows with their intervals, what each key does by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lab.runs.reading import Run, read_curve
from lab.tables.cells import Estimate
from lab.tables.rows import Row
from lab.tables.statistics import estimate
from lab.tables.summary import Summary

MOST_CURVES, MOST_EFFECTS = 7, 12  # in one picture

Curves = dict[str, tuple[list[int], list[float], list[float | None]]]


def mean_curve(curves: Sequence[Mapping[int, Mapping[str, float]]], name: str) -> dict[int, Estimate]:
    """A metric by epoch over several runs, as far as all of them have it."""
    epochs = [{epoch for epoch, metrics in curve.items() if name in metrics} for curve in curves]
    return {epoch: estimate([curve[epoch][name] for curve in curves]) for epoch in sorted(set.intersection(*epochs))}


def runs_of(row: Row) -> list[Run]:
    """The runs that a row's result is made of."""
    return [run for runs in row.by_seed().values() for run in runs]


def best_curves(summary: Summary) -> Curves:
    """(epochs, means, half-widths) of the best rows, by their names; empty where no run has a curve."""
    curves = {}
    for rank, row in enumerate([row for row in summary.rows if row.result][:MOST_CURVES], start=1):
        curve = mean_curve([read_curve(run) for run in runs_of(row)], summary.metric)
        means, halves = [e.mean for e in curve.values()], [e.half for e in curve.values()]
        curves[f"{rank}. {summary.label(row)}"] = (list(curve), means, halves)
    return curves if any(epochs for epochs, _, _ in curves.values()) else {}


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
