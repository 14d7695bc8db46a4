"""A sweep: many jobs, of which those that have not finished run; says what came out.

python train.py -m model=mlp,cnn optimizer.lr=1e-3,1e-2 seed=0,1,2 name=lr_study
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab.config.quoting import path_typed
from lab.runs.directory import is_of_other_code, what_is_left
from lab.sweeps.overview import Overview
from lab.sweeps.pool import Ended, Job, Running, run_pool
from utils import UserError, here, hint, nothing


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
    overview = Overview(total=len(jobs), num_finished=len(jobs) - len(missing), n_jobs=n_jobs)
    for job in jobs:
        overview.note(job, job.best or {})

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
    folders = dict.fromkeys(Path(job.cfg.experiments_dir, job.cfg.name) for job in jobs)
    print(
        "next    "
        + "\n        ".join(f"{hint('synthesize_results.py')} {path_typed('root', folder)}" for folder in folders)
    )


def print_tables(jobs: Sequence[Job]) -> None:
    """Compares all runs of a sweep's experiment, those of earlier sweeps too."""
    from lab.tables.summary import summarize
    from lab.tables.text import format_terminal

    for folder in dict.fromkeys(Path(job.cfg.experiments_dir, job.cfg.name) for job in jobs):
        with contextlib.suppress(UserError):  # where no run has finished
            print(f"\n{format_terminal(summarize(folder))}\n")


def note_other_code(jobs: Sequence[Job]) -> None:
    """Says how many of the finished runs were made with other code than there is now, if any were."""
    finished = [job for job in jobs if job.best is not None]
    if others := sum(is_of_other_code(job.directory, job.cfg) for job in finished):
        runs = f"{others} of the {len(finished)} finished runs" if len(finished) > 1 else "the finished run"
        print(f"made with other code than there is now: {runs}; rerun=true starts the sweep anew")
