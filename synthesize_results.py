"""From run directories to the answer: a table of what was varied, with intervals over seeds and honest comparisons.

python synthesize_results.py root=experiments/lr_study
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from scipy.special import stdtrit  # Student's quantile; scipy.stats has it too, but takes half a second to import

from conf.command import command, variant_name
from conf.schema import SynthesizeConfig, nearest_name
from report import Cell, Estimate, Table, digits_for, escape_markdown, to_csv, to_html, to_latex, to_markdown, to_text
from runs import ABSENT, UNCOUNTED, Run, find_runs, printable, read_curve
from utils import PROJECT, UserError, write_file

# Keys that say where and how a run is recorded, not what it computes: they make no rows.
RECORDING = {"name", "seed", "resume", "experiments_dir", "data.root", "data.num_workers"}
RECORDING |= {f"trainer.{key}" for key in ("images", "animate", "profile", "log_every", "fail_above")}
HIGHER_IS_BETTER = {"accuracy": True, "r2": True, "loss": False, "rmse": False}
MOST_CURVES, MOST_EFFECTS = 7, 12  # in one picture

# ---------------------------------------------------------------------------------------------------------- statistics


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values, with its 95% interval by Student's t."""
    n = len(values)
    half = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else None
    return Estimate(float(np.mean(values)), half, n)


def difference(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> tuple[Estimate, bool]:
    """(the mean of ours minus theirs, both by seed, with its 95% interval; whether it is that of pairs).

    Seeds that both have make pairs. With less than two of them it is Welch's difference of two independent means,
    without an interval where either is of one value.
    """
    pairs = [value - theirs[case] for case, value in ours.items() if case in theirs]
    if len(pairs) > 1:
        return estimate(pairs), True
    a, b = np.array([*ours.values()]), np.array([*theirs.values()])
    mean, n = float(a.mean() - b.mean()), min(len(a), len(b))
    if n == 1:
        return Estimate(mean, None, n), False
    u, v = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    degrees = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1)) if u + v else 1.0
    return Estimate(mean, float(stdtrit(degrees, 0.975) * math.sqrt(u + v)), n), False


def verdict(gap: Estimate, *, paired: bool, higher: bool) -> str:
    """What may be said of a difference from the best row; higher: whether higher is better."""
    if gap.half is None:
        return "no claim with n = 1"
    separable = "better" if (gap.mean > 0) == higher else "worse"
    return (separable if abs(gap.mean) > gap.half else f"not separable with n = {gap.n}") + ", unpaired" * (not paired)


# ------------------------------------------------------------------------------------------------------------ the rows


@dataclass
class Row:
    """Runs that agree in all keys that make a row.

    A case is what varies within the row: the seed and, under `group_by`, the keys that make no row.
    """

    values: list[str]  # of the keys that make a row, as short as they can be told apart
    runs: list[Run]
    counted: dict[tuple[str, ...], Run]  # of each case, the run that finished last
    result: Estimate | None = None
    test: dict[str, Estimate] = field(default_factory=dict)
    gap: Estimate | None = None  # from the best row
    verdict: str = ""

    def metric(self, name: str) -> dict[tuple[str, ...], float]:
        return {case: run.best[name] for case, run in self.counted.items()}


@dataclass
class Summary:
    """What the runs below `root` say: rows, the best first, those without a result last, and notes on them."""

    root: Path
    metric: str
    higher: bool
    keys: list[str]  # that make a row
    names: list[str]  # of these keys, as short as they can be told apart
    rows: list[Row]
    runs: list[Run]
    notes: list[str]

    def label(self, row: Row) -> str:
        """A row in a few words: "CNN, lr 0.01"."""
        named = zip(self.keys, self.names, row.values, strict=True)
        return ", ".join(x if key.endswith("_target_") else f"{name} {x}" for key, name, x in named) or "all runs"


def summarize(
    root: Path, *, metric: str | None = None, group_by: Sequence[str] | None = None, pivot: Sequence[str] = ()
) -> Summary:
    """Reads all runs below a folder and compares them.

    metric: as measured at each run's best epoch; None: the one that the runs monitored. group_by: the keys that make a
    row; None: all in which the runs differ. pivot: keys that make rows in any case. UserError where there are no runs,
    or none that has the metric or the key.
    """
    runs = find_runs(root)
    metric, notes = choose_metric(metric, runs, root)
    others = [run for run in runs if run.state == "finished" and metric not in run.best]
    known = [run for run in runs if run.config and run not in others]
    varied, follow = varied_keys(known)
    keys = varied if group_by is None else [find_key(key, known, "group_by") for key in group_by]
    keys = list(dict.fromkeys([*keys, *(find_key(key, known, "pivot") for key in pivot)]))
    rows = make_rows(known, keys, [key for key in ["seed", *varied] if key not in keys])
    higher = is_higher_better(metric, known)
    for row in filter(lambda row: row.counted, rows):
        row.result = estimate([*row.metric(metric).values()])
        for name in {name for run in row.counted.values() for name in run.test}:
            tested = estimate([run.test[name] for run in row.counted.values() if name in run.test])
            row.test[name] = replace(tested, note=f" (n = {tested.n})" * (tested.n < row.result.n))
    rows.sort(key=lambda row: (row.result is None, row.result.mean * (-1 if higher else 1) if row.result else 0.0))
    compare(rows, metric, higher=higher)
    notes += follow if group_by is None else []
    notes += notes_on(rows, runs, others, metric)
    return Summary(root, metric, higher, keys, short_names(keys), rows, runs, notes)


def choose_metric(metric: str | None, runs: Sequence[Run], root: Path) -> tuple[str, list[str]]:
    """(the metric that ranks the rows, what there is to say about it)."""
    monitors = Counter(run.monitor for run in runs if run.state == "finished")
    measured = list(dict.fromkeys(name for run in runs for name in run.best))
    if metric is None:
        if len(monitors) > 1:
            counts = ", ".join(f"{name} ({count})" for name, count in monitors.most_common())
            raise UserError(f"the runs below {root} monitor different metrics, {counts}; choose: metric={measured[0]}")
        return next(iter(monitors), "result"), []
    if metric.startswith("test/"):
        raise UserError(f"metric is {metric}, but the test split decides no order; there is {', '.join(measured)}")
    if monitors and metric not in measured:
        near = nearest_name(metric, measured)
        hint = f"; did you mean {near}?" if near else ""
        raise UserError(f"metric is {metric}, but no run below {root} has it; there is {', '.join(measured)}{hint}")
    return metric, [f"{metric} is that of the epoch with the best {name}" for name in monitors if name != metric]


def is_higher_better(metric: str, runs: Sequence[Run]) -> bool:
    """Whether higher is better; of a metric not known here, whether the epochs that runs chose have higher ones."""
    if (name := metric.rpartition("/")[2]) in HIGHER_IS_BETTER:
        return HIGHER_IS_BETTER[name]
    pairs = [(run.best[metric], run.final.get(metric, run.best[metric])) for run in runs if run.monitor == metric]
    return sum((best > final) - (best < final) for best, final in pairs) > 0


def varied_keys(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """(the keys in which runs differ, group by group; notes on those left out because they follow another).

    A key follows its group's `_target_` if each target has one value of it, and any key if all their values are equal.
    """
    every = list(dict.fromkeys(key for run in runs for key in run.config))
    values = {key: tuple(run.value(key) for run in runs) for key in every}
    groups = list(dict.fromkeys(key.split(".")[0] for key in every))
    differing = [key for key in every if key not in RECORDING and len(set(values[key])) > 1]
    differing.sort(key=lambda key: (groups.index(key.split(".")[0]), not key.endswith("._target_")))
    keys, notes, taken = [], [], {values.get("seed"): "seed"}
    for key in differing:
        target = f"{key.split('.')[0]}._target_"
        by_target = dict(zip(values.get(target, ()), values[key], strict=False))
        if target in keys and key != target and tuple(map(by_target.get, values[target])) == values[key]:
            if list(by_target.values()).count(ABSENT) < len(by_target) - 1:  # not an argument of one target only
                each = ", ".join(f"{value} with {name.rpartition('.')[2]}" for name, value in by_target.items())
                notes.append(f"{key} follows {target.split('.')[0]}: {each}")
        elif values[key] in taken:
            notes.append(f"{key} is always equal to {taken[values[key]]}")
        else:
            keys.append(key)
            taken[values[key]] = key
    return keys, notes


def find_key(name: str, runs: Sequence[Run], option: str) -> str:
    """The dotted key that a user means by it, by its end, or by a group's name; UserError where that is not one key."""
    every = dict.fromkeys(key for run in runs for key in run.config)
    ends = [key for key in every if key in (name, f"{name}._target_") or key.endswith(f".{name}")]
    exact = [key for key in ends if key in (name, f"{name}._target_")]
    if len(found := exact or ends) == 1:
        return found[0]
    if found:
        raise UserError(f"{option} has {name}, which may be {' or '.join(found)}; write it in full")
    near = nearest_name(name, every) or nearest_name(name, {key.rpartition(".")[2] for key in every})
    hint = f"; did you mean {near}?" if near else ""
    raise UserError(f"{option} has {name}, which is no key of these runs' configurations{hint}")


def short_names(keys: Sequence[str]) -> list[str]:
    """Names for columns: "model" for model._target_, "lr" for optimizer.lr, unless another one could be called so."""
    short = [key.split(".")[0] if key.endswith("._target_") else key.rpartition(".")[2] for key in keys]
    return [name if short.count(name) == 1 else key for name, key in zip(short, keys, strict=True)]


def make_rows(runs: Sequence[Run], keys: Sequence[str], rest: Sequence[str]) -> list[Row]:
    """Rows of the runs that agree in `keys`; `rest` are the keys that vary within a row."""
    groups = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.ended):
        groups[tuple(run.value(key) for key in keys)].append(run)
    columns = [shorten(key, column) for key, column in zip(keys, zip(*groups, strict=True), strict=bool(groups))]
    rows = []
    for values, members in sorted(groups.items()):
        counted = {tuple(map(run.value, rest)): run for run in members if run.state == "finished"}
        rows.append(Row([column[value] for column, value in zip(columns, values, strict=True)], members, counted))
    return rows


def shorten(key: str, values: Iterable[str]) -> dict[str, str]:
    """A short form of each value, if they stay distinct: MLP for model.net.MLP, four digits of a number."""

    def short(value: str) -> str:
        if key.endswith("_target_"):
            return value.rpartition(".")[2]
        try:
            return format(float(value), ".4g") if "." in value or "e" in value else value
        except ValueError:
            return value

    forms = {value: short(value) for value in values}
    return forms if len(set(forms.values())) == len(forms) else {value: value for value in forms}


def compare(rows: Iterable[Row], metric: str, *, higher: bool) -> None:
    """Compares each row, the best first, with the best one on the same data."""
    best: dict[frozenset[str], Row] = {}
    for row in filter(lambda row: row.counted, rows):
        reference = best.setdefault(frozenset(run.value("data._target_") for run in row.counted.values()), row)
        if reference is row:
            row.verdict = "best"
        else:
            row.gap, paired = difference(row.metric(metric), reference.metric(metric))
            row.verdict = verdict(row.gap, paired=paired, higher=higher)
    for row in best.values() if len(best) > 1 else ():
        row.verdict = "best of its data"


def notes_on(rows: Sequence[Row], runs: Sequence[Run], others: Sequence[Run], metric: str) -> list[str]:
    """What a reader of the table must know about runs that are not, or not fully, in it."""
    counted = {run.path for row in rows for run in row.counted.values()}
    repeated = [run for run in runs if run.state == "finished" and run not in others and run.path not in counted]
    return [
        *warning([run for run in runs if run.state == "unreadable"], "cannot be read"),
        *warning([run for run in runs if not run.config and run.state != "unreadable"], "that never began, in no row"),
        *warning([run for run in runs if run.state == "finished" and run.problem], "without valid test metrics"),
        *warning(others, f"without {metric}, left out"),
        *warning(repeated, "with configuration and seed of a later run, not counted again"),
    ]


def warning(runs: Sequence[Run], text: str) -> list[str]:
    """A line that counts runs and names the first of them, or no line if there are none."""
    some = [printable(run.path) + f" ({run.problem})" * bool(run.problem) for run in runs[:3]]
    more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
    return (
        [f"warning: {len(runs)} {'run' if len(runs) == 1 else 'runs'} {text}: {'; '.join(some)}{more}"] if runs else []
    )


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
    from plots.comparisons import draw_effects, draw_mean_curves
    from plots.figures import save_png

    metric, rows = summary.metric, [row for row in summary.rows if row.result]
    curves = {}
    for rank, row in enumerate(rows[:MOST_CURVES], start=1):
        curve = mean_curve([read_curve(run) for run in row.counted.values()], metric)
        curves[f"{rank}. {summary.label(row)}"] = (
            list(curve),
            [e.mean for e in curve.values()],
            [e.half for e in curve.values()],
        )
    effects: dict[str, dict[str, list[float]]] = {}
    for index, name in enumerate(summary.names):
        values = sorted({row.values[index] for row in rows}, key=in_order)
        if len(values) > 1 and len(effects) < MOST_EFFECTS:
            effects[name] = {
                v: [row.result.mean for row in rows if row.result and row.values[index] == v] for v in values
            }
    few = f"the best {len(curves)} of {len(rows)} rows, " if len(rows) > len(curves) else ""
    pictures = {}
    if any(epochs for epochs, _, _ in curves.values()):
        pictures["curves"] = f"Learning curves: {few}mean and 95% band over runs"
        save_png(draw_mean_curves(curves, metric), summary.root / "results_curves.png")
    if effects:
        pictures["effects"] = "Effect of each key: every row as a dot, the mean of a value as a bar"
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
