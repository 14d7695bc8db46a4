"""A study that came from elsewhere: nothing in it runs, and nothing that it names is trained, written or locked."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers.sweeps import join, study_of
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from utils import UserError


class Payload:
    """What runs where it is unpickled: leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def url_of(folder: Path) -> str:
    (folder / "found").mkdir(exist_ok=True)
    return f"sqlite:///{folder}/found/study.db"


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(folder / "found" / "study.db")) as connection, connection:
        yield connection


def put_attribute(folder: Path, table: str, trial: int, key: str, value: Any) -> None:
    """Writes an attribute of a trial as whoever has the file can; table: trial_system or trial_user."""
    with opened(folder) as connection:
        sql = f"INSERT INTO {table}_attributes (trial_id, key, value_json) VALUES (?, ?, ?)"
        sql += " ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json"
        connection.execute(sql, (trial + 1, key, json.dumps(value)))


def finish(folder: Path, sampler: str, num: int) -> list[dict[str, Any]]:
    """Takes so many trials and tells their results; their values."""
    one = join(folder, url_of(folder), sampler=sampler, n_trials=1000)
    seen = []
    for _ in range(num):
        trial = one.take()
        assert trial is not None
        value = sum((x - 0.3) ** 2 for x in trial.params.values())
        one.tell(one.directory_of(trial.number), "COMPLETE", -value)
        seen.append(trial.params)
    return seen


def test_no_state_of_a_sampler_is_unpickled(tmp_path: Path) -> None:
    finish(tmp_path, "cmaes", 14)
    state = pickle.dumps(Payload(tmp_path / "mark")).hex()
    for trial in range(14):
        for key in ("cma:optimizer:0", "sepcma:optimizer:0", "cmawm:optimizer:0"):
            put_attribute(tmp_path, "trial_system", trial, key, state)
    finish(tmp_path, "cmaes", 12)
    assert not (tmp_path / "mark").exists()
    assert len(study_of(tmp_path).trials) == 26


def test_what_cmaes_learns_from_the_results_is_what_optuna_keeps(tmp_path: Path) -> None:
    """The same generations, found closer and closer to the best value."""
    values = [params["lr"] for params in finish(tmp_path, "cmaes", 60)]
    assert abs(sum(values[-10:]) / 10 - 0.3) < 0.1
    generations = {trial.system_attrs.get("cma:generation", 0) for trial in study_of(tmp_path).trials}
    assert max(generations) >= 5
    assert not any("optimizer" in key for trial in study_of(tmp_path).trials for key in trial.system_attrs)


def test_overrides_that_a_study_holds_are_not_typed(tmp_path: Path) -> None:
    """A trial that was left is trained with its values; whatever else stands beside them."""
    one = join(tmp_path, url_of(tmp_path))
    one.take()
    trial = one.take()
    assert trial is not None
    for taken in one.taken.values():
        taken.held.release()
    put_attribute(tmp_path, "trial_user", 1, "overrides", ["optimizer._target_=evil.Optimizer", "data.root=/etc"])
    other = join(tmp_path, url_of(tmp_path))
    again = {
        taken.trial.number: taken for taken in (other.taken[other.directory_of(one.number)] for one in take(other, 2))
    }
    assert again[1].overrides == [f"lr={trial.params['lr']}"]
    assert study_of(tmp_path).trials[1].user_attrs["overrides"] == again[1].overrides


def take(one: Any, num: int) -> list[optuna.trial.Trial]:
    return [one.take() for _ in range(num)]


def put_trial(folder: Path, state: TrialState, low: float, high: float, value: float, **attributes: Any) -> None:
    url = url_of(folder)
    join(folder, url)  # makes the study
    params = {"lr": value} if low <= value <= high else {}
    trial = create_trial(
        state=state,
        value=1.0 if state == TrialState.COMPLETE else None,
        params=params,
        distributions={"lr": FloatDistribution(low, high)} if params else {},
        user_attrs=attributes,
    )
    optuna.load_study(study_name="found", storage=url).add_trial(trial)


def test_values_outside_of_the_space_are_not_trained_and_not_told_as_the_best(tmp_path: Path) -> None:
    put_trial(tmp_path, TrialState.RUNNING, 0.0, 9.0, 7.0)
    one = join(tmp_path, url_of(tmp_path))
    trial = one.take()
    assert trial is not None
    with pytest.raises(UserError, match=r"lr=7\.0 is not of this space"):
        one.job_of(trial)
    put_trial(tmp_path, TrialState.COMPLETE, 0.0, 9.0, 7.0, overrides=["data.root=/etc"])
    with pytest.raises(UserError, match=r"trial 1 of the study: lr=7\.0 is not of this space"):
        one.overrides_of(study_of(tmp_path).trials[1])


@pytest.mark.parametrize("owner", ["elsewhere", {"host": 1}, None, {"host": "x", "directory": 3, "alive": "now"}])
def test_a_damaged_owner_is_none(owner: Any, tmp_path: Path) -> None:
    put_trial(tmp_path, TrialState.RUNNING, 0.0, 1.0, 0.5, owner=owner)
    trial = join(tmp_path, url_of(tmp_path)).take()
    assert trial is not None and trial.number == 0


def test_no_lock_is_made_outside_of_the_searchs_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    owner = {"host": os.uname().nodename, "directory": str(tmp_path / "other"), "alive": time.time()}
    put_trial(tmp_path, TrialState.RUNNING, 0.0, 1.0, 0.5, owner=owner)
    one = join(tmp_path, url_of(tmp_path), n_trials=1)
    assert one.take() is None, "whoever is elsewhere may live; only the time tells"
    put_attribute(tmp_path, "trial_user", 0, "owner", owner | {"alive": time.time() - 1000})
    assert one.take() is not None
    assert list((tmp_path / "other").iterdir()) == []


def test_what_it_says_of_itself_cannot_move_the_cursor(tmp_path: Path) -> None:
    join(tmp_path, url_of(tmp_path))
    study_of(tmp_path).set_user_attr("fixed", ["trainer.epochs=1\x1b[2J"])
    with pytest.raises(UserError, match=r"runs with trainer\.epochs=1") as caught:
        join(tmp_path, url_of(tmp_path))
    assert "\x1b" not in str(caught.value)
