"""Hydra's other launchers: the same run directories, and the same commands, as under the default one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome, read_lines
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from lab.sweeps import pool
from lab.sweeps.other_launcher import threads_of
from utils import PROJECT

TESTS = Path(__file__).resolve().parent
THREADS = pool.threads_for(2)
TRAPPED = [
    "model._target_=sweep_networks.Trapped",
    *("~model.hidden_sizes", "~model.activation", "~model.dropout", "~model.output"),
    *("data.limit=100", "data.batch_size=15", "trainer.epochs=3", "trainer.images=false", "trainer.device=cpu"),
]


def needs(module: str, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{package} is not installed")


needs_joblib = needs("hydra_plugins.hydra_joblib_launcher", "hydra-joblib-launcher")
needs_submitit = needs("hydra_plugins.hydra_submitit_launcher", "hydra-submitit-launcher")
needs_ray = needs("ray", "ray")

SUBMITIT = ("submitit_local", [f"hydra.launcher.cpus_per_task={THREADS}"])
RAY = [f"hydra.launcher.ray.remote.num_cpus={THREADS}", f"+hydra.launcher.ray.init.num_cpus={2 * THREADS}"]
LAUNCHERS = [  # with options, and whether to give the command again: where processes start slowly, only in the long tests
    pytest.param("basic", [], True, id="basic"),
    pytest.param("joblib", ["hydra.launcher.n_jobs=2"], True, marks=needs_joblib, id="joblib"),
    pytest.param(*SUBMITIT, False, marks=needs_submitit, id="submitit"),
    pytest.param(*SUBMITIT, True, marks=[needs_submitit, pytest.mark.slow], id="submitit-again"),
    pytest.param("ray", RAY, True, marks=[needs_ray, pytest.mark.slow], id="ray"),
]


def files_of(run: Path) -> set[str]:
    """The names of a run's files, without the time in that of TensorBoard."""
    return {re.sub(r"tfevents.*", "tfevents", str(path.relative_to(run))) for path in run.rglob("*")}


@pytest.fixture
def run_sweep(
    run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """run_sweep("joblib", "seed=0,1") trains in tmp_path/study; its outcome."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))

    def run(launcher: str, *arguments: str, folder: str = "here") -> Outcome:
        fixed = [f"hydra/launcher={launcher}", f"experiments_dir={tmp_path / folder}", "name=study"]
        return run_command("train", "-m", *fixed, *TRAPPED, f"+model.trap={tmp_path / 'trap'}", *arguments)

    return run


# ------------------------------------------------------------------------------------------------------- the same results


@pytest.mark.parametrize(("launcher", "options", "again"), LAUNCHERS)
def test_runs_are_those_of_the_pool(
    launcher: str,
    options: list[str],
    again: bool,
    run_sweep: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job that fails takes nothing else down; again, only that one runs, and goes on; bit for bit as under the pool."""
    (tmp_path / "trap").touch()
    assert run_sweep("pool", "+model.harm=none", "hydra.launcher.n_jobs=2", folder="pool").code == 0
    (expected,) = tmp_path.glob("pool/study/*/seed-0")

    if launcher == "basic":  # one job at a time has all processors
        monkeypatch.setattr(pool, "num_cpus", lambda: THREADS)
    outcome = run_sweep(launcher, "+model.harm=raise,none", *options)
    assert outcome.code == 1
    assert outcome.err.strip() == "train.py: 1 of 2 jobs failed"
    assert "ZeroDivisionError: this network divides by zero" in outcome.out
    good, bad = (next(tmp_path.glob(f"here/study/*harm-{harm}*/seed-0")) for harm in ("none", "raise"))
    assert good.relative_to(tmp_path / "here") == expected.relative_to(tmp_path / "pool")
    assert files_of(good) == files_of(expected)
    assert (good / "metrics.json").read_bytes() == (expected / "metrics.json").read_bytes()
    assert read_lines(good / "metrics.jsonl") == read_lines(expected / "metrics.jsonl")
    provenance = json.loads((good / "provenance.json").read_text())
    assert provenance["cpu_threads"] == THREADS
    assert provenance["command"] == [sys.executable, *sys.argv]
    status = json.loads((bad / "status.json").read_text())
    assert (status["state"], status["epoch"]) == ("failed", 1)
    assert status["error"] == "ZeroDivisionError: this network divides by zero"
    assert "Traceback" in (bad / "train.log").read_text()

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    outcome = run_sweep(launcher, "+model.harm=raise,none", *options, "dry_run=true")
    assert outcome.code == 0
    assert "goes on (failed after epoch 1)" in outcome.out
    assert "2 jobs: 1 have finished, 1 would run" in outcome.out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    if not again:
        return
    (tmp_path / "trap").unlink()
    outcome = run_sweep(launcher, "+model.harm=raise,none", *options)
    assert outcome.code == 0, outcome.err
    assert "2 jobs: 1 were finished, 1 ran, 0 failed" in outcome.out
    assert all(path.stat().st_mtime_ns == before[path] for path in good.rglob("*"))
    assert read_lines(bad / "metrics.jsonl") == read_lines(expected / "metrics.jsonl")


@needs_submitit
@pytest.mark.slow
def test_a_job_whose_time_is_up_goes_on_in_its_directory(tmp_path: Path) -> None:
    """As on SLURM: SIGUSR2, a checkpoint, the same job again. Also where it was to begin anew: that it has done."""
    arguments = ["model._target_=sweep_networks.Slow", "data.limit=120", "trainer.epochs=30", "trainer.device=cpu"]
    command = [sys.executable, str(PROJECT / "train.py"), "-m", "hydra/launcher=submitit_local", *arguments]
    command += ["trainer.images=false", f"experiments_dir={tmp_path}", "rerun=true"]
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    subprocess.run([*command, "name=calm"], env=environment, cwd=tmp_path, check=True)
    with subprocess.Popen([*command, "name=study"], env=environment, cwd=tmp_path) as process:
        deadline = time.monotonic() + 60
        while len(lines := [line for path in tmp_path.glob("study/*/*/metrics.jsonl") for line in path.open()]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(lines) < 30
        (run,) = tmp_path.glob("study/*/seed-0")
        os.kill(json.loads((run / "status.json").read_text())["pid"], signal.SIGUSR2)
        assert process.wait() == 0
    assert len(json.loads((run / "provenance.json").read_text())["resumed"]) == 1
    (calm,) = tmp_path.glob("calm/*/seed-0")
    assert read_lines(run / "metrics.jsonl") == read_lines(calm / "metrics.jsonl")


# -------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        pytest.param(["basic", "seed=0,-1"], ["seed is -1", "(in the job seed=-1)"]),
        pytest.param(["basic", "seed=0,1", "hydra.launcher.n_jobs=2"], ["hydra.launcher.n_jobs is not a key"]),
        pytest.param(["submitit_slurm", "hydra.launcher.partitoin=x"], ["launcher.partition?"], marks=needs_submitit),
        pytest.param(["submitit_slurm", "hydra.launcher.nodes=two"], ["launcher.nodes", "'two'"], marks=needs_submitit),
    ],
)  # fmt: skip
def test_a_mistake_starts_nothing(
    arguments: list[str], parts: list[str], run_sweep: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = run_sweep(*arguments)
    assert outcome.code == 2
    (line,) = outcome.err.strip().splitlines()
    assert all(part in line for part in parts), line
    assert not list(tmp_path.rglob("seed-*"))


@needs_submitit
def test_without_slurm_one_line_says_so(
    run_sweep: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = run_sweep("submitit_slurm", "seed=0,1")
    assert outcome.code == 1
    (line,) = outcome.err.strip().splitlines()
    assert "srun" in line
    assert not list(tmp_path.rglob("seed-*"))


@pytest.mark.parametrize("launcher", ["joblib", "ray", "submitit_slurm"])
def test_a_launcher_that_is_not_installed_says_how_to(
    launcher: str, run_sweep: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    Plugins.instance()
    if launcher == "ray":
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find_spec(name))
    else:
        monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], f"{launcher}.yaml", raising=False)
    outcome = run_sweep(launcher, "seed=0,1")
    assert outcome.code == 2
    (line,) = outcome.err.strip().splitlines()
    assert line.endswith(launcher if launcher == "ray" else f"pip install hydra-{launcher.split('_')[0]}-launcher")


@pytest.mark.parametrize(
    ("options", "threads"),
    [
        ({}, 8),
        ({"n_jobs": 2}, 4),
        ({"n_jobs": -1}, 1),
        ({"n_jobs": -5}, 2),
        ({"cpus_per_task": 3}, 3),
        ({"ray": {"remote": {"num_cpus": 0.5}}}, 1),
    ],
)
def test_the_threads_of_a_job_are_the_processors_it_has(
    options: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "num_cpus", lambda: 8)
    assert threads_of(OmegaConf.create(options)) == threads
