"""A pool of processes: runs jobs, so many at a time, each in a process of its own, and says what came out of each.

Apart from sweep.py because nothing here knows what the jobs have to do with one another: a search runs its trials here too.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from lab.devices.processes import LOST, Child, reason_of, warm_up
from lab.devices.signals import Interrupted, StopSignals
from lab.runs import provenance
from lab.runs.files import read_json
from lab.runs.lock import locked
from lab.runs.logger import last_record, write_status
from utils import UserError, nothing

# Imported once, in the process from which all jobs are forked; torch._dynamo is what every optimiser imports when made.
PRELOADED = [
    "lab.sweeps.pool",
    "lab.plots.classification",
    "lab.plots.training",
    "torch._dynamo",
    "torch.utils.tensorboard",
]
SECONDS_TO_STOP = 30.0  # for a job that was asked to


@dataclass(frozen=True)
class Job:
    """A run to make.

    train: does so, and returns the metrics of its best epoch; pickled, and called in the job's own process
    anew: whatever its directory holds; label: what to call it; best: what came out, if nothing is left to do.
    """

    cfg: DictConfig
    directory: Path
    overrides: Sequence[str] = ()
    train: Callable[[], dict[str, float]] | None = None
    anew: bool = False
    label: str = ""
    best: dict[str, float] | None = None


@dataclass
class Running:
    """A job under way; written: when its directory's status was, before it began."""

    job: Job
    child: Child
    gpus: Sequence[str] = ()
    written: int = 0

    def stop(self) -> None:
        """Asks the job to end; it records that it was interrupted, and can go on from there."""
        self.child.has_ended()
        self.child.send_signal(signal.SIGINT)


@dataclass(frozen=True)
class Ended:
    """What came out of a job: the metrics of its best epoch, or the reason why there are none, in one line.

    was_asked: a signal has ended it, so that it can go on where it stopped.
    """

    job: Job
    best: dict[str, float] | None
    error: str | None
    seconds: float
    was_asked: bool = False


def run_pool(
    jobs: Iterable[Job],
    *,
    n_jobs: int,
    gpus: Sequence[str] = (),
    preload: Sequence[str] = (),
    on_start: Callable[[Running], Any] = nothing,
    on_end: Callable[[Ended], Any] = nothing,
    on_wait: Callable[[list[Running]], Any] = nothing,
) -> list[Ended]:
    """Runs jobs, `n_jobs` at a time; what came out of each, in the order in which they ended.

    A job is taken from `jobs` when there is room for it, after `on_end` was told of those before: a generator may wait
    with what it proposes for what came out. No job's end ends another; an interruption of this process stops all.
    gpus: what CUDA_VISIBLE_DEVICES may name; each job sees as many of them as it has devices. preload: see warm_up_for.
    """
    waiting, running, ended = iter(jobs), list[Running](), list[Ended]()
    code = provenance.code_state()  # of what is imported now; the files may change while the jobs run
    warm_up_for(n_jobs, preload)
    with StopSignals() as stops:
        try:
            while True:
                while stops.noted is None and len(running) < n_jobs and (job := next(waiting, None)) is not None:
                    taken = [gpu for one in running for gpu in one.gpus]
                    free = sorted(gpus, key=taken.count)[: job.cfg.trainer.devices]
                    running.append(start(job, threads=threads_for(n_jobs), gpus=free, code=code))
                    on_start(running[-1])
                if stops.noted is not None:
                    raise Interrupted(stops.noted)
                if not running:
                    return ended
                wait([stops.reader, *(handle for one in running for handle in one.child.handles())], timeout=0.3)
                on_wait(running)
                for one in [one for one in running if one.child.has_ended()]:
                    running.remove(one)
                    ended.append(end(one))
                    on_end(ended[-1])
        finally:
            stop(running)  # a second signal ends the waiting for them


def num_cpus() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_for(n_jobs: int) -> int:
    """The threads of one of `n_jobs` jobs. Nothing else decides: sums of floats depend on how many add them up."""
    return max(1, num_cpus() // n_jobs)


def visible_gpus() -> list[str]:
    """The CUDA devices that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return named[:count] or [str(index) for index in range(count)]


def warm_up_for(n_jobs: int, preload: Sequence[str] = ()) -> None:
    """Has imported once what all jobs need, and the modules `preload`: goes on for seconds, beside this process."""
    warm_up(threads_for(n_jobs), [*PRELOADED, *preload])


def start(job: Job, *, threads: int, gpus: Sequence[str], code: Any) -> Running:
    """Starts the process of a job."""
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    written = last_written(job.directory)
    child = Child(train_quietly, job.train, job.directory, code, threads=threads, environment=visible)
    return Running(job, child, gpus, written)


def train_quietly(train: Callable[[], Any], directory: Path, code: Any) -> Any:
    """In the process of a job: makes its run, of that state of the code; what it says of errors goes to train.log alone."""
    directory.mkdir(parents=True, exist_ok=True)
    os.dup2(os.open(directory / "train.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    faulthandler.enable()
    provenance.use(code)
    try:
        return train()
    except UserError as error:
        print(error, file=sys.stderr)
        raise


def end(one: Running) -> Ended:
    """What came out of a job whose process has ended; a death that nobody recorded is recorded now."""
    outcome, seconds = one.child.outcome, time.monotonic() - one.child.started
    assert outcome is not None
    one.child.close()
    was_asked = outcome.signum is not None
    if outcome.error is not None:
        if outcome.error == reason_of(LOST):
            time.sleep(1)  # for die_with_parent to let go of the directory
        record_failure(one.job.directory, outcome.error, pid=one.child.pid, since=one.written, was_asked=was_asked)
    return Ended(one.job, outcome.value, outcome.error, seconds, was_asked)


def last_written(directory: Path) -> int:
    """When a run directory last told how its run is doing; 0 where it never did."""
    path = directory / "status.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def record_failure(directory: Path, error: str, *, pid: int | None, since: int, was_asked: bool = False) -> None:
    """Makes status.json true where the run's own processes could not; a directory that another one holds is left alone.

    since: what `last_written` was before the run began: an end that was recorded later stands. was_asked: to stop.
    """
    with contextlib.suppress(UserError, OSError), locked(directory):
        path = directory / "status.json"
        state = read_json(path).get("state") if last_written(directory) != since else "running"
        if state == "running" or (state == "interrupted" and not was_asked):  # a network may call sys.exit()
            record = last_record(directory)
            epoch, step = record.get("epoch", 0), record.get("step", 0)
            write_status(directory, "failed", epoch=epoch, step=step, error=error, pid=pid)


def stop(running: Sequence[Running]) -> None:
    """Stops jobs: they are asked to, and killed if they do not; at once if someone interrupts the waiting."""
    for one in running:
        one.stop()
    deadline = time.monotonic() + SECONDS_TO_STOP
    try:
        for one in running:
            one.child.process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for one in running:
            one.child.close()
