"""Two runs side by side: what differs between them, from what is typed to the first epoch at which they part."""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path

from lab.runs.files import read_text
from lab.runs.reading import DAMAGE, Run, as_text, printable, read_curve, read_run
from lab.tables.facts import provenance_of
from lab.tables.rows import varied_keys
from utils import UserError, flatten

# What tells two equal runs apart, and the code, which has a section of its own.
TIMES = {"command", "started", "git_patch_sha256", "code_sha256", "resumed", "seconds"}
MOST_LINES = 40  # of a difference of code


def describe_difference(first: Path, second: Path) -> list[str]:
    """What differs between two runs, by subject, in lines; "identical" where nothing does. UserError for what is no run."""
    a, b = (readable(path) for path in (first, second))
    sections = {
        "configuration": configurations(a, b),
        "code": codes(a, b),
        "environment and data": environments(a, b),
        "metrics": metrics(a, b),
    }
    lines = [f"a  {printable(str(first))}: {a.state}", f"b  {printable(str(second))}: {b.state}"]
    for title, found in sections.items():
        if found:
            lines += ["", title, *("  " + line for line in found)]
    return (
        lines
        if any(sections.values())
        else [*lines, "", "identical: configuration, code, environment, data and metrics"]
    )


def readable(path: Path) -> Run:
    """The run in a folder; UserError where there is none, or it cannot be read."""
    if not (path / "config.yaml").is_file():
        raise UserError(f"diff has {path}, which is no run directory: there is no config.yaml in it")
    run = read_run(path, path)
    if not run.config:
        raise UserError(f"diff has {path}, which cannot be read: {run.problem}")
    return run


def configurations(a: Run, b: Run) -> list[str]:
    """The keys that differ, without those that follow others; where and how a run is recorded is no difference."""
    keys, notes = varied_keys([a, b])
    seed = ["seed"] if a.value("seed") != b.value("seed") else []
    return [f"{key}: {a.value(key)} | {b.value(key)}" for key in [*seed, *keys]] + notes


def codes(a: Run, b: Run) -> list[str]:
    """The commits where they differ, and the difference of the uncommitted changes."""
    records = [provenance_of(run) for run in (a, b)]
    commits = [str(record.get("git_commit") or "not recorded")[:12] for record in records]
    lines = [f"commit: {' | '.join(map(printable, commits))}"] if commits[0] != commits[1] else []
    one, other = (record.get("code_sha256") for record in records)
    if isinstance(one, dict) and isinstance(other, dict):
        changed = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
        lines += [f"{printable(name)}: another file" for name in changed[:MOST_LINES]]
    names = "a/uncommitted.patch", "b/uncommitted.patch"
    changes = list(difflib.unified_diff(patch_of(a), patch_of(b), *names, lineterm="", n=0))
    more = [f"... and {len(changes) - MOST_LINES} lines more"] if len(changes) > MOST_LINES else []
    return lines + [printable(line) for line in changes[:MOST_LINES]] + more


def patch_of(run: Run) -> list[str]:
    """The lines of the changes that were not committed when a run began."""
    with contextlib.suppress(*DAMAGE):
        return read_text(run.directory / "uncommitted.patch").splitlines()
    return []


def environments(a: Run, b: Run) -> list[str]:
    """What the runs' machines, packages and data differ in."""
    one, other = (
        {key: value for key, value in flatten(provenance_of(run)).items() if key.partition(".")[0] not in TIMES}
        for run in (a, b)
    )
    keys = [key for key in dict.fromkeys([*one, *other]) if key != "git_commit" and one.get(key) != other.get(key)]
    return [
        f"{printable(key)}: {as_text(one.get(key, 'not recorded'))} | {as_text(other.get(key, 'not recorded'))}"
        for key in keys
    ]


def metrics(a: Run, b: Run) -> list[str]:
    """The metrics of the best epochs that differ, the better one marked, and the first epoch at which the curves part."""
    lines = []
    for name in dict.fromkeys([*a.best, *a.test, *b.best, *b.test]):
        one, other = ((run.best | run.test).get(name) for run in (a, b))
        if one is None or other is None or one == other:
            if one != other:
                lines.append(f"{name}: {shown(one)} | {shown(other)}")
            continue
        higher = a.higher.get(name.rpartition("/")[2])
        if higher != b.higher.get(name.rpartition("/")[2]):
            higher = None
        whose = "" if higher is None else f", better in {'a' if (one > other) == higher else 'b'}"
        lines.append(f"{name}: {shown(one)} | {shown(other)} ({other - one:+.4g}{whose})")
    return lines + parting(a, b)


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def parting(a: Run, b: Run) -> list[str]:
    """The first epoch whose metrics differ, or at which one of the runs ends."""
    curves = [
        {
            epoch: {name: x for name, x in values.items() if name not in TIMES}
            for epoch, values in read_curve(run).items()
        }
        for run in (a, b)
    ]
    for epoch in sorted(curves[0].keys() | curves[1].keys()):
        one, other = (curve.get(epoch) for curve in curves)
        if one is None or other is None:
            return [f"equal up to epoch {epoch - 1}, the last one of {'a' if one is None else 'b'}"]
        if parts := [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]:
            return [f"they part in epoch {epoch}, in {', '.join(parts)}"]
    return []
