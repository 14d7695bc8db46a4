"""The sheet for the paper: what a reproducibility checklist asks for, in sentences, and nothing that is not recorded.

After the checklists of NeurIPS and of Pineau et al. (2021), "Improving Reproducibility in Machine Learning Research".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from lab.runs.files import read_bytes
from lab.runs.reading import ABSENT, DAMAGE, MOST_CURVE_BYTES, UNCOUNTED, Run, printable
from lab.tables.content import in_order
from lab.tables.facts import computing, provenance_of
from lab.tables.formats import escape_markdown
from lab.tables.summary import Summary, data_name
from utils import flatten


def to_paper(summary: Summary) -> str:
    """The sheet in Markdown, a section for each question that the records can answer."""
    sections = {
        "Data": data(summary),
        "Selection": selection(summary),
        "Search": search(summary),
        "Statistics": statistics(summary),
        "Computing": machines(summary),
        "Code": code(summary),
    }
    texts = [
        f"## {title}\n\n{escape_markdown(printable(' '.join(lines)))}\n" for title, lines in sections.items() if lines
    ]
    title = escape_markdown(printable(summary.root.absolute().name))
    return "\n".join([f"# For the paper: {title}\n", *texts])


def data(summary: Summary) -> list[str]:
    """The datasets, their splits and whether all runs saw the same data."""
    lines = []
    for targets, rows in summary.by_data().items():
        runs = [run for row in rows for run in row.counted.values()]
        sizes = {found for run in runs if (found := sizes_of(run))}
        hashes = {str(provenance_of(run).get("data_sha256")) for run in runs} - {"None"}
        line = f"{data_name(targets)}"
        if len(sizes) == 1:
            training, validation = sizes.pop()
            line += f": {training} training and {validation} validation examples"
        for key in ("data.val_fraction", "data.split_seed"):
            if values := {run.value(key) for run in runs} - {ABSENT}:
                line += f", {key} {listed(values)}"
        if hashes:
            same = f"the same data in all runs, with the SHA-256 {min(hashes)[:16]}"
            line += f"; {same if len(hashes) == 1 else f'{len(hashes)} different states of the data'}"
        lines.append(line + ".")
    return lines


def sizes_of(run: Run) -> tuple[str, str] | None:
    """How many training and validation examples a run's log names."""
    try:
        text = read_bytes(run.directory / "train.log", most=MOST_CURVE_BYTES).decode(errors="replace")
    except DAMAGE:
        return None
    found = re.search(r"([\d,]+) training and ([\d,]+) validation examples", text)
    return (found[1], found[2]) if found else None


def selection(summary: Summary) -> list[str]:
    """By what epochs and rows were chosen."""
    finished = [run for run in summary.runs if run.state == "finished"]
    monitors = Counter(run.monitor for run in finished)
    better = "higher" if summary.higher else "lower"
    lines = [f"Of each run the epoch with the best {name} counts ({number} runs)." for name, number in monitors.items()]
    lines.append(f"Rows are ranked by their mean {summary.metric}, of which {better} is better.")
    tested = sum(bool(run.test) for run in finished)
    if tested:
        lines.append(f"The test split decided nothing; {tested} of {len(finished)} finished runs were evaluated on it.")
    else:
        lines.append("No run was evaluated on a test split.")
    return lines


def search(summary: Summary) -> list[str]:
    """What was varied, over which values, with how many runs and seeds."""
    lines = []
    for index, name in enumerate(summary.names):
        values = sorted({row.values[index] for row in summary.rows}, key=in_order)
        many = f"{len(values)} values from {values[0]} to {values[-1]}"
        lines.append(f"{name}: {listed(values) if len(values) <= 12 else many}.")
    counts = Counter(run.state for run in summary.runs)
    states = ", ".join(f"{counts[state]} {state}" for state in ("finished", *UNCOUNTED) if counts[state])
    seeds = sorted({run.value("seed") for run in summary.runs if run.config}, key=in_order)
    lines.append(
        f"{len(summary.runs)} runs ({states}) of {len(summary.rows)} configurations, with the seeds {listed(seeds)}."
    )
    return lines


def statistics(summary: Summary) -> list[str]:
    """Which intervals and comparisons stand in the table, and how many of them."""
    sizes = sorted({row.result.n for row in summary.rows if row.result})
    if not sizes:
        return []
    seeds = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
    lines = [f"Means over {seeds} seeds, with 95% intervals of Student's t."]
    gaps = [row for row in summary.rows if row.gap and row.gap.half is not None]
    if gaps:
        how = "of a t-martingale, valid after every seed" if summary.sequential else "of Tukey and Kramer's procedure"
        worse = sum(row.standing == "worse" for row in gaps)
        lines.append(
            f"{len(gaps)} comparisons with the best of their dataset, whose intervals {how} hold together; "
            f"{worse} are significantly worse, {len(gaps) - worse} cannot be told from it."
        )
    remarks = [remark for remark in summary.remarks if not remark.startswith("plan")]
    return [*lines, *(f"{remark[0].upper()}{remark[1:]}." for remark in remarks)]


def machines(summary: Summary) -> list[str]:
    """Time, devices and versions."""
    records = [flatten(provenance_of(run)) for run in summary.runs]
    lines = [f"{computing(summary)}."]
    for name, key in (("Devices", "device"), ("Python", "python")):
        if values := counted(records, key):
            lines.append(f"{name}: {values}.")
    packages = dict.fromkeys(key for record in records for key in record if key.startswith("packages."))
    versions = [
        f"{key.removeprefix('packages.')} {listed({str(r[key]) for r in records if key in r})}" for key in packages
    ]
    return lines + [f"Packages: {', '.join(versions)}."] * bool(versions)


def code(summary: Summary) -> list[str]:
    """The commits of the runs, and how many had changes that a patch in the run directory records."""
    records = [provenance_of(run) for run in summary.runs]
    commits = counted(records, "git_commit")
    changed = sum(bool(record.get("git_patch_sha256")) for record in records)
    if not commits:
        return []
    patches = (
        f"{changed} of {len(records)} had uncommitted changes, recorded in their uncommitted.patch." if changed else ""
    )
    return [f"Commit {commits}.", *[patches] * bool(patches)]


def counted(records: Sequence[dict[str, Any]], key: str) -> str:
    """The values of a key, with the number of runs of each where there are several."""
    counts = Counter(printable(str(record[key])) for record in records if record.get(key))
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ({number} runs)" for value, number in counts.most_common(6))


def listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(values, key=in_order))
