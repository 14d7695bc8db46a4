"""What runs say together: rows of those that agree, means with intervals over seeds, and honest comparisons.

Apart from synthesize_results.py so that what follows from runs is one subject, and how it is shown another.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit  # Student's quantile; scipy.stats has it too, but takes half a second to import

from lab.config.schema import nearest_name
from lab.runs.reading import ABSENT, Run, find_runs, printable
from lab.tables.formats import Estimate
from utils import UserError

# Keys that say where and how a run is recorded, not what it computes: they make no rows.
RECORDING = {"name", "seed", "resume", "experiments_dir", "data.root", "data.num_workers"}
RECORDING |= {f"trainer.{key}" for key in ("images", "animate", "profile", "log_every", "fail_above")}
HIGHER_IS_BETTER = {"accuracy": True, "r2": True, "loss": False, "rmse": False}

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
