"""What a summary's tables hold: the rows with all their numbers, two keys against each other, and how to read them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lab.runs.reading import UNCOUNTED, printable
from lab.tables.cells import Cell, Estimate, Table, digits_for
from lab.tables.rows import Row, find_key
from lab.tables.summary import Summary

UNSEEN = "on unseen seeds"


def table_of(summary: Summary) -> Table:
    """The rows of a summary as a table."""
    rows, metric = summary.rows, summary.metric
    tests = sorted({name for row in rows for name in row.test}, key=lambda name: (name != test_metric(metric), name))
    states = [state for state in UNCOUNTED if any(run.state == state for row in rows for run in row.runs)]
    has_gaps, has_unseen = sum(row.result is not None for row in rows) > 1, any(row.unseen for row in rows)
    header = [*(summary.names or ["row"]), "n", metric, *[UNSEEN] * has_unseen]
    header += [*["difference", "from the best"] * has_gaps, *tests, *states]
    digits = {name: digits_for(e.mean for row in rows if (e := row.test.get(name))) for name in tests}
    digits[metric] = digits_for(row.result.mean for row in rows if row.result)
    lines = []
    for row in rows:
        line: list[Cell] = [*(row.values or ["all runs"]), row.result.n if row.result else 0]
        line += [written(row.result, digits[metric], bold=row.standing == "best" and has_gaps)]
        line += [written(row.unseen, digits[metric])] * has_unseen
        line += [written(row.gap, digits[metric], signed=True), row.verdict or None] * has_gaps
        line += [written(row.test.get(name), digits[name]) for name in tests]
        lines.append([*line, *(sum(run.state == state for run in row.runs) for state in states)])
    better = dict.fromkeys((metric, UNSEEN, "difference", test_metric(metric)), summary.higher)
    sources, standings = [sources_of(row) for row in rows], [row.standing for row in rows]
    return Table(header, lines, sources=sources, better=better, standings=standings)


def written(number: Estimate | None, digits: str, **how: Any) -> Estimate | None:
    """An estimate with the way to write it."""
    return replace(number, digits=digits, **how) if number else None


def sources_of(row: Row) -> list[tuple[str, str]]:
    """(label, path) of each run of a row: its seed, and its state if that is not finished."""
    runs = sorted(row.runs, key=lambda run: (len(run.value("seed")), run.value("seed")))
    return [(run.value("seed") + f" {run.state}" * (run.state != "finished"), run.path) for run in runs]


def test_metric(metric: str) -> str:
    """The test metric that stands beside a validation metric."""
    return "test/" + metric.rpartition("/")[2]


def pivot_tables(summary: Summary, pivot: Sequence[str]) -> list[Table]:
    """Two keys against each other, the first one downwards: a table of the metric, and one of its test metric.

    Where other keys vary too, a cell is their best row by the metric, in both tables. The best of each column is bold.
    """
    down, across = (summary.keys.index(find_key(key, summary.runs, "pivot")) for key in pivot)
    cells: dict[tuple[str, str], Row] = {}
    for row in summary.rows:  # the best one comes first
        cells.setdefault((row.values[down], row.values[across]), row)
    lines, columns = (sorted({cell[side] for cell in cells}, key=in_order) for side in (0, 1))
    chosen = f", each the best of its rows by {summary.metric}" if len(cells) < len(summary.rows) else ""
    tables = []
    for name in (summary.metric, test_metric(summary.metric)):
        found = {cell: row.result if name == summary.metric else row.test.get(name) for cell, row in cells.items()}
        numbers = {cell: number for cell, number in found.items() if number}
        digits = digits_for(number.mean for number in numbers.values())
        best: dict[str, float] = {}
        for (_, column), number in numbers.items():
            best[column] = (max if summary.higher else min)(number.mean, best.get(column, number.mean))
        shown = {(y, x): written(e, digits, bold=e.mean == best[x]) for (y, x), e in numbers.items()}
        header = [f"{summary.names[down]} / {summary.names[across]}", *columns]
        if shown:
            tables.append(Table(header, [[y, *(shown.get((y, x)) for x in columns)] for y in lines], name + chosen))
    return tables


def in_order(value: str) -> tuple[bool, float, str]:
    """Sorts numbers by size, before words."""
    with contextlib.suppress(ValueError):
        return False, float(value), value
    return True, 0.0, value


def heading(summary: Summary) -> list[str]:
    """What the table is made of, and how to read it."""
    counts = Counter(run.state for run in summary.runs)
    states = ", ".join(f"{counts[state]} {state}" for state in ("finished", *UNCOUNTED) if counts[state])
    better = "higher" if summary.higher else "lower"
    lines = [
        f"{len(summary.runs)} runs below {printable(str(summary.root))}: {states}",
        f"{summary.metric} at each run's best epoch ({better} is better), mean ± 95% interval of Student's t over n seeds",
    ]
    if tested := [run for run in summary.runs if run.num_tested]:
        num = sum(run.num_tested for run in tested)
        times = "once" if num == 1 else f"{num} times"
        lines.append(f"the test split was opened {times}, for {len(tested)} of the {len(summary.runs)} runs")
    if len(summary.rows) > 1:
        lines.append(f"{how_compared(summary)}; no row that equals the best is called worse in 95 of 100 studies")
    return lines + summary.remarks


def how_compared(summary: Summary) -> str:
    """The way in which rows are compared, in a few words."""
    if summary.sequential:
        return "differences are of pairs by seed, their intervals hold together and after every seed (t-martingale)"
    return "differences are paired by seed where rows share seeds, and their intervals hold together (Tukey-Kramer)"
