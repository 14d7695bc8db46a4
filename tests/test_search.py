"""A search proposes, trains ordinary runs, goes on where it stopped, and says what it found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from search_hyperparams import best_preset
from study import Dimension, as_overrides, read_space, suggest
from utils import UserError

PROJECT = Path(__file__).parents[1]
SMALL = ["trainer.epochs=2", "data.limit=200", "trainer.images=false", "trainer.device=cpu", "search.n_jobs=2"]


def space(**entries: Any) -> list[Dimension]:
    return read_space({key.replace("__", "."): entry for key, entry in entries.items()})


def search(folder: Path, *arguments: str, name: str = "found") -> subprocess.CompletedProcess[str]:
    """A search in a process of its own, in a copy of the configuration, so that its preset does not land in the project."""
    code = START.format(conf=str(folder / "conf"))
    return subprocess.run(
        [sys.executable, "-c", code, f"experiments_dir={folder}", f"name={name}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )


START = """
import sys
sys.argv[0] = "search_hyperparams.py"
import search_hyperparams
from pathlib import Path
search_hyperparams.PRESETS = Path({conf!r})
search_hyperparams.main()
"""


def own_space(folder: Path, line: str) -> list[str]:
    """The arguments that choose a space of one line, from a folder of configuration of one's own."""
    (folder / "mine" / "search").mkdir(parents=True)
    (folder / "mine" / "search" / "own.yaml").write_text(f"space:\n  {line}\n")
    return [f"hydra.searchpath=[file://{folder / 'mine'}]", "search=own"]


def study_of(folder: Path, name: str = "found") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder / name / 'study.db'}")


# ------------------------------------------------------------------------------------------------------------- the space


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"low": 1}, "it takes {low: ..., high: ...} or {choices: [...]}"),
        (3, "it takes {low"),
        ({"low": 2, "high": 1}, "low must be below high"),
        ({"low": 0.0, "high": 1.0, "log": True}, "low must be above 0"),
        ({"low": "a", "high": 1}, "they are numbers"),
        ({"low": 0, "high": 1, "step": 2}, "has the key step"),
        ({"choices": [[1, 2]]}, "'[128,64]'"),
        ({"choices": [1, 2], "when": {"model": "mlp"}}, "depends on model"),
        ({"choices": []}, "choices"),
    ],
)
def test_a_space_that_cannot_be_read_is_refused(entry: Any, message: str) -> None:
    with pytest.raises(UserError, match=r"search\.space\.optimizer\.lr") as caught:
        space(optimizer__lr=entry)
    assert message in str(caught.value)


def test_values_lie_in_their_ranges_and_conditions_hold() -> None:
    dimensions = space(
        optimizer={"choices": ["sgd", "momentum"]},
        optimizer__lr={"low": 1e-4, "high": 1e-1, "log": True},
        optimizer__momentum={"low": 0.5, "high": 0.9, "when": {"optimizer": "momentum"}},
        data__batch_size={"low": 8, "high": 64},
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = [suggest(study.ask(), dimensions) for _ in range(60)]
    assert all(1e-4 <= values["optimizer.lr"] <= 1e-1 for values in seen)
    assert 20 < sum(values["optimizer.lr"] < 10**-2.5 for values in seen) < 40, "log-uniform: half below the middle"
    assert all(isinstance(values["data.batch_size"], int) and 8 <= values["data.batch_size"] <= 64 for values in seen)
    assert all(("optimizer.momentum" in values) == (values["optimizer"] == "momentum") for values in seen)
    assert {values["optimizer"] for values in seen} == {"sgd", "momentum"}


def test_groups_are_typed_before_their_keys() -> None:
    assert as_overrides({"optimizer.lr": 0.1, "model": "cnn", "data.flip": True, "trainer.patience": None}) == [
        "model=cnn", "optimizer.lr=0.1", "data.flip=true", "trainer.patience=null"
    ]  # fmt: skip


def test_a_grid_takes_points_on_the_ranges_own_scale() -> None:
    lr, batch, layers = space(
        lr={"low": 1e-3, "high": 1e-1, "log": True, "points": 3},
        batch={"low": 10, "high": 20, "points": 3},
        layers={"low": 1, "high": 3},
    )
    assert lr.grid() == pytest.approx([1e-3, 1e-2, 1e-1])
    assert batch.grid() == [10, 15, 20]
    assert layers.grid() == [1, 2, 3]
    with pytest.raises(UserError, match="points"):
        space(lr={"low": 0.0, "high": 1.0})[0].grid()


def test_a_best_value_near_an_end_is_noticed() -> None:
    (lr,) = space(lr={"low": 1e-4, "high": 1e-1, "log": True})
    assert lr.nears_edge(1.05e-4) == "low"
    assert lr.nears_edge(0.099) == "high"
    assert lr.nears_edge(1e-3) is None


def test_the_preset_holds_groups_as_defaults_and_keys_as_values() -> None:
    from omegaconf import OmegaConf

    cfg = OmegaConf.create({"model": {"a": 1}, "optimizer": {"lr": 0.1}, "trainer": {"epochs": 2}})
    text = best_preset("mine", ["model=cnn", "optimizer.lr=0.03", "trainer.epochs=2"], cfg, "val/accuracy 0.9")
    assert text.startswith("# @package _global_\n# python train.py experiment=mine_best\n# Expect: val/accuracy 0.9")
    preset = OmegaConf.create(text)
    assert preset.defaults == [{"override /model": "cnn"}]
    assert (preset.name, preset.optimizer.lr, preset.trainer.epochs) == ("mine_best", 0.03, 2)


# ------------------------------------------------------------------------------------------------------------ the search


def test_a_search_trains_ordinary_runs_and_goes_on_to_a_larger_total(tmp_path: Path) -> None:
    first = search(tmp_path, "search=mlp", "search.n_trials=3", *SMALL)
    assert first.returncode == 0, first.stderr
    runs = sorted(path.name for path in (tmp_path / "found").glob("trial-*"))
    assert runs == ["trial-0000", "trial-0001", "trial-0002"]
    for name in runs:
        assert json.loads((tmp_path / "found" / name / "status.json").read_text())["state"] == "finished"
    again = search(tmp_path, "search=mlp", "search.n_trials=5", *SMALL)
    assert again.returncode == 0, again.stderr
    study = study_of(tmp_path)
    assert len(study.trials) == 5 and again.stdout.count("start ") == 2
    assert len({trial.params["optimizer.lr"] for trial in study.trials}) == 5, "nothing is proposed twice"
    for trial in study.trials:
        metrics = json.loads((tmp_path / "found" / f"trial-{trial.number:04d}" / "metrics.json").read_text())
        assert trial.value == metrics["best"]["val/accuracy"]
        assert trial.intermediate_values.keys() == {1, 2}
    assert f"trial {study.best_trial.number}: val/accuracy {study.best_value:.4f}" in again.stdout
    for name in ("slices.png", "best.yaml", "study.db"):
        assert (tmp_path / "found" / name).stat().st_size > 0
    assert (tmp_path / "conf" / "found_best.yaml").read_text() == (tmp_path / "found" / "best.yaml").read_text()
    other = search(tmp_path, "search=optimizers", "search.n_trials=5", *SMALL)
    assert other.returncode == 2 and "searches another space" in other.stderr


def test_a_killed_search_is_gone_on_with_and_its_trials_are_finished(tmp_path: Path) -> None:
    arguments = ["search=lr", "search.n_trials=4", "trainer.epochs=150", *SMALL[1:]]
    code = START.format(conf=str(tmp_path / "conf"))
    started = subprocess.Popen(
        [sys.executable, "-c", code, f"experiments_dir={tmp_path}", "name=found", *arguments],
        stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("found/trial-*/last.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    started.send_signal(signal.SIGKILL)
    started.wait()
    time.sleep(2)  # its trials notice
    done = search(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    study = study_of(tmp_path)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    for number in range(4):
        status = json.loads((tmp_path / "found" / f"trial-{number:04d}" / "status.json").read_text())
        assert (status["state"], status["epoch"]) == ("finished", 150)


def test_a_diverged_trial_has_failed_and_is_never_the_best(tmp_path: Path) -> None:
    options = own_space(tmp_path, "optimizer.lr: {choices: [0.1, 1.0e+30]}")
    done = search(tmp_path, *options, "search.sampler=grid", "search.n_trials=10", "optimizer=sgd", *SMALL)
    assert done.returncode == 0, done.stderr
    states = {trial.params["optimizer.lr"]: trial.state.name for trial in study_of(tmp_path).trials}
    assert states == {0.1: "COMPLETE", 1e30: "FAIL"}, "a grid ends when all of it is tried"
    assert "failed" in done.stdout and "optimizer.lr=0.1" in done.stdout.split("best ")[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["search=mpl"], "did you mean mlp?"),
        (["search.n_trials=0"], "search.n_trials is 0"),
        (["search.sampler=tpee"], "search.sampler"),
        (["search=optimizers", "search.sampler=grid"], "no conditional keys"),
        (["own", "optimizer.lrr: {low: 0.1, high: 1}"], "optimizer.lrr"),
        (["own", "optimizer.lr: {low: 1, high: 0.1}"], "low must be below high"),
        (["search.storage=nosuch://x"], "cannot be opened"),
        (["data=mnist", "data.root=/nonexistent"], "MNIST is not in /nonexistent"),
    ],
)
def test_a_mistake_is_one_line_before_any_trial(arguments: list[str], expected: str, tmp_path: Path) -> None:
    if arguments[0] == "own":
        arguments = own_space(tmp_path, arguments[1])
    done = search(tmp_path, *arguments)
    assert done.returncode == 2
    assert expected in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("found/trial-*"))
