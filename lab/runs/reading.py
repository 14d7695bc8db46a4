"""Run directories as they are read: whoever wrote them, in whatever state they are, and without executing anything."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from lab.runs.files import MOST_CURVE_BYTES, read_bytes, read_json, read_yaml
from utils import UserError, flatten

UNCOUNTED = ("incomplete", "failed", "diverged", "unreadable")  # the states of runs without a result
SIGNS = {
    "config.yaml",
    "status.json",
    "train.log",
}  # what is in no folder but a run's; a sweep's job begins with the last
ABSENT = "-"  # the value of a key that is not in a run's configuration
LEDGER = "test_openings.jsonl"  # a line for each time that a run's test split was opened


@dataclass
class Run:
    """What a run directory says; what is wrong with it is a `problem`, not an error."""

    path: str  # below the root
    directory: Path
    config: dict[str, str] = field(default_factory=dict)  # by dotted key; values as text
    state: str = "unreadable"
    ended: float = 0.0
    monitor: str = ""
    best: dict[str, float] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    higher: dict[str, bool] = field(default_factory=dict)  # whether higher is better, of metrics without their split
    num_tested: int = 0  # how often its test split was opened
    problem: str = ""

    def value(self, key: str) -> str:
        return self.config.get(key, ABSENT)


# What reading files can raise whose content may be anything.
DAMAGE = (
    UserError,
    OSError,
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def find_runs(root: Path) -> list[Run]:
    """All runs below a folder, those that ended before they had a config.yaml too; UserError where there are none."""
    directories = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if SIGNS & set(files):
            directories.append(Path(folder))
    if not directories:
        raise UserError(f"there are no runs below {root}: no folder in it holds a config.yaml or a status.json")
    return [read_run(directory, root) for directory in directories]


def read_run(directory: Path, root: Path) -> Run:
    """Reads a run directory in whatever state it is; nothing in it is executed."""
    run = Run(os.path.relpath(directory, root), directory)
    try:
        if not (directory / "config.yaml").exists():
            return read_unbegun(run)
        run.config = {printable(key): as_text(x) for key, x in flatten(read_yaml(directory / "config.yaml")).items()}
        run.num_tested = count_openings(directory)
        status = read_json(directory / "status.json")
        run.ended = datetime.fromisoformat(status["time"]).timestamp()
        if status["state"] == "finished":
            read_results(run)
        else:
            run.state = status["state"] if status["state"] in UNCOUNTED else "incomplete"
    except DAMAGE as error:
        run.problem = explain(error, directory)
    return run


def read_unbegun(run: Run) -> Run:
    """What a job left that ended before its run began: it has failed, or nobody could say so (yet)."""
    run.state = "incomplete"
    if (run.directory / "status.json").exists():
        run.state = "unreadable"
        status = read_json(run.directory / "status.json")
        if status["state"] != "failed":
            raise ValueError(f"config.yaml is missing, though its state is {status['state']}")
        run.state, run.problem = "failed", printable(" ".join(str(status["error"]).split()))[:120]
    return run


def read_results(run: Run) -> None:
    """Reads the metrics of a run that has finished, and those of its test split if they are there."""
    record = read_json(run.directory / "metrics.json")
    run.monitor = printable(record["monitor"])
    run.best, run.final = finite_metrics(record["best"]), finite_metrics(record["final"])
    directions = record.get("higher_is_better", {})
    run.higher = {printable(name): is_higher for name, is_higher in directions.items() if isinstance(is_higher, bool)}
    if run.monitor not in run.best:
        raise ValueError(f"metrics.json holds no finite {run.monitor}")
    run.state = "finished"
    if (run.directory / "evaluation.json").exists():
        evaluation = read_json(run.directory / "evaluation.json")
        if evaluation["epoch"] != record["best"]["epoch"]:
            raise ValueError("evaluation.json is older than the best epoch: run evaluate.py again")
        run.test = {name: x for name, x in finite_metrics(evaluation).items() if name.startswith("test/")}


def count_openings(directory: Path) -> int:
    """How often a run's test split was opened; of a run from before that was noted, at least once where it has a result."""
    if (directory / LEDGER).exists():
        return read_bytes(directory / LEDGER).count(b"\n")
    return int((directory / "evaluation.json").exists())


def explain(error: BaseException, directory: Path) -> str:
    """What is wrong with a run, in a few words."""
    text = str(error) if isinstance(error, (UserError, ValueError)) else f"{type(error).__name__}: {error}"
    return printable(" ".join(text.replace(f"{directory}{os.sep}", "").split()))[:120]


def as_text(value: Any) -> str:
    """A value of a configuration as text, which is the same for 1 and 1.0."""
    if isinstance(value, bool):
        return str(value).lower()
    return format(value, ".12g") if isinstance(value, float) else printable(str(value))


def printable(text: str) -> str:
    """Text that no terminal acts on: control characters, and what is no character at all, become "?"."""
    return "".join(character if character.isprintable() else "?" for character in text)


def finite_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a record, as far as they are finite numbers."""
    numbers = {name: float(x) for name, x in record.items() if "/" in name and isinstance(x, (int, float))}
    return {printable(name): x for name, x in numbers.items() if math.isfinite(x)}


def read_curve(run: Run) -> dict[int, dict[str, float]]:
    """The metrics of each epoch, from metrics.jsonl; lines that are damaged are left out, and are the run's problem."""
    curve: dict[int, dict[str, float]] = {}
    try:
        text = read_bytes(run.directory / "metrics.jsonl", most=MOST_CURVE_BYTES).decode(errors="replace")
    except OSError as error:
        run.problem = f"metrics.jsonl cannot be read: {error.strerror}"
        return curve
    except UserError as error:
        run.problem = explain(error, run.directory)
        return curve
    for line in text.splitlines():
        try:
            record = json.loads(line)
            epoch, step, seconds = (float(record.get(name, 0)) for name in ("epoch", "step", "seconds"))
            if not (0 < epoch < 2**53 and 0 <= step < 2**53 and 0 <= seconds < 2**53):  # else no integer holds them
                raise ValueError("no counts")
            curve[int(epoch)] = finite_metrics(record) | {"step": step, "seconds": seconds}
        except DAMAGE:
            run.problem = "metrics.jsonl has damaged lines"
    return curve


def read_num_validation(run: Run) -> int | None:
    """How many examples a run was validated on, as its train.log says; None where it does not."""
    with contextlib.suppress(OSError, UserError):
        text = read_bytes(run.directory / "train.log", most=MOST_CURVE_BYTES).decode(errors="replace")
        if found := re.search(r"training and ([\d,]+) validation examples", text):
            return int(found[1].replace(",", "")) or None
    return None
