"""The launcher behind `python train.py -m`: runs each job of a sweep in a process of its own, several at a time.

Hydra finds launchers in packages called hydra_plugins, and executes this file by itself, outside of Python's imports:
it imports ours only when it is used, and whatever others could want of it is in pool.py and sweep.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from lab.sweeps.launcher import CheckedLauncher, to_return

if TYPE_CHECKING:
    from lab.sweeps.pool import Ended, Job

ConfigStore.instance().store(
    group="hydra/launcher",
    name="pool",
    node={
        "_target_": "hydra_plugins.pool_launcher.PoolLauncher",
        "n_jobs": None,  # at a time; null: one for each processor or, where there are GPUs, jobs_per_gpu for each of them
        "jobs_per_gpu": 1,
    },
)


class PoolLauncher(CheckedLauncher):
    """Runs each job of a sweep in a process of its own, and those that have finished not again."""

    def __init__(self, n_jobs: Any, jobs_per_gpu: Any) -> None:
        self.n_jobs, self.jobs_per_gpu = n_jobs, jobs_per_gpu

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from lab.config.schema import Count, check_value
        from lab.sweeps.pool import num_cpus, visible_gpus, warm_up_for

        check_value(self.n_jobs, Count | None, where="hydra.launcher.n_jobs")
        check_value(self.jobs_per_gpu, Count, where="hydra.launcher.jobs_per_gpu")
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.gpus = visible_gpus() if config.trainer.device in ("auto", "cuda") else []
        check_value(config.trainer.devices, Count, where="trainer.devices")
        num_at_once = len(self.gpus) * self.jobs_per_gpu or num_cpus()
        self.n_jobs = self.n_jobs or max(1, num_at_once // config.trainer.devices)
        if config.dry_run is not True:
            warm_up_for(self.n_jobs, [task_function.__module__])  # goes on while the jobs are composed

    def run(self, jobs: Sequence[Job], configs: dict[Path, DictConfig]) -> list[Ended]:
        """Runs the jobs that have not finished, and shows how they are doing; what came out of those."""
        from lab.sweeps.sweep import run_sweep
        from utils import Unmet

        def start(job: Job) -> None:
            self.context.callbacks.on_job_start(config=configs[job.directory], task_function=self.task_function)

        def end(one: Ended) -> None:
            job_return = to_return(one.job, configs[one.job.directory])
            job_return.return_value = one.best if one.error is None else Unmet(one.error)
            job_return.status = JobStatus.COMPLETED if one.error is None else JobStatus.FAILED
            self.context.callbacks.on_job_end(config=configs[one.job.directory], job_return=job_return)

        preload = [self.task_function.__module__]
        return run_sweep(jobs, n_jobs=self.n_jobs, gpus=self.gpus, preload=preload, on_start=start, on_end=end)
