"""A launcher that kills a sweep's jobs on their way, to show that nothing is lost: `experiment=survival` names it."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra_plugins.pool_launcher import PoolLauncher
from omegaconf import DictConfig

if TYPE_CHECKING:
    from lab.sweeps.pool import Ended, Job


class KillingLauncher(PoolLauncher):
    """Kills (SIGKILL) the process of a job as soon as it has logged each of the steps `kills`, and starts it again."""

    def __init__(self, n_jobs: Any, jobs_per_gpu: Any, kills: Any, killed: Any) -> None:
        """kills: steps; killed: whether a job is, for a sweep to vary: it is read in each job's own configuration."""
        super().__init__(n_jobs, jobs_per_gpu)
        self.kills = kills

    def run(self, jobs: Sequence[Job], configs: dict[Path, DictConfig]) -> list[Ended]:
        """Kills the jobs that have not finished, then lets all run to their ends, as the pool does."""
        from lab.config.schema import Count, check_value

        check_value(self.kills, list[Count], where="hydra.launcher.kills")
        for job in [job for job in jobs if job.best is None and configs[job.directory].hydra.launcher.killed]:
            if job.anew:
                (job.directory / "train.log").unlink(missing_ok=True)
            for number, step in enumerate(sorted(self.kills), start=1):
                if not kill_after(step, job, self.n_jobs):
                    break
                configs[job.directory].rerun = False  # what begins anew does so once
                print(f"killed  {number} of {len(self.kills)} times, after step {last_step(job.directory)}", flush=True)
        return super().run(jobs, configs)


def kill_after(step: int, job: Job, n_jobs: int) -> bool:
    """Starts a job, and kills its process once it has logged that step; whether that is how it ended.

    train.log then tells of it.
    """
    from lab.devices.processes import reason_of
    from lab.runs.provenance import code_state
    from lab.sweeps.pool import end, start, threads_for

    log = job.directory / "train.log"
    before = log.stat().st_size if log.exists() else 0
    running = start(job, threads=threads_for(n_jobs), gpus=(), code=code_state())
    try:
        while not running.child.has_ended():
            if last_step(job.directory, start=before) >= step:
                running.child.process.kill()
            time.sleep(0.001)
    finally:
        ended = end(running)
    if ended.error != reason_of(-signal.SIGKILL):
        return False
    with log.open("a") as file:
        file.write(f"\nkilled (SIGKILL) after step {last_step(job.directory)}\n")
    return True


def last_step(directory: Path, *, start: int = 0) -> int:
    """The latest step that a run's train.log tells of, from byte `start` on."""
    log = directory / "train.log"
    steps = re.findall(rb"^step +(\d+) .*\n", log.read_bytes()[start:] if log.exists() else b"", re.MULTILINE)
    return int(steps[-1]) if steps else 0
