"""The launcher behind `python train.py -m`: checks all jobs before the first one starts, then runs what is missing.

Hydra finds launchers in packages called hydra_plugins, and executes this file by itself, outside of Python's imports:
it imports ours only when it is used, and whatever others could want of it is in sweep.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from sweep import Ended, Job

ConfigStore.instance().store(
    group="hydra/launcher",
    name="pool",
    node={
        "_target_": "hydra_plugins.pool_launcher.PoolLauncher",
        "n_jobs": None,  # at a time; null: one for each processor or, where there are GPUs, jobs_per_gpu for each of them
        "jobs_per_gpu": 1,
    },
)


class PoolLauncher(Launcher):
    """Runs each job of a sweep in a process of its own, and those that have finished not again."""

    def __init__(self, n_jobs: Any, jobs_per_gpu: Any) -> None:
        self.n_jobs, self.jobs_per_gpu = n_jobs, jobs_per_gpu

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from conf.schema import Count, check_value
        from sweep import num_cpus, threads_for, visible_gpus, warm_up

        check_value(self.n_jobs, Count | None, where="hydra.launcher.n_jobs")
        check_value(self.jobs_per_gpu, Count, where="hydra.launcher.jobs_per_gpu")
        self.swept = swept_keys(config)
        hydra_context.config_loader = ComposedOnce(hydra_context.config_loader, self.label_of)  # type: ignore[assignment]
        self.context, self.task_function, self.config = hydra_context, task_function, config
        HydraConfig.instance().set_config(config)  # the sweeper asks next for the folder, hence for a name not given
        self.gpus = visible_gpus() if config.trainer.device in ("auto", "cuda") else []
        check_value(config.trainer.devices, Count, where="trainer.devices")
        num_at_once = len(self.gpus) * self.jobs_per_gpu or num_cpus()
        self.n_jobs = self.n_jobs or max(1, num_at_once // config.trainer.devices)
        if config.dry_run is not True:
            warm_up(threads_for(self.n_jobs))  # goes on for seconds, in which the jobs are composed

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs; what came out of each, in their order. UserError, before any starts, for a mistake in one."""
        from sweep import check_directories, describe, run_sweep
        from utils import Unmet

        setup_globals()
        configs = [self.compose(overrides, initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
        labels = [self.label_of(overrides) for overrides in job_overrides]
        jobs = [self.plan(config, label) for config, label in zip(configs, labels, strict=True)]
        check_directories(jobs)
        if self.config.dry_run:
            describe(jobs)
            sys.exit(0)  # here, since callbacks draw what has run

        returns = {job.directory: to_return(job, config) for job, config in zip(jobs, configs, strict=True)}
        config_of = {job.directory: config for job, config in zip(jobs, configs, strict=True)}

        def start(job: Job) -> None:
            config = config_of[job.directory]
            self.context.callbacks.on_job_start(config=config, task_function=self.task_function)

        def end(one: Ended) -> None:
            job_return = returns[one.job.directory]
            job_return.return_value = one.best if one.error is None else Unmet(one.error)
            job_return.status = JobStatus.COMPLETED if one.error is None else JobStatus.FAILED
            self.context.callbacks.on_job_end(config=config_of[one.job.directory], job_return=job_return)

        failed = run_sweep(jobs, n_jobs=self.n_jobs, gpus=self.gpus, on_start=start, on_end=end)
        for one in failed:  # Hydra's sweeper raises the first of them
            returns[one.job.directory].return_value = Unmet(f"{len(failed)} of {len(jobs)} jobs failed")
        return list(returns.values())

    def compose(self, overrides: Sequence[str], index: int) -> DictConfig:
        """The configuration of a job, Hydra's own part included."""
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = index
        return config

    def label_of(self, overrides: Sequence[str]) -> str:
        """What to call a job: its values of what the sweep varies."""
        return " ".join(one for one in overrides if one.partition("=")[0] in self.swept) or " ".join(overrides)

    def plan(self, config: DictConfig, label: str) -> Job:
        """The job of a configuration that was checked; an error about it says which job it is in."""
        from conf.command import checked, typed_overrides
        from conf.schema import TrainRequest
        from run_directory import finished_result, plan
        from sweep import Job

        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)
        try:
            ask = checked(without_hydra(config), TrainRequest)
            overrides = typed_overrides()
            cfg, directory = plan(ask, overrides)
            best = finished_result(cfg, directory)
        except Exception as error:
            error.add_note(label)
            raise
        finally:
            HydraConfig.instance().cfg = before
        return Job(cfg, directory, overrides, label=label, anew=ask.rerun, best=None if ask.rerun else best)


class ComposedOnce:
    """A config loader that composes a job once, though the sweeper asks to check it and the launcher to run it."""

    def __init__(self, loader: Any, label_of: Callable[[Sequence[str]], str]) -> None:
        self.loader, self.label_of = loader, label_of
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        key = tuple(sweep_overrides)
        if key not in self.composed:
            try:
                self.composed[key] = self.loader.load_sweep_config(master_config, sweep_overrides)
            except Exception as error:
                error.add_note(self.label_of(sweep_overrides))
                raise
        return self.composed[key]


def swept_keys(config: DictConfig) -> set[str]:
    """The keys that a sweep gives several values, as they are typed; those of a preset come from its sweeper's."""
    typed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    return {one.get_key_element() for one in typed if one.is_sweep_override()} | {str(key) for key in params}


def without_hydra(config: DictConfig) -> DictConfig:
    """A composed configuration without Hydra's own part."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def to_return(job: Job, config: DictConfig) -> JobReturn:
    """What Hydra wants to know of a job, as far as it is known before the job has run."""
    return JobReturn(
        overrides=list(job.overrides),
        cfg=job.cfg,
        hydra_cfg=OmegaConf.masked_copy(config, ["hydra"]),
        working_dir=str(Path.cwd()),
        task_name=config.hydra.job.name,
        status=JobStatus.COMPLETED,
        _return_value=job.best,
    )
