"""Hydra's own keys and flags do what they say, and the project's directories are their defaults."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome

import train
from lab.config.directories import COMPUTES_NOTHING, variant_name

PROJECT = Path(train.__file__).resolve().parent
SMALL = ["trainer.epochs=1", "data.limit=90", "trainer.images=false", "trainer.device=cpu"]


@pytest.fixture
def train_here(run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """train_here("seed=1", ...) trains from within an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        outcome = run_command("train", *SMALL, *arguments)
        assert outcome.code == 0, outcome.err
        return outcome

    return run


def test_the_directory_of_a_run_is_hydras(train_here: Callable, tmp_path: Path) -> None:
    train_here("hydra.run.dir=out/${hydra.job.name}-${seed}", "seed=3")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((tmp_path / "out" / "train-3" / "status.json").read_text())["state"] == "finished"


def test_the_directories_of_a_sweep_are_hydras(train_here: Callable, tmp_path: Path) -> None:
    words = ["-m", "seed=0,1", "hydra.sweep.dir=sweeps/one", "hydra.sweep.subdir=job-${hydra.job.num}"]
    train_here(*words)
    assert [path.name for path in tmp_path.iterdir()] == ["sweeps"]
    assert sorted(path.name for path in (tmp_path / "sweeps" / "one").iterdir()) == ["job-0", "job-1", "multirun.yaml"]
    assert "2 were finished, 0 ran" in train_here(*words).out


def test_hydras_own_record_lies_in_the_run(train_here: Callable, tmp_path: Path) -> None:
    train_here("hydra.run.dir=out", "hydra.output_subdir=.hydra")
    assert {"config.yaml", "hydra.yaml", "overrides.yaml"} <= {p.name for p in (tmp_path / "out" / ".hydra").iterdir()}
    assert (tmp_path / "out" / "best.pt").exists()


@pytest.mark.parametrize("words", [["seed=0"], ["-m", "seed=0,1"], ["-m", "seed=0,1", "hydra.sweep.dir=a/b"]], ids=str)
def test_a_dry_run_leaves_nothing(words: list[str], train_here: Callable, tmp_path: Path) -> None:
    assert "start" in train_here(*words, "experiments_dir=x", "dry_run=true").out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_keeps_the_record_of_the_sweep(train_here: Callable, tmp_path: Path) -> None:
    words = ["-m", "seed=0,1", "experiments_dir=x", "name=s"]
    train_here(*words)
    record = (tmp_path / "x" / "s" / "multirun.yaml").read_bytes()
    train_here(*words, "optimizer.lr=0.1", "dry_run=true")
    assert (tmp_path / "x" / "s" / "multirun.yaml").read_bytes() == record


def test_a_sweep_in_batches_is_the_sweep(train_here: Callable, tmp_path: Path) -> None:
    train_here("-m", "seed=0,1,2", "experiments_dir=x", "name=s", "hydra.sweeper.max_batch_size=2")
    assert len([*(tmp_path / "x" / "s").glob("*/seed-*/best.pt")]) == 3


def test_a_configuration_of_ones_own_folder(train_here: Callable, tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "tiny.yaml").write_text("_target_: model.net.MLP\nhidden_sizes: [3]\n")
    (tmp_path / "mine" / "first.yaml").write_text("defaults: [train, _self_]\nname: first\nseed: 7\n")
    for number, flags in enumerate((["--config-dir", "mine"], ["-cd", "mine"], ["--config-dir=mine"])):
        train_here("model=tiny", f"hydra.run.dir=run-{number}", *flags)
        assert "hidden_sizes:\n  - 3" in (tmp_path / f"run-{number}" / "config.yaml").read_text()
    train_here("-cn", "first", "hydra.run.dir=named", "-cd", "mine")
    assert "name: first\nseed: 7\n" in (tmp_path / "named" / "config.yaml").read_text()


def test_what_computes_nothing_names_no_folder() -> None:
    swept = ["optimizer.lr=0.1", "seed=3", "hydra.sweeper.max_batch_size=2", *(f"{key}=1" for key in COMPUTES_NOTHING)]
    assert variant_name(swept, "study") == "lr-0.1"


def test_the_task_is_found_again_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(train.main.task)) is train.main.task  # type: ignore[attr-defined]
    text = pickle.dumps(train.main.task, protocol=0)  # type: ignore[attr-defined]
    assert b"train" in text and b"task" in text and len(text) < 100


def test_the_job_is_named_after_its_script(run_command: Callable[..., Outcome]) -> None:
    outcome = run_command("train", "--cfg", "hydra", "-p", "hydra.job")
    assert "name: train\n" in outcome.out


def test_an_evaluation_of_several_leaves_no_folder(
    run_train: Callable[..., Path],
    run_command: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = [run_train("trainer.epochs=1", "data.limit=90", f"seed={seed}", name=f"r{seed}") for seed in (0, 1)]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    outcome = run_command("evaluate", "-m", f"run={runs[0]},{runs[1]}", "device=cpu")
    assert outcome.code == 0, outcome.err
    assert all((run / "evaluation.json").exists() for run in runs)
    assert list((tmp_path / "empty").iterdir()) == []


def test_hydra_says_what_it_does(tmp_path: Path) -> None:
    """In processes of their own: what is logged stays set up for those that come after."""
    for words, said in (
        (["--info", "config"], "Config search path"),
        (["hydra.verbose=true", "dry_run=true"], "DEBUG"),
    ):
        done = subprocess.run(
            [sys.executable, str(PROJECT / "train.py"), *words],
            cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        assert said in done.stdout + done.stderr
