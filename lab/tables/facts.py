"""What a report was made from: when, by which command, from which code, and what the computing came to."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections import Counter
from datetime import datetime
from typing import Any

from lab.runs.files import read_json
from lab.runs.reading import DAMAGE, Run, printable, read_curve
from lab.tables.summary import Summary


def computing(summary: Summary) -> str:
    """The time that the epochs of all runs took."""
    seconds = [sum(epoch["seconds"] for epoch in read_curve(run).values()) for run in summary.runs]
    lost = sum(s for s, run in zip(seconds, summary.runs, strict=True) if run.state != "finished")
    whereof = f", of them {hours(lost)} in runs that did not finish" if lost else ""
    return f"{hours(sum(seconds))} of epochs that ended{whereof}"


def facts_of(summary: Summary) -> list[tuple[str, str]]:
    """(name, value) of each: date, command, code, hours of computing with those of failed and killed runs."""
    commits = Counter(commit for run in summary.runs if (commit := commit_of(run)))
    code = ", ".join(f"{commit} ({number} of {len(summary.runs)} runs)" for commit, number in commits.most_common(5))
    return [
        ("made", datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")),
        ("command", printable(shlex.join(["python", *sys.argv]))),
        ("code", code + f" and {len(commits) - 5} more" * (len(commits) > 5) or "not recorded"),
        ("computing", computing(summary)),
    ]


def hours(seconds: float) -> str:
    """A length of time in the unit that suits it."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} seconds"


def commit_of(run: Run) -> str:
    """The commit of a run's code, with a mark where it was changed; nothing where that is not recorded."""
    record = provenance_of(run)
    commit = record.get("git_commit")
    return printable(str(commit))[:10] + " with changes" * bool(record.get("git_patch_sha256")) if commit else ""


def provenance_of(run: Run) -> dict[str, Any]:
    """What provenance.json holds; nothing where it cannot be read."""
    with contextlib.suppress(*DAMAGE):
        if isinstance(record := read_json(run.directory / "provenance.json"), dict):
            return record
    return {}
