"""From run directories to the answer: a table of what was varied, with intervals over seeds and honest comparisons.

python synthesize_results.py root=experiments/lr_study
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lab.config.command import command, variant_name
from lab.config.schema import SynthesizeConfig, nearest_name
from lab.runs.reading import UNCOUNTED, printable, read_curve
from lab.tables.formats import (
    Cell,
    Estimate,
    Table,
    digits_for,
    escape_markdown,
    to_csv,
    to_html,
    to_latex,
    to_markdown,
    to_text,
)
from lab.tables.summary import Row, Summary, estimate, find_key, summarize, warning
from utils import PROJECT, UserError, write_file

MOST_CURVES, MOST_EFFECTS = 7, 12  # in one picture

# ---------------------------------------------------------------------------------------------------------- the tables


def table_of(summary: Summary) -> Table:
    """The rows of a summary as a table."""
    rows, metric = summary.rows, summary.metric
    tests = sorted({name for row in rows for name in row.test}, key=lambda name: (name != test_metric(metric), name))
    states = [state for state in UNCOUNTED if any(run.state == state for row in rows for run in row.runs)]
    has_gaps = sum(row.result is not None for row in rows) > 1
    header = [*summary.names, "n", metric, *["difference", "from the best"] * has_gaps, *tests, *states]
    digits = {name: digits_for(e.mean for row in rows if (e := row.test.get(name))) for name in tests}
    digits[metric] = digits_for(row.result.mean for row in rows if row.result)
    lines = []
    for row in rows:
        line: list[Cell] = [*row.values, len(row.counted), written(row.result, digits[metric])]
        line += [written(row.gap, digits[metric], signed=True), row.verdict or None] * has_gaps
        line += [written(row.test.get(name), digits[name]) for name in tests]
        lines.append([*line, *(sum(run.state == state for run in row.runs) for state in states)])
    return Table(header, lines, sources=[sources_of(row) for row in rows])


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
    return [
        f"{len(summary.runs)} runs below {printable(str(summary.root))}: {states}",
        f"{summary.metric} at each run's best epoch ({better} is better), mean ± 95% interval of Student's t over n runs",
    ] + ["differences are paired by seed where both rows have it; each interval is for one comparison alone"] * (
        len(summary.rows) > 1
    )


def format_terminal(summary: Summary, pivots: Sequence[Table] = ()) -> str:
    """The whole answer as text."""
    parts = [*heading(summary), "", to_text(table_of(summary))]
    for table in pivots:
        parts += ["", to_text(table)]
    return "\n".join([*parts, *[""] * bool(summary.notes), *summary.notes])


# ----------------------------------------------------------------------------------------------------------- the files


def mean_curve(curves: Sequence[Mapping[int, Mapping[str, float]]], name: str) -> dict[int, Estimate]:
    """A metric by epoch over several runs, as far as all of them have it."""
    epochs = [{epoch for epoch, metrics in curve.items() if name in metrics} for curve in curves]
    return {epoch: estimate([curve[epoch][name] for curve in curves]) for epoch in sorted(set.intersection(*epochs))}


def draw_pictures(summary: Summary) -> list[tuple[str, Path]]:
    """Draws the learning curves of the best rows and the effect of each key into the root: (heading, file) of each."""
    # Not needed for the table, which a sweep prints when it ends.
    from lab.plots.comparisons import EffectLine, MeanCurve, draw_effects, draw_mean_curves
    from lab.plots.figures import save_png

    metric, rows = summary.metric, [row for row in summary.rows if row.result]
    curves = {}
    for rank, row in enumerate(rows[:MOST_CURVES], start=1):
        curve = mean_curve([read_curve(run) for run in row.counted.values()], metric)
        curves[f"{rank}. {summary.label(row)}"] = MeanCurve(
            list(curve),
            [e.mean for e in curve.values()],
            [e.half for e in curve.values()],
        )
    effects: dict[str, list[EffectLine]] = {}
    for index, name in enumerate(summary.names):
        values = sorted({row.values[index] for row in rows}, key=in_order)
        if len(values) > 1 and len(effects) < MOST_EFFECTS:
            lines: dict[tuple[str, ...], dict[str, float]] = {}
            for row in rows:
                others = (*row.values[:index], *row.values[index + 1 :])
                lines.setdefault(others, {})[row.values[index]] = row.result.mean if row.result else math.nan
            effects[name] = [EffectLine(" ".join(others), means) for others, means in lines.items()]
    few = f"the best {len(curves)} of {len(rows)} rows, " if len(rows) > len(curves) else ""
    pictures = {}
    if any(curve.epochs for curve in curves.values()):
        pictures["curves"] = f"Learning curves: {few}mean and 95% band over runs"
        save_png(draw_mean_curves({"": curves}, metric), summary.root / "results_curves.png")
    if effects:
        pictures["effects"] = "Effect of each key: a line connects rows that agree in all other keys"
        save_png(draw_effects(effects, metric), summary.root / "results_effects.png")
    return [(title, summary.root / f"results_{name}.png") for name, title in pictures.items()]


def write_report(summary: Summary, pivots: Sequence[Table] = ()) -> list[Path]:
    """Writes tables and pictures into the root, as results.md, .csv, .tex and .html; adds a note on damaged curves."""
    table, title = table_of(summary), f"Results of {printable(summary.root.absolute().name)}"
    pictures = draw_pictures(summary)
    damaged = [run for run in summary.runs if run.state == "finished" and run.problem.startswith("metrics.jsonl")]
    summary.notes += warning(damaged, "without a whole learning curve")
    notes = [*heading(summary), *summary.notes]
    markdown = [f"# {escape_markdown(title)}\n", to_markdown(table), *map(to_markdown, pivots)]
    markdown.append("".join(f"- {escape_markdown(note)}\n" for note in notes))
    markdown += [f"![{escape_markdown(text)}]({file.name})\n" for text, file in pictures]
    remarks = "".join(f"% {note}\n" for note in [*notes, "needs \\usepackage{booktabs}"])
    contents = {
        "md": "\n".join(markdown),
        "csv": to_csv(table),
        "tex": remarks + "\n".join(map(to_latex, [table, *pivots])),
        "html": to_html(title, [table, *pivots], notes, [(text, file.read_bytes()) for text, file in pictures]),
    }
    for ending, text in contents.items():
        write_file(summary.root / f"results.{ending}", text.encode())
    return [summary.root / f"results.{ending}" for ending in contents]


def write_mean_curves(summary: Summary) -> Path:
    """Writes each row's mean curves for TensorBoard, as runs of their own below <root>/mean, instead of older ones."""
    from torch.utils.tensorboard import SummaryWriter

    folder = summary.root / "mean"
    for file in folder.glob("*/events.out.tfevents.*"):
        if not (file.parent / "config.yaml").exists():  # an experiment may be called "mean", too
            file.unlink()
    for rank, row in enumerate((row for row in summary.rows if row.counted), start=1):
        curves = [read_curve(run) for run in row.counted.values()]
        steps = mean_curve(curves, "step")
        pairs = [f"{name}={value}" for name, value in zip(summary.names, row.values, strict=True)]
        with contextlib.closing(SummaryWriter(str(folder / f"{rank:03}_{variant_name(pairs, '')}"[:120]))) as writer:
            for name in sorted({name for curve in curves for metrics in curve.values() for name in metrics} - {"step"}):
                for epoch, value in mean_curve(curves, name).items():
                    writer.add_scalar(name, value.mean, round(steps[epoch].mean))
    return folder


# --------------------------------------------------------------------------------------------------------- the command


def find_root(root: str) -> Path:
    """The folder of that name, from here or from the project's folder; UserError where there is none."""
    for folder in (Path(root), PROJECT / root):
        if root and folder.is_dir():
            return folder
    parent = next((f for f in (Path(root).parent, PROJECT / Path(root).parent) if f.is_dir()), PROJECT / "experiments")
    near = nearest_name(Path(root).name, [path.name for path in parent.glob("*/")])
    hint = f"did you mean {parent / near}?" if near else f"experiments are in {PROJECT / 'experiments'}"
    raise UserError(f"root is {root!r}, which is no folder; {hint}")


@command("synthesize_results", SynthesizeConfig)
def main(ask: DictConfig) -> None:
    """Prints the answer, and writes it into the root."""
    pivot = list(ask.pivot or ())
    if pivot and len(set(pivot)) != 2:
        raise UserError(f"pivot is [{','.join(pivot)}]; it takes two keys, downwards and across, as pivot=[model,data]")
    summary = summarize(find_root(ask.root), metric=ask.metric, group_by=ask.group_by, pivot=pivot)
    pivots = pivot_tables(summary, pivot) if pivot else []
    print(format_terminal(summary, pivots))
    num_notes, paths = len(summary.notes), write_report(summary, pivots)
    print(*summary.notes[num_notes:], "", "written: " + printable(" ".join(map(str, paths))), sep="\n")
    if ask.tensorboard:
        print(f"written: {printable(str(write_mean_curves(summary)))}")


if __name__ == "__main__":
    main()
