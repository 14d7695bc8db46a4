"""Hydra's launcher for Ray: the jobs of a sweep on this machine or a cluster.

hydra-ray-launcher cannot be installed beside joblib (of scikit-learn): it wants a cloudpickle below 3, joblib one above.
This one has the same keys, without the cloud.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, env_override, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

ConfigStore.instance().store(
    group="hydra/launcher",
    name="ray",
    node={"_target_": "hydra_plugins.ray_launcher.RayLauncher", "ray": {"init": {}, "remote": {}}},
)


class RayLauncher(Launcher):
    """Runs each job of a sweep as a task of Ray."""

    def __init__(self, ray: Any) -> None:
        self.options = ray

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if importlib.util.find_spec("ray") is None:
            from utils import UserError

            raise UserError("hydra/launcher=ray is not installed: pip install ray")
        self.context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs; what came out of each, in their order. A process that dies takes its own job down alone."""
        import ray

        with env_override({"RAY_USAGE_STATS_ENABLED": "0"}):
            ray.init(**self.options["init"])
        try:
            run = ray.remote(**self.options["remote"])(run_one)
            fixed = (self.context, self.config, self.task_function, Singleton.get_state())
            tasks = [run.remote(list(one), initial_job_idx + i, *fixed) for i, one in enumerate(job_overrides)]
            return [result_of(ray, task) for task in tasks]
        finally:
            ray.shutdown()


def run_one(
    overrides: list[str],
    index: int,
    context: HydraContext,
    config: DictConfig,
    task_function: TaskFunction,
    state: dict[Any, Any],
) -> JobReturn:
    """Runs one job, in a process of Ray's."""
    setup_globals()
    Singleton.set_state(state)
    job_config = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job_config):
        job_config.hydra.job.id = job_config.hydra.job.num = index
    HydraConfig.instance().set_config(job_config)
    return run_job(
        hydra_context=context,
        task_function=task_function,
        config=job_config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def result_of(ray: Any, task: Any) -> JobReturn:
    """What a task of Ray's returns, or the failure that its process's death is."""
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        return JobReturn(status=JobStatus.FAILED, _return_value=error)
