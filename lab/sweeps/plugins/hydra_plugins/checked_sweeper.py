"""Hydra's own sweeper, whose jobs are checked before the first one starts, whichever launcher runs them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from lab.config.command import refuse_launchers
from lab.config.schema import check_value
from lab.config.values import Count
from lab.sweeps.launcher import CheckedLauncher
from lab.sweeps.other_launcher import OtherLauncher

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="checked",
    node={"_target_": "hydra_plugins.checked_sweeper.CheckedSweeper", "max_batch_size": None, "params": None},
)


class CheckedSweeper(BasicSweeper):
    """Runs every combination of values, as Hydra's does, with a launcher of ours between it and one that is not."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        check_value(self.max_batch_size, Count | None, where="hydra.sweeper.max_batch_size")
        HydraConfig.instance().set_config(config)  # a launcher's options may name the sweep's folder
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if self.launcher is not None and not isinstance(self.launcher, CheckedLauncher):
            self.launcher = OtherLauncher(self.launcher)
            self.launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Composes nothing: our launchers compose all jobs, and check them, before the first one starts."""

    def sweep(self, arguments: list[str]) -> None:
        """Hydra records a sweep in its folder before anything is checked; of one that is refused, nothing stays."""
        assert self.config is not None
        refuse_launchers()
        record = Path(self.config.hydra.sweep.dir).absolute() / "multirun.yaml"
        before = (record.read_bytes(), record.stat()) if record.is_file() else None
        made = [folder for folder in record.parents if not folder.exists()]
        try:
            super().sweep(arguments)
        except (Exception, SystemExit):  # refused, or a dry run; where a job has begun, its folder is there too
            if before is not None:
                content, status = before
                record.write_bytes(content)
                os.utime(record, ns=(status.st_atime_ns, status.st_mtime_ns))
            elif [path.name for path in record.parent.glob("*")] == [record.name]:
                record.unlink()
                for folder in made:
                    folder.rmdir()
            raise
