"""Rows of runs that agree in all but their seed: what was varied, under which names, and the values of each row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from lab.config.schema import nearest_name
from lab.runs.reading import ABSENT, Run
from lab.tables.cells import Estimate
from lab.tables.comparisons import NO_CLAIM
from utils import UserError

# Keys that say where and how a run is recorded, not what it computes: they make no rows.
RECORDING = {"name", "seed", "resume", "experiments_dir", "data.root", "data.num_workers"}
RECORDING |= {f"trainer.{key}" for key in ("images", "animate", "profile", "log_every", "fail_above")}
NAMING = ("model._target_", "data._target_")  # of a table in which nothing varies


@dataclass
class Row:
    """Runs that agree in all keys that make a row.

    Its replicates are seeds alone. Where other keys vary within it, a seed's value is the mean over their combinations,
    and a seed that lacks one of those counts for nothing.
    """

    values: list[str]  # of the keys that make a row, as short as they can be told apart
    runs: list[Run]
    counted: dict[tuple[str, ...], Run]  # of each seed and combination of what varies besides, the last to finish
    result: Estimate | None = None
    unseen: Estimate | None = None  # of seeds that did not choose the best row
    test: dict[str, Estimate] = field(default_factory=dict)
    gap: Estimate | None = None  # from the best row
    standing: str = NO_CLAIM
    verdict: str = ""

    @property
    def num_combinations(self) -> int:
        return len({case[1:] for case in self.counted})

    def by_seed(self) -> dict[str, list[Run]]:
        """The runs of each seed that has all combinations."""
        found, num_combinations = defaultdict(list), self.num_combinations
        for (seed, *_), run in self.counted.items():
            found[seed].append(run)
        return {seed: runs for seed, runs in found.items() if len(runs) == num_combinations}

    def metric(self, name: str) -> dict[str, float]:
        """A metric by seed."""
        return {seed: fmean(run.best[name] for run in runs) for seed, runs in self.by_seed().items()}

    def tested(self) -> dict[str, list[float]]:
        """The values of each test metric, one for each seed whose runs all have it."""
        found = defaultdict(list)
        for runs in self.by_seed().values():
            for name in runs[0].test:
                if all(name in run.test for run in runs):
                    found[name].append(fmean(run.test[name] for run in runs))
        return dict(found)

    def data(self) -> frozenset[str]:
        """The datasets of its runs."""
        return frozenset(run.value("data._target_") for run in self.counted.values())


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
    """Rows of the runs that agree in `keys`; `rest` are the keys that vary within a row besides the seed."""
    groups = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.ended):
        groups[tuple(run.value(key) for key in keys)].append(run)
    columns = [shorten(key, column) for key, column in zip(keys, zip(*groups, strict=True), strict=bool(groups))]
    rows = []
    for values, members in sorted(groups.items()):
        finished = [run for run in members if run.state == "finished"]
        counted = {(run.value("seed"), *map(run.value, rest)): run for run in finished}
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
