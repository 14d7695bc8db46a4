"""Where runs go, as Hydra's own keys say it: `hydra.run.dir`, `hydra.sweep.dir` and `hydra.sweep.subdir`.

The defaults of these keys, in conf/train.yaml, are the resolvers here.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from lab.config.schema import TrainConfig, check_value
from lab.config.values import FolderName
from utils import PROJECT

# What changes no number of a run: a sweep that differs in it alone is the same sweep, in the same directories.
COMPUTES_NOTHING = (
    "trainer.log_every",
    "trainer.images",
    "trainer.histograms",
    "trainer.profile",
    "data.num_workers",
)
NOT_IN_A_NAME = ("seed", "name", "experiments_dir", "like", "rerun", "dry_run", *COMPUTES_NOTHING)  # of a variant


def new_directory(experiments_dir: str, name: str) -> str:
    """A directory for a single run: <experiments_dir>/<name>/<timestamp>."""
    return f"{experiments_dir}/{name}/{datetime.now().strftime('%Y-%m-%d_%H-%M-%S-%f')[:-3]}"


def sweep_folder(experiments_dir: str, name: str) -> str:
    """The folder of a sweep, in which Hydra records it before anything else is checked."""
    check_value(name, get_type_hints(TrainConfig, include_extras=True)["name"], where="name")
    return f"{experiments_dir}/{name}"


def job_folder(name: str, seed: int, overrides: Sequence[str]) -> str:
    """The directory of a job below its sweep's: <variant>/seed-<n>."""
    return f"{variant_name(overrides, name)}/seed-{seed}"


@functools.cache
def passing_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that vanishes with this process."""
    return tempfile.TemporaryDirectory()


OmegaConf.register_new_resolver("project_dir", lambda: str(PROJECT), replace=True)
OmegaConf.register_new_resolver("new_directory", new_directory, replace=True)
OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)
OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
OmegaConf.register_new_resolver("passing_folder", lambda: passing_folder().name, replace=True)


def run_directory() -> Path:
    """Where the run of this job goes, as Hydra was told."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        check_value(hydra.sweep.subdir, FolderName, where="hydra.sweep.subdir")
        return Path(hydra.sweep.dir, hydra.sweep.subdir).absolute()
    check_value(hydra.run.dir, FolderName, where="hydra.run.dir")
    return Path(hydra.run.dir).absolute()


def variant_name(overrides: Sequence[str], name: str) -> str:
    """A short readable folder name for what was typed, apart from seed and experiment: "lr-1e-3_model-cnn"."""
    parts = []
    for key, _, value in (override.lstrip("+~").partition("=") for override in sorted(overrides)):
        if key not in NOT_IN_A_NAME and not key.startswith("hydra.") and (key, value) != ("experiment", name):
            parts.append(f"{key.rpartition('.')[2]}-" + re.sub(r"[^A-Za-z0-9.]+", "-", value.strip("[]")).rstrip("-"))
    variant = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts)) or "default"
    if len(variant) > 120:
        variant = f"{variant[:111]}-{hashlib.sha256(variant.encode()).hexdigest()[:8]}"
    return variant


class MadeWhenWritten(Callback):
    """Keeps Hydra from making the directory of a run, so that a mistake leaves none: the run makes it when it writes.

    Hydra makes it before the job begins, and is told of another until then. What is wrong with the key comes out later.
    """

    def __init__(self) -> None:
        self.directory: str | None = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self.directory = OmegaConf.to_container(config.hydra.run)["dir"]  # type: ignore[call-overload,index]
        HydraConfig.instance().set_config(config)  # the name of a run may be made of what Hydra knows
        with contextlib.suppress(Exception):
            if config.hydra.run.dir.strip():
                self.directory = str(Path(config.hydra.run.dir).absolute())
        HydraConfig.instance().cfg = None
        writes_itself = config.hydra.output_subdir is not None or config.hydra.job.chdir
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.run.dir = self.directory if writes_itself else "."

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if self.directory is not None:
            for known in (config, HydraConfig.instance().cfg):
                with read_write(known.hydra), open_dict(known.hydra):  # type: ignore[union-attr]
                    known.hydra.run.dir = known.hydra.runtime.output_dir = self.directory  # type: ignore[union-attr]
