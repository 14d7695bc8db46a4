"""Hydra's other launchers behind `python train.py -m hydra/launcher=...`, with our checks and run directories."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, env_override
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from lab.sweeps.launcher import CheckedLauncher

if TYPE_CHECKING:
    from lab.sweeps.pool import Ended, Job


class OtherLauncher(CheckedLauncher):
    """Gives the jobs of a sweep that have not finished to another launcher, and says what came out of them."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.name = HydraConfig.get().runtime.choices["hydra/launcher"]

    def run(self, jobs: Sequence[Job], configs: dict[Path, DictConfig]) -> list[Ended]:
        """Runs the jobs that have not finished, and says so; what came out of those."""
        from lab.sweeps.pool import last_written
        from lab.sweeps.sweep import report, what_is_missing
        from utils import Unmet

        missing = what_is_missing(jobs)
        before = {job.directory: last_written(job.directory) for job in missing}
        returns: Sequence[JobReturn | None] = [None] * len(missing)
        complaint = ""
        try:
            if missing:
                print(f"{len(missing)} jobs go to {self.name}", flush=True)
                returns = self.hand_over(missing)
        except KeyboardInterrupt:
            print(f"stopped waiting for {self.name}, whose jobs may go on; the same command takes up what is left")
            raise
        except Exception as error:  # of the launcher, or of a job's process that died
            complaint = f"{self.name} says: {type(error).__name__}: {one_line(error)}"
            if before == {directory: last_written(directory) for directory in before}:  # not one job has started
                raise Unmet(complaint) from error
        ended = []
        for job, told in zip(missing, returns, strict=True):
            has_started = last_written(job.directory) != before[job.directory]
            ended.append(what_came_out(job, told, complaint, has_started=has_started))
        report(jobs, ended)
        return ended

    def hand_over(self, jobs: Sequence[Job]) -> Sequence[JobReturn]:
        """Has the other launcher run the jobs, in processes that find our modules; what it was told of each."""
        from lab.config.command import PLUGINS
        from lab.sweeps.task import Task, when_started
        from utils import PROJECT

        task = Task(
            self.task_function,
            argv=tuple(sys.argv),
            swept=frozenset(self.swept),
            replaced={job.directory: when_started(job.directory) for job in jobs if job.anew},
            threads=threads_of(self.config.hydra.launcher),
            has_company=self.name != "basic",
        )
        self.launcher.setup(hydra_context=self.context, task_function=task, config=self.config)
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH"), str(PLUGINS)]))
        with env_override({"PYTHONPATH": path}):
            return self.launcher.launch([list(job.overrides) for job in jobs], initial_job_idx=0)


def threads_of(options: DictConfig) -> int:
    """The threads of a job: the processors that a launcher's options give it or, where they do not, its share of all."""
    from lab.sweeps.pool import num_cpus, threads_for

    for key in ("cpus_per_task", "ray.remote.num_cpus"):
        if cpus := OmegaConf.select(options, key):
            return max(1, int(cpus))
    n_jobs = OmegaConf.select(options, "n_jobs") or 1
    return threads_for(n_jobs if n_jobs > 0 else max(1, num_cpus() + 1 + n_jobs))  # as joblib has it: -1 is all


def one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]


def what_came_out(job: Job, told: JobReturn | None, complaint: str, *, has_started: bool) -> Ended:
    """What came out of a job: what its launcher was told or, where that lost track of it, what its directory tells."""
    from lab.runs.directory import finished_result
    from lab.runs.files import read_json
    from lab.sweeps.pool import Ended, record_failure

    if told is not None and told.status == JobStatus.COMPLETED:
        return Ended(job, told.return_value, None, seconds=0)
    if told is None and not has_started:
        return Ended(job, None, f"has not started; {complaint}", seconds=0)
    if told is None and (best := finished_result(job.cfg, job.directory)) is not None:
        return Ended(job, best, None, seconds=0)
    error = one_line(told._return_value) if told is not None else f"its process died; {complaint}"
    if has_started:
        status = read_json(job.directory / "status.json")
        if status["state"] == "running":  # and a process holds the directory, unless it died
            record_failure(job.directory, error, pid=status["pid"], since=0)
            status = read_json(job.directory / "status.json")
        if told is None:
            error = status["error"] or f"{status['state']}; {complaint}"
    return Ended(job, None, error, seconds=0)
