"""A pool of processes: runs jobs, so many at a time, each in a process of its own, and says what came out of each.

Apart from sweep.py because nothing here knows what the jobs have to do with one another: a search runs its trials here too.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from hydra.core.utils import env_override
from omegaconf import DictConfig
from tqdm import tqdm

from lab.config.command import PLUGINS
from lab.devices.signals import Interrupted, StopSignals, die_with_parent
from lab.runs import provenance
from lab.runs.lock import locked
from lab.runs.logger import last_record, write_status
from lab.runs.provenance import code_state
from train import start as start_training
from utils import PROJECT, UserError, nothing, read_json

# Imported once, in the process from which all jobs are forked; torch._dynamo is what every optimiser imports when made.
PRELOADED = [
    "lab.sweeps.pool",
    "lab.plots.classification",
    "lab.plots.training",
    "torch._dynamo",
    "torch.utils.tensorboard",
]
LOST = 255  # what multiprocessing takes for the exit code of a process that nobody can tell it of
SECONDS_TO_STOP = 30.0  # for a job that was asked to
forking = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Job:
    """A run to make.

    anew: whatever its directory holds; label: what to call it; best: what came out, if nothing is left to do.
    """

    cfg: DictConfig
    directory: Path
    overrides: Sequence[str] = ()
    anew: bool = False
    label: str = ""
    best: dict[str, float] | None = None


@dataclass
class Running:
    """A job under way."""

    job: Job
    process: ForkServerProcess
    results: Connection
    gpus: Sequence[str] = ()
    started: float = field(default_factory=time.monotonic)

    def stop(self) -> None:
        """Asks the job to end; it records that it was interrupted, and can go on from there."""
        if self.process.is_alive() and self.process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGINT)


@dataclass(frozen=True)
class Ended:
    """What came out of a job: the metrics of its best epoch, or the reason why there are none, in one line."""

    job: Job
    best: dict[str, float] | None
    error: str | None
    seconds: float


# ----------------------------------------------------------------------------------------------------------- the pool


def run_pool(
    jobs: Iterable[Job],
    *,
    n_jobs: int,
    gpus: Sequence[str] = (),
    on_start: Callable[[Running], Any] = nothing,
    on_end: Callable[[Ended], Any] = nothing,
    on_wait: Callable[[list[Running]], Any] = nothing,
) -> list[Ended]:
    """Runs jobs, `n_jobs` at a time; what came out of each, in the order in which they ended.

    A job is taken from `jobs` when there is room for it, after `on_end` was told of those before: a generator may wait
    with what it proposes for what came out. No job's end ends another; an interruption of this process stops all.
    gpus: what CUDA_VISIBLE_DEVICES may name; each job sees as many of them as it has devices.
    """
    waiting, running, ended = iter(jobs), list[Running](), list[Ended]()
    code = code_state()  # of what is imported now; the files may change while the jobs run
    with StopSignals() as stops:
        try:
            while True:
                if stops.noted is not None:
                    raise Interrupted(stops.noted)
                while len(running) < n_jobs and (job := next(waiting, None)) is not None:
                    taken = [gpu for one in running for gpu in one.gpus]
                    free = sorted(gpus, key=taken.count)[: job.cfg.trainer.devices]
                    running.append(start(job, threads=threads_for(n_jobs), gpus=free, code=code))
                    on_start(running[-1])
                if not running:
                    return ended
                wait([stops.reader, *(one.process.sentinel for one in running)], timeout=0.3)
                on_wait(running)
                for one in [one for one in running if not one.process.is_alive()]:
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


def warm_up(threads: int) -> None:
    """Starts, unless it is there, the process that imports everything once and from which jobs are forked."""
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH"), str(PLUGINS)])),
        "OMP_NUM_THREADS": str(threads),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # counting devices otherwise is a first use of CUDA, which no fork survives
    }
    resource_tracker.ensure_running()  # on its own: starting it unblocks signals
    forkserver.set_forkserver_preload(PRELOADED)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: a job listens when it is ready to
    try:
        with env_override(environment):
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def start(job: Job, *, threads: int, gpus: Sequence[str], code: Any) -> Running:
    """Forks the process of a job."""
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} | visible
    results, sender = forking.Pipe(duplex=False)
    process = forking.Process(target=work, args=(job, environment, threads, code, sender))
    warm_up(threads)
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")  # else each job would run the script up to its `main()`
    try:
        process.start()
    finally:
        sys.modules["__main__"] = main
        sender.close()
    return Running(job, process, results, gpus)


def end(one: Running) -> Ended:
    """What came out of a job whose process has ended; a death that nobody recorded is recorded now."""
    one.process.join()
    result: dict[str, Any] = {}
    with contextlib.suppress(EOFError, OSError):
        if one.results.poll():
            result = one.results.recv()
    one.results.close()
    best, error = result.get("best"), result.get("error")
    if best is None:
        if one.process.exitcode == LOST:
            time.sleep(1)  # for die_with_parent to let go of the directory
        error = error or reason_of(one.process.exitcode or 0)
        record_failure(one.job.directory, one.process.pid or 0, error)
    seconds = time.monotonic() - one.started
    one.process.close()
    return Ended(one.job, best, error, seconds)


def reason_of(code: int) -> str:
    """Why a process ended that said nothing itself."""
    if code == -signal.SIGKILL:
        return "killed (SIGKILL), by someone or by a system out of memory"
    if code == LOST:
        return "lost: the process that it was forked from was killed"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"ended with code {code}, and said nothing"


def record_failure(directory: Path, pid: int, error: str) -> None:
    """Makes status.json true where process `pid` could not; a directory that another process holds is left alone."""
    with contextlib.suppress(UserError, OSError), locked(directory):
        path = directory / "status.json"
        status = read_json(path) if path.exists() else {}
        if status.get("pid") != pid or status.get("state") == "running":
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
            one.process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for one in running:
            one.process.kill()
            one.process.join()


# ---------------------------------------------------------------------------------------------- in the process of a job


def work(job: Job, environment: dict[str, str], threads: int, code: Any, results: Connection) -> None:
    """Does a job, and sends what came out: {"best": metrics} or {"error": a line}."""
    try:
        os.setsid()  # Ctrl-C reaches the parent, which asks its jobs to stop: once, not twice
        threading.Thread(target=die_with_parent, daemon=True).start()
        write_to_log(job.directory)
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(threads)
        tqdm.set_lock(threading.RLock())  # its own is one for many processes, and outlives a job that is killed
        provenance.code_state = lambda: code
        signal.signal(signal.SIGINT, interrupt_once)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        best = start_training(job.cfg, job.directory, job.overrides, anew=job.anew)
        results.send({"best": best})
    except KeyboardInterrupt:
        results.send({"error": "interrupted"})
        sys.exit(130)
    except Exception as error:
        results.send({"error": tell(error)})
        sys.exit(1)


def tell(error: Exception) -> str:
    """What ended a job, in one line; on stderr too, with a traceback unless it is a mistake of the user's."""
    text = " ".join(str(error).split())[:300]
    if getattr(error, "for_user", False):
        print(text, file=sys.stderr)
    else:
        traceback.print_exc()
        text = f"{type(error).__name__}: {text}"
    return text


def write_to_log(directory: Path) -> None:
    """Sends to train.log what this process says of errors, crashes included; the rest is written there anyway."""
    directory.mkdir(parents=True, exist_ok=True)
    os.dup2(os.open(directory / "train.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    faulthandler.enable()


def interrupt_once(*_: Any) -> None:
    """Raises KeyboardInterrupt the first time: what is written because of it is not to be interrupted in turn."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
