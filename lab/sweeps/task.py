"""What other launchers run: Hydra's task function for one job of a sweep that was checked, wherever it was taken.

It is pickled, and found again by this module's name: in a process on another machine, which has the same project.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from hydra.types import TaskFunction
from omegaconf import DictConfig

from lab.config.command import typed_overrides
from lab.devices.processes import tell
from lab.runs.files import read_json
from lab.sweeps.launcher import job_of, label_of
from lab.sweeps.overview import judged_by, shorten, shown
from lab.sweeps.pool import last_written, record_failure
from utils import Unmet, UserError


@dataclass(frozen=True)
class Task:
    """Trains the job whose configuration Hydra composed; the metrics of its best epoch.

    task_function: what trains, as Hydra gave it to the launcher
    argv: the sweep's command; swept: the keys that it varies; threads: of this job
    replaced: the directories whose runs are to begin anew, with when_started of what is in them
    has_company: others print where this one would, which then says the most in train.log alone
    """

    task_function: TaskFunction
    argv: tuple[str, ...]
    swept: frozenset[str]
    replaced: Mapping[Path, str | None]
    threads: int
    has_company: bool

    def __call__(self, cfg: DictConfig) -> dict[str, float]:
        job = job_of(cfg, label_of(typed_overrides(), self.swept))
        if job.best is not None:  # since the sweep was launched, for another of its kind
            return job.best
        print(f"start   {shorten(job.label)}", flush=True)
        started, since = time.monotonic(), last_written(job.directory)
        try:
            best = self.train(cfg, job.directory)
        except Exception as error:
            text = record(error, job.directory, since)
            print(f"failed  {job.label}: {text}", flush=True)
            raise Unmet(text) from None  # which any process can unpickle
        except KeyboardInterrupt:
            if not self.has_company:
                raise
            raise Unmet("interrupted") from None
        numbers = shown(best, first=judged_by(job.directory)[0])
        print(f"done    {numbers}  {time.monotonic() - started:.1f} s  {shorten(job.label)}", flush=True)
        return best

    def train(self, cfg: DictConfig, directory: Path) -> dict[str, float]:
        """Trains as the sweep's command asks, with this job's threads; leaves the process as it was to the next job."""
        # Not twice: a cluster may start a job again, which then goes on.
        cfg.rerun = self.replaced.get(directory, "") == when_started(directory)
        argv, threads = sys.argv, torch.get_num_threads()
        sys.argv = list(self.argv)
        torch.set_num_threads(self.threads)
        try:
            with said_in_log(directory) if self.has_company else contextlib.nullcontext():
                return self.task_function(cfg)
        finally:
            sys.argv = argv
            torch.set_num_threads(threads)


def when_started(directory: Path) -> str | None:
    """When the run of a directory began, as it was recorded; None where there is none."""
    with contextlib.suppress(UserError, KeyError):
        return read_json(directory / "provenance.json")["started"]
    return None


def record(error: Exception, directory: Path, since: int) -> str:
    """What ended a job, in one line; recorded in train.log and, unless that was done since then, in status.json."""
    with open_log(directory) as log, contextlib.redirect_stderr(log):
        outcome = tell(error)
        if outcome.is_for_user:
            print(outcome.error, file=log)
    record_failure(directory, str(outcome.error), pid=os.getpid(), since=since)
    return str(outcome.error)


@contextlib.contextmanager
def said_in_log(directory: Path) -> Iterator[None]:
    """Sends to train.log what is said of errors; the rest of what is printed is written there anyway."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open_log(directory))))
        yield


def open_log(directory: Path) -> TextIO:
    directory.mkdir(parents=True, exist_ok=True)
    return (directory / "train.log").open("a", buffering=1)
