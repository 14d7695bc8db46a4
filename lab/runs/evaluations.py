"""Runs that are evaluated: which ones are meant, what is said of them, and how often their test split was opened."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lab.runs.loading import find_run
from lab.runs.lock import held
from lab.runs.reading import LEDGER, printable
from utils import PROJECT, Unmet, UserError, write_json, writing


def named_runs(run: str | Sequence[str]) -> list[Path]:
    """The run directories of a list, or of a pattern such as experiments/study/*/*; [] for the name of one.

    UserError where a pattern matches none, or a name of a list is that of none.
    """
    if isinstance(run, str):
        return matching(run) if is_pattern(run) else []
    if not run:
        raise UserError("run is an empty list; name a run directory, or a pattern: run='experiments/study/*/*'")
    return list(
        dict.fromkeys(one for name in run for one in (matching(name) if is_pattern(name) else [find_run(name)]))
    )


def is_pattern(name: str) -> bool:
    """Whether a name stands for others, and is not that of a folder itself."""
    return glob.has_magic(name) and not any(folder.is_dir() for folder in (Path(name), PROJECT / name))


def matching(pattern: str) -> list[Path]:
    """The run directories that a pattern matches, from here or else from the project's folder; UserError for none."""
    for start in (Path(), PROJECT):
        names = glob.glob(pattern, root_dir=start, recursive=True)  # noqa: PTH207  Path's takes no absolute pattern
        paths = sorted(start / name for name in names)
        if found := [path for path in paths if (path / "config.yaml").is_file()]:
            return found
    raise UserError(f"run is {pattern}, which matches no run directory; runs are in {PROJECT / 'experiments'}")


def evaluate_each(runs: Sequence[Path], evaluate: Callable[[Path], dict[str, Any]], *, split: str) -> Iterator[str]:
    """Evaluates runs one after the other: a line each, and one file of all beside them; a bad run ends no other.

    Raises Unmet at the end where there was one.
    """
    folder = Path(os.path.commonpath([path.absolute().parent for path in runs]))
    numbers: dict[str, Any] = {}
    for run in runs:
        name = os.path.relpath(run, folder)
        try:
            result = evaluate(run)
        except Exception as error:
            if not getattr(error, "for_user", False):
                raise
            numbers[name] = {"problem": " ".join(str(error).split())}
            yield printable(f"{name}  not evaluated: {numbers[name]['problem']}")
            continue
        numbers[name] = {key: x for key, x in result.items() if isinstance(x, (int, float, str))}
        yield printable(f"{name}  {metrics_line(result, split)}")
    with held(folder, "evaluation"):
        write_json(folder / "evaluations.json", numbers)
    yield f"written: {folder / 'evaluations.json'}"
    if failed := sum("problem" in one for one in numbers.values()):
        raise Unmet(f"{failed} of {len(runs)} runs could not be evaluated")


def metrics_line(result: Mapping[str, Any], split: str) -> str:
    """The metrics of an evaluation in one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in result.items() if name.startswith(f"{split}/"))


def note_opening(directory: Path, *, checkpoint: str, epoch: int) -> None:
    """Adds a line to the ledger of a run: its test split is opened now, which is to be done rarely."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    with writing(directory / LEDGER), (directory / LEDGER).open("a") as file:
        file.write(json.dumps({"time": now, "checkpoint": checkpoint, "epoch": epoch}) + "\n")


def format_report(report: dict[str, dict[str, float | None]]) -> str:
    """The class report as lines of text."""
    width = max(len(name) for name in [*report, "class"])
    lines = [f"{'class':<{width}}  precision  recall      f1  support"]
    for name, row in report.items():
        cells = [f"{row[key]:.4f}" if row[key] is not None else "-" for key in ("precision", "recall", "f1")]
        lines.append(f"{name:<{width}}  {cells[0]:>9}  {cells[1]:>6}  {cells[2]:>6}  {row['support']:>7}")
    return "\n".join(lines)
