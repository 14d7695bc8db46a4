"""The numbers of the pictures: mean curves, rows with their intervals, what each key does by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lab.runs.reading import Run, read_curve
from lab.tables.cells import Estimate
from lab.tables.content import in_order
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


def effects_of(summary: Summary) -> dict[str, dict[str, list[float]]]:
    """For each key that varies, by its values: the results of the rows that have it."""
    rows = [row for row in summary.rows if row.result]
    effects: dict[str, dict[str, list[float]]] = {}
    for index, name in enumerate(summary.names):
        values = sorted({row.values[index] for row in rows}, key=in_order)
        if len(values) > 1 and len(effects) < MOST_EFFECTS:
            effects[name] = {value: [] for value in values}
            for row in rows:
                if row.result:
                    effects[name][row.values[index]].append(row.result.mean)
    return effects
