"""Fixtures and functions for sweeps and searches: run in this process, or as commands of their own to be disturbed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import optuna
import pytest
from omegaconf import OmegaConf

import train
from helpers.commands import Outcome, read
from helpers.processes import is_alive, wait_until
from lab.runs.logger import last_record
from lab.sweeps import findings
from lab.sweeps.pool import Job
from lab.sweeps.space import Dimension, read_space
from lab.sweeps.study import open_study
from lab.sweeps.trials import Search
from utils import PROJECT

QUICK = ["data.limit=120", "trainer.images=false", "trainer.device=cpu"]
OTHER_MODEL = ("~model.hidden_sizes", "~model.activation", "~model.dropout", "~model.output")
SMALL = ["trainer.epochs=2", "data.limit=200", "trainer.images=false", "trainer.device=cpu", "search.n_jobs=2"]


@pytest.fixture
def run_sweep(run_command: Callable[..., Outcome], tmp_path: Path) -> Callable[..., Outcome]:
    """run_sweep("seed=0,1") runs a sweep of two quick epochs in tmp_path/study; its outcome."""

    def run(*arguments: str, name: str = "study", epochs: int = 2) -> Outcome:
        fixed = [f"experiments_dir={tmp_path}", f"name={name}", f"trainer.epochs={epochs}", *QUICK]
        return run_command("train", "-m", *fixed, *arguments)

    return run


def results(folder: Path) -> dict[str, Any]:
    """What came out of each run below a folder, by its place there."""
    return {str(path.parent.relative_to(folder)): read(path) for path in sorted(folder.rglob("metrics.json"))}


def states(folder: Path) -> list[str]:
    return sorted(read(path)["state"] for path in folder.rglob("status.json"))


def snapshot(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "multirun.yaml"}


def make_job(directory: Path, seed: int, *overrides: str) -> Job:

    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        cfg = hydra.compose("train", overrides=["name=run", "trainer.epochs=1", *QUICK, f"seed={seed}", *overrides])
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    cfg = OmegaConf.create({key: plain[key] for key in plain if key not in ("rerun", "dry_run")})
    return Job(cfg, directory, train=partial(train.train, cfg, directory))


class Sweep:
    """A sweep as its own command, to be disturbed: six jobs of about two seconds, two at a time."""

    arguments = ("model._target_=sweep_networks.Slow", "seed=0,1,2", "optimizer.lr=0.01,0.02")
    quick = ("trainer.epochs=40", *QUICK)

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.arguments = folder, arguments or (*self.arguments, *self.quick)
        self.number = len(list(folder.glob("*.log")))

    def __enter__(self) -> Sweep:
        fixed = [f"experiments_dir={self.folder}", "name=study", "hydra.launcher.n_jobs=2"]
        self.log = self.folder / f"{self.number}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(PROJECT / "train.py"), "-m", *fixed, *self.arguments],
                env=os.environ | {"PYTHONPATH": str(PROJECT / "tests" / "lab" / "sweeps")},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    def running(self) -> dict[Path, int]:
        """The processes of its jobs that live, by run directory."""
        found = {}
        for path in self.folder.rglob("status.json"):
            with contextlib.suppress(FileNotFoundError):
                status = read(path)
                if status["state"] == "running" and is_alive(status["pid"]):
                    found[path.parent] = status["pid"]
        return found

    def wait_for_running(self, *, num_epochs: int = 2) -> dict[Path, int]:
        """Waits until two jobs are under way, the older one for so many epochs."""

        def are_under_way() -> bool:
            epochs = [last_record(directory).get("epoch", 0) for directory in self.running()]
            return len(epochs) == 2 and max(epochs) >= num_epochs

        wait_until(are_under_way, seconds=90)
        return self.running()

    def end(self) -> tuple[int, str]:
        code = self.process.wait(timeout=60)
        return code, self.log.read_text()


def space(**entries: Any) -> list[Dimension]:
    return read_space({key.replace("__", "."): entry for key, entry in entries.items()})


@pytest.fixture
def search(
    run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """search(...) does what `python search_hyperparams.py name=found ...` would; its preset lands in tmp_path/conf."""
    monkeypatch.setattr(findings, "PRESETS", tmp_path / "conf")

    def run(*arguments: str, name: str = "found") -> Outcome:
        return run_command("search_hyperparams", f"experiments_dir={tmp_path}", f"name={name}", *arguments)

    return run


START = """
import sys
import time
sys.argv[0] = "search_hyperparams.py"
import search_hyperparams
from lab.sweeps import findings
from pathlib import Path
findings.PRESETS = Path({conf!r})
search_hyperparams.main()
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A search in a process of its own."""
    command = [sys.executable, "-c", START.format(conf=str(folder / "conf"))]
    command += [f"experiments_dir={folder}", "name=found", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def own_space(folder: Path, line: str) -> list[str]:
    """The arguments that choose a space of one line, from a folder of configuration of one's own."""
    (folder / "mine" / "search").mkdir(parents=True, exist_ok=True)
    (folder / "mine" / "search" / "own.yaml").write_text(f"space:\n  {line}\n")
    return [f"hydra.searchpath=[file://{folder / 'mine'}]", "search=own"]


def study_of(folder: Path, name: str = "found") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder / name / 'study.db'}")


def join(folder: Path, url: str, *, n_trials: int = 12, sampler: str = "random", fixed: tuple[str, ...] = ()) -> Search:
    """A process's part in a study over one learning rate, without the training."""
    options: dict[str, Any] = {"sampler": sampler, "pruner": "none", "n_trials": n_trials, "seed": 0}
    options["space"] = {"lr": {"low": 0.0, "high": 1.0, "points": 10}}
    cfg = OmegaConf.create({"search": options, "experiments_dir": str(folder), "name": "found"})
    dimensions = read_space(options["space"])
    return Search(
        *open_study(cfg.search, "found", url, "maximize", dimensions, fixed),
        cfg,
        (),
        "val/accuracy",
        train=dict,
        defaults={"lr": 0.5},
    )


def wait_for(folder: Path, pattern: str, *, num: int = 1) -> None:
    """Waits until there are so many such files."""
    deadline = time.monotonic() + 150
    while len(list(folder.glob(pattern))) < num:
        assert time.monotonic() < deadline, f"no {pattern} in {folder}"
        time.sleep(0.05)
