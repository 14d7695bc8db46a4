"""A sweep: many jobs, of which those that have not finished run; shows how they are doing, and says what came out.

python train.py -m model=mlp,cnn optimizer.lr=1e-3,1e-2 seed=0,1,2 name=lr_study
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab.runs.directory import is_of_other_code, what_is_left
from lab.runs.logger import last_record
from lab.runs.provenance import code_state
from lab.sweeps.pool import Ended, Job, Running, run_pool
from utils import UserError, here, nothing

# ---------------------------------------------------------------------------------------------------------- what is seen


class Overview:
    """How a sweep is doing: on a terminal a few lines that are drawn again and again, elsewhere a line for each event."""

    def __init__(self, *, total: int, num_finished: int) -> None:
        self.total, self.num_finished = total, num_finished
        self.num_done = self.num_failed = self.num_drawn = 0
        self.started = time.monotonic()
        self.is_live = sys.stdout.isatty()

    def say(self, line: str) -> None:
        """A line that stays."""
        self.erase()
        print(line, flush=True)

    def start(self, one: Running) -> None:
        if not self.is_live:
            self.say(f"start   {one.job.label}")

    def end(self, one: Ended) -> None:
        self.num_done += one.error is None
        self.num_failed += one.error is not None
        if one.error is not None:
            self.say(f"failed  {one.job.label}: {one.error}")
        elif not self.is_live:
            self.say(f"done    {one.job.label}: {shown(one.best or {})} ({one.seconds:.1f} s, {self.count()})")

    def count(self) -> str:
        return f"{self.num_finished + self.num_done}/{self.total}"

    def draw(self, running: Sequence[Running]) -> None:
        """Draws the lines of a terminal: the numbers, then each running job with its latest epoch."""
        if not self.is_live:
            return
        records = [last_record(one.job.directory) for one in running]
        epochs = [one.job.cfg.trainer.epochs for one in running]
        width, height = shutil.get_terminal_size()
        lines = [f"{self.count()} done, {len(running)} running, {self.num_failed} failed{self.left(records, epochs)}"]
        for one, record, num_epochs in zip(running, records, epochs, strict=True):
            lines.append(f"  {one.job.label}  epoch {record.get('epoch', 0)}/{num_epochs}  {shown(record)}")
        self.erase()
        lines = [line[: width - 1] for line in lines[: height - 1]]
        print("\n".join(lines), flush=True)
        self.num_drawn = len(lines)

    def left(self, records: Sequence[dict[str, Any]], epochs: Sequence[int]) -> str:
        """The time that the rest takes if it goes on as it went; nothing before the first epoch's end."""
        ended = self.num_done + self.num_failed
        parts = sum(record.get("epoch", 0) / number for record, number in zip(records, epochs, strict=True))
        if ended + parts == 0:
            return ""
        to_do = self.total - self.num_finished - ended - parts
        seconds = round((time.monotonic() - self.started) / (ended + parts) * to_do)
        return f", about {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"

    def erase(self) -> None:
        if self.num_drawn:
            print(f"\x1b[{self.num_drawn}F\x1b[J", end="", flush=True)
        self.num_drawn = 0


def shown(record: dict[str, Any]) -> str:
    """The validation metrics of a record."""
    return "  ".join(f"{name} {value:.4f}" for name, value in record.items() if name.startswith("val/"))


# ----------------------------------------------------------------------------------------------------------- the sweep


def check_directories(jobs: Sequence[Job]) -> None:
    """UserError where two jobs would write the same directory."""
    owners: dict[Path, Job] = {}
    for job in jobs:
        other = owners.setdefault(job.directory, job)
        if other is not job:
            raise UserError(f"{here(job.directory)} would be written by two jobs: {other.label}, and {job.label}")


def describe(jobs: Sequence[Job]) -> None:
    """Says what is finished and what a sweep would do."""
    for job in jobs:
        to_do = "starts anew" if job.anew else what_is_left(job.directory)
        print(f"{here(job.directory)} {'has finished already' if job.best is not None else to_do}")
    num_finished = sum(job.best is not None for job in jobs)
    print(f"{len(jobs)} jobs: {num_finished} have finished, {len(jobs) - num_finished} would run")
    note_other_code(jobs)


def run_sweep(
    jobs: Sequence[Job],
    *,
    n_jobs: int,
    gpus: Sequence[str],
    preload: Sequence[str],
    on_start: Callable[[Job], Any] = nothing,
    on_end: Callable[[Ended], Any] = nothing,
) -> list[Ended]:
    """Runs the jobs that have not finished, and shows how they are doing; what came out of those."""
    missing = what_is_missing(jobs)
    overview = Overview(total=len(jobs), num_finished=len(jobs) - len(missing))

    def start(one: Running) -> None:
        overview.start(one)
        on_start(one.job)

    def end(one: Ended) -> None:
        overview.end(one)
        on_end(one)

    try:
        ended = run_pool(
            missing, n_jobs=n_jobs, gpus=gpus, preload=preload, on_start=start, on_end=end, on_wait=overview.draw
        )
    except KeyboardInterrupt:
        overview.say(f"stopped at {overview.count()} jobs; the same command goes on from here")
        raise
    overview.erase()
    report(jobs, ended)
    return ended


def what_is_missing(jobs: Sequence[Job]) -> list[Job]:
    """The jobs that have not finished; says which have."""
    for job in jobs:
        if job.best is not None and not sys.stdout.isatty():
            print(f"{here(job.directory)} has finished already")
    note_other_code(jobs)
    return [job for job in jobs if job.best is None]


def report(jobs: Sequence[Job], ended: Sequence[Ended]) -> None:
    """Says what came out of a sweep whose missing jobs have ended."""
    print_tables(jobs)
    failed = [one for one in ended if one.error is not None]
    num_ran, num_finished = len(ended) - len(failed), len(jobs) - len(ended)
    print(f"{len(jobs)} jobs: {num_finished} were finished, {num_ran} ran, {len(failed)} failed")
    for one in failed:
        print(f"  {one.job.label}: {one.error}\n    {here(one.job.directory / 'train.log')}")


def print_tables(jobs: Sequence[Job]) -> None:
    """Compares all runs of a sweep's experiment, those of earlier sweeps too."""
    from lab.tables.summary import summarize
    from lab.tables.text import format_terminal

    for folder in dict.fromkeys(Path(job.cfg.experiments_dir, job.cfg.name) for job in jobs):
        with contextlib.suppress(UserError):  # where no run has finished
            print(f"\n{format_terminal(summarize(folder))}\n")


def note_other_code(jobs: Sequence[Job]) -> None:
    """Says how many of the finished runs were made with other code than there is now, if any were."""
    code, finished = code_state()[0], [job for job in jobs if job.best is not None]
    if others := sum(is_of_other_code(job.directory, code) for job in finished):
        runs = f"{others} of the {len(finished)} finished runs" if len(finished) > 1 else "the finished run"
        print(f"made with other code than there is now: {runs}; rerun=true starts the sweep anew")
