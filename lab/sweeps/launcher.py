"""What our launchers do before anything runs: compose and check all jobs, and find out which have finished.

Apart from the launchers: Hydra executes their files at each start, but none whose name begins with "_". What needs
torch is imported only when it is used.
"""

from __future__ import annotations

import contextlib
import sys
from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from lab.sweeps.pool import Ended, Job


class CheckedLauncher(Launcher):
    """Checks all jobs of a sweep before the first one starts; how those that have not finished run is a subclass's own."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.swept = swept_keys(config)
        self.context, self.task_function, self.config = hydra_context, task_function, config
        HydraConfig.instance().set_config(config)  # the sweeper asks next for the folder, hence for a name not given

    @abstractmethod
    def run(self, jobs: Sequence[Job], configs: dict[Path, DictConfig]) -> list[Ended]:
        """Runs the jobs that have not finished, and says so; what came out of those. configs: by the job's directory."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs; what came out of each, in their order. UserError, before any starts, for a mistake in one."""
        from lab.sweeps.sweep import check_directories, describe
        from utils import Unmet

        setup_globals()
        configs = [self.compose(overrides, initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
        labels = [label_of(overrides, self.swept) for overrides in job_overrides]
        jobs = [plan_job(self.task_function, config, label) for config, label in zip(configs, labels, strict=True)]
        check_directories(jobs)
        if self.config.dry_run:
            describe(jobs)
            sys.exit(0)  # here, since callbacks draw what has run

        returns = {job.directory: to_return(job, config) for job, config in zip(jobs, configs, strict=True)}
        ended = self.run(jobs, {job.directory: config for job, config in zip(jobs, configs, strict=True)})
        failed = [one for one in ended if one.error is not None]
        for one in ended:
            returns[one.job.directory].return_value = one.best
        if failed:  # Hydra is about to raise, and then tells nobody that the sweep has ended
            self.context.callbacks.on_multirun_end(config=self.config)
        for one in failed:  # Hydra's sweeper raises the first of them
            returns[one.job.directory].status = JobStatus.FAILED
            returns[one.job.directory].return_value = Unmet(f"{len(failed)} of {len(jobs)} jobs failed")
        return list(returns.values())

    def compose(self, overrides: Sequence[str], index: int) -> DictConfig:
        """The configuration of a job, Hydra's own part included."""
        try:
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        except Exception as error:
            error.add_note(label_of(overrides, self.swept))
            raise
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = index
        return config


def swept_keys(config: DictConfig) -> set[str]:
    """The keys that a sweep gives several values, as they are typed; those of a preset come from its sweeper's."""
    typed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    return {one.get_key_element() for one in typed if one.is_sweep_override()} | {str(key) for key in params}


def label_of(overrides: Sequence[str], swept: Collection[str]) -> str:
    """What to call a job: its values of what the sweep varies."""
    return " ".join(one for one in overrides if one.partition("=")[0] in swept) or " ".join(overrides)


def plan_job(task_function: TaskFunction, config: DictConfig, label: str) -> Job:
    """The job of a composed configuration, which is checked; an error about it says which job it is in."""
    with known_to_hydra(config):
        try:
            return replace(job_of(without_hydra(config), label), train=partial(run_task, task_function, config))
        except Exception as error:
            error.add_note(label)
            raise


@contextlib.contextmanager
def known_to_hydra(config: DictConfig) -> Iterator[None]:
    """While it is open, Hydra's own part of a composed configuration is the one that functions ask Hydra for."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


def run_task(task_function: TaskFunction, config: DictConfig) -> Any:
    """Does a job, in a process of its own: what Hydra's task function returns for a composed configuration."""
    setup_globals()
    with known_to_hydra(config):
        return task_function(without_hydra(config))


def job_of(config: DictConfig, label: str) -> Job:
    """The job of a configuration without Hydra's own part, which Hydra knows already."""
    from lab.config.command import checked, typed_overrides
    from lab.config.schema import TrainRequest
    from lab.runs.directory import plan
    from lab.sweeps.pool import Job

    ask, overrides = checked(config, TrainRequest), typed_overrides()
    cfg, directory, best = plan(ask, overrides)
    return Job(cfg, directory, overrides, label=label, anew=ask.rerun, best=None if ask.rerun else best)


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
