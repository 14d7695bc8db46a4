"""What runs say together: their rows, the best first, compared with it, and what a reader has to know besides."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lab.config.schema import nearest_name
from lab.runs.reading import Run, find_runs, printable, read_num_validation
from lab.tables.cells import Estimate, digits_for, words
from lab.tables.comparisons import compare_with_best, plan_seeds, resolution, unflattered
from lab.tables.rows import NAMING, Row, find_key, make_rows, short_names, varied_keys
from lab.tables.statistics import estimate
from utils import UserError

# Of runs from before runs recorded it.
HIGHER_IS_BETTER = {"loss": False, "rmse": False, "mse": False, "accuracy": True, "r2": True}


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
    notes: list[str] = field(default_factory=list)  # on runs
    remarks: list[str] = field(default_factory=list)  # on the numbers
    sequential: bool = False

    def label(self, row: Row, *, without: str = "") -> str:
        """A row in a few words: "CNN, lr 0.01"; without: a key that is left out."""
        named = [item for item in zip(self.keys, self.names, row.values, strict=True) if item[0] != without]
        return ", ".join(x if key.endswith("_target_") else f"{name} {x}" for key, name, x in named) or "all runs"

    def by_data(self) -> dict[frozenset[str], list[Row]]:
        """The rows with a result, those of the same data together: they alone are compared."""
        found = defaultdict(list)
        for row in self.rows:
            if row.result:
                found[row.data()].append(row)
        return dict(found)


def summarize(
    root: Path,
    *,
    metric: str | None = None,
    group_by: Sequence[str] | None = None,
    pivot: Sequence[str] = (),
    higher_is_better: bool | None = None,
    seeds_for_choosing: Sequence[int] = (),
    plan: float | None = None,
    sequential: bool = False,
) -> Summary:
    """Reads all runs below a folder and compares them.

    metric: as measured at each run's best epoch; None: the one that the runs monitored. group_by: the keys that make a
    row; None: all in which the runs differ. pivot: keys that make rows in any case. higher_is_better: of a metric whose
    direction no run has recorded. seeds_for_choosing: rank and compare by these seeds alone. plan: a difference to say
    the necessary seeds of. sequential: comparisons that may be looked at after every seed. UserError where there are no
    runs, or none that has the metric or the key.
    """
    found = find_runs(root)
    runs, notes = without_debugging(found)
    metric, remarks = choose_metric(metric, runs, root)
    others = [run for run in runs if run.state == "finished" and metric not in run.best]
    known = [run for run in runs if run.config and run not in others]
    varied, follow = varied_keys(known)
    keys = (
        (varied or naming_keys(known)) if group_by is None else [find_key(key, known, "group_by") for key in group_by]
    )
    keys = list(dict.fromkeys([*keys, *(find_key(key, known, "pivot") for key in pivot)]))
    rest = [key for key in varied if key not in keys]
    rows = make_rows(known, keys, rest)
    higher = direction(metric, [run for run in known if run.state == "finished"], higher_is_better)
    summary = Summary(root, metric, higher, keys, short_names(keys), rows, runs, sequential=sequential)
    summary.notes = notes + remarks + averaging(rows, rest) + (follow if group_by is None else [])
    fill(summary, [str(seed) for seed in seeds_for_choosing], plan)
    summary.notes += notes_on(rows, runs, others, metric)
    return summary


def without_debugging(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """(the runs but those that only tried whether something works, unless there are no others; a note on these)."""
    tried = [run for run in runs if run.value("name").startswith("debug_")]
    if not tried or len(tried) == len(runs):
        return runs, []
    return [run for run in runs if run not in tried], [f"left out: {count(tried)} whose name begins with debug_"]


def naming_keys(runs: Sequence[Run]) -> list[str]:
    """The keys that name the one row of runs that do not differ."""
    return [key for key in NAMING if any(key in run.config for run in runs)]


def choose_metric(metric: str | None, runs: Sequence[Run], root: Path) -> tuple[str, list[str]]:
    """(the metric that ranks the rows, what there is to say about it)."""
    finished = [run for run in runs if run.state == "finished"]
    monitors = Counter(run.monitor for run in finished)
    measured = list(dict.fromkeys(name for run in runs for name in run.best))
    if metric is None:
        if len(monitors) > 1:
            counts = ", ".join(f"{name} ({number})" for name, number in monitors.most_common())
            common = [name for name in measured if all(name in run.best for run in finished)]
            common.sort(key=lambda name: -monitors[name])
            advice = f"metric={common[0]}, which all of them have" if common else "a root with runs of one task"
            raise UserError(f"the runs below {root} monitor different metrics, {counts}; choose: {advice}")
        return next(iter(monitors), "result"), []
    if metric.startswith("test/"):
        raise UserError(f"metric is {metric}, but the test split decides no order; there is {', '.join(measured)}")
    if monitors and metric not in measured:
        near = nearest_name(metric, measured)
        hint = f"; did you mean {near}?" if near else ""
        raise UserError(f"metric is {metric}, but no run below {root} has it; there is {', '.join(measured)}{hint}")
    return metric, [f"{metric} is that of the epoch with the best {name}" for name in monitors if name != metric]


def direction(metric: str, runs: Sequence[Run], told: bool | None) -> bool:
    """Whether higher is better, as the runs have recorded it; UserError where they have not, and nobody has told."""
    name = metric.rpartition("/")[2]
    recorded = {run.higher[name] for run in runs if name in run.higher}
    if not recorded and name in HIGHER_IS_BETTER:
        recorded = {HIGHER_IS_BETTER[name]}
    if len(recorded) > 1:
        raise UserError(
            f"of {metric} some runs have recorded that higher is better and some that lower is: give a root each"
        )
    if told is not None and recorded not in (set(), {told}):
        raise UserError(
            f"higher_is_better is {str(told).lower()}, but the runs have recorded the opposite of {metric}; leave it out"
        )
    if not recorded and told is None and runs:
        raise UserError(
            f"which end of {metric} is the better one is recorded in none of these runs, so they have no order; "
            f"say higher_is_better=true or higher_is_better=false"
        )
    return recorded.pop() if recorded else bool(told)


# ---------------------------------------------------------------------------------------------------------- the numbers


@np.errstate(over="ignore", invalid="ignore")  # a loss may be 1e200; intervals that no float holds make no claim
def fill(summary: Summary, choosing: Sequence[str], plan: float | None) -> None:
    """Gives each row its results, puts the best first, compares the rows and notes what limits the comparison."""
    metric, higher = summary.metric, summary.higher
    if choosing and not any(seed in row.by_seed() for row in summary.rows for seed in choosing):
        raise UserError(
            f"seeds_for_choosing is [{','.join(choosing)}], but no run has finished with one of these seeds"
        )
    values = {id(row): row.metric(metric) for row in summary.rows}
    chosen = {key: {s: x for s, x in of.items() if not choosing or s in choosing} for key, of in values.items()}
    floor = resolution_of(summary.rows, metric)
    for row in summary.rows:
        if mine := chosen[id(row)]:
            row.result = estimate([*mine.values()], floor=floor)
            unseen = [x for seed, x in values[id(row)].items() if seed not in mine]
            row.unseen = estimate(unseen, floor=floor) if unseen else None
        for name, tested in row.tested().items():
            lacks = len(tested) < len(values[id(row)])
            row.test[name] = replace(estimate(tested), note=f" (n = {len(tested)})" * lacks)
    sign = -1 if higher else 1
    summary.rows.sort(key=lambda row: (row.result is None, sign * row.result.mean if row.result else 0.0))
    families = summary.by_data()
    for data, rows in families.items():
        family = [chosen[id(row)] for row in rows]
        compared = compare_with_best(family, higher=higher, floor=floor, sequential=summary.sequential)
        for row, comparison in zip(rows, compared, strict=True):
            row.standing, row.gap, row.verdict = comparison
            if len(families) > 1:
                row.verdict = (
                    row.verdict.replace("best", "best of its data", 1) if row.standing == "best" else row.verdict
                )
        summary.remarks += on_the_best(summary, rows, family, floor) + on_the_plan(
            family, plan, data_name(data) if len(families) > 1 else ""
        )
    if floor:
        summary.remarks.append(
            f"one validation example is {floor:.2g} of {metric}: no interval is narrower than ± that"
        )


def data_name(targets: frozenset[str]) -> str:
    """Datasets in a word."""
    return ", ".join(sorted(target.rpartition(".")[2] for target in targets))


def resolution_of(rows: Sequence[Row], metric: str) -> float:
    """The step of a metric that counts validation examples, the largest one of the datasets; 0 where it does not."""
    by_data = {row.data(): row for row in rows if row.counted}
    steps = []
    for data, row in by_data.items():
        values = [run.best[metric] for other in rows if other.data() == data for run in other.counted.values()]
        steps.append(resolution(values, read_num_validation(next(iter(row.counted.values())))))
    return max(steps, default=0.0)


def on_the_best(summary: Summary, rows: Sequence[Row], family: Sequence[dict[str, float]], floor: float) -> list[str]:
    """What the best row's own mean is worth, having been chosen for it."""
    if len(rows) < 2 or not rows[0].result:
        return []
    best, label = rows[0].result, summary.label(rows[0])
    digits = digits_for([best.mean])

    def shown(number: Estimate) -> str:
        return words(replace(number, digits=digits))

    if unseen := rows[0].unseen:
        return [f"{label} was chosen by {best.n} seeds; on the other {unseen.n} it has {shown(unseen)}, not flattered"]
    if honest := unflattered(family, floor=floor):
        how = f"an interval that holds for the chosen of {len(rows)}: {shown(honest)}"
        return [f"the mean of {label} is flattered, since it was chosen for it; {how}"]
    return []


def on_the_plan(family: Sequence[dict[str, float]], wanted: float | None, data: str) -> list[str]:
    """How many seeds a difference needs, and which difference these seeds show; data: the dataset, where there are more."""
    if wanted is None:
        return []
    if (plan := plan_seeds(family, wanted)) is None:
        return ["plan: there is no spread to plan by; it takes two rows with two seeds that differ"]
    (small, low, high), (n, few, many) = plan.smallest, plan.needed
    where = f" for {data}" if data else ""
    return [
        f"plan{where}: {plan.n} seeds show a difference of {small:.2g} in 80 of 100 studies ({low:.2g} to {high:.2g}, "
        f"as the spread is only estimated); a difference of {wanted:g} needs {n:,.0f} seeds ({few:,.0f} to {many:,.0f})"
    ]


# ------------------------------------------------------------------------------------------------------------ the notes


def averaging(rows: Sequence[Row], rest: Sequence[str]) -> list[str]:
    """What became of keys that vary within rows: only seeds are replicates."""
    if not any(row.num_combinations > 1 for row in rows):
        return []
    notes = [f"averaged within each seed, which alone is a replicate: {', '.join(rest)}"]
    short = [row for row in rows if len(row.by_seed()) < len({seed for seed, *_ in row.counted})]
    if short:
        rows_have = "1 row has" if len(short) == 1 else f"{len(short)} rows have"
        notes.append(f"warning: {rows_have} seeds without some of these combinations, which are left out")
    return notes


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
    return [f"warning: {count(runs)} {text}: {'; '.join(some)}{more}"] if runs else []


def count(runs: Sequence[Run]) -> str:
    return f"{len(runs)} run{'s' * (len(runs) > 1)}"
