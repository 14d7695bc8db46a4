"""A study that several processes share, in SQLite and PostgreSQL; databases that cannot be used."""

from __future__ import annotations

import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from helpers.commands import read_lines
from helpers.sweeps import SMALL, join, start, wait_for

from lab.sweeps import study
from lab.sweeps.study import explained
from utils import Unmet, UserError


@pytest.fixture(scope="module")
def postgres() -> Iterator[Callable[[], str]]:
    """Makes empty databases of a PostgreSQL server that lives as long as these tests, and gives their URLs."""
    psycopg = pytest.importorskip("psycopg")
    if not all(map(shutil.which, ("initdb", "pg_ctl", "setpriv"))):
        pytest.skip("there is no PostgreSQL on this machine")
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None  # it refuses to be run by root
    become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"] if user else []
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        if user:
            os.chown(folder, user.pw_uid, user.pw_gid)

        def run(*command: str) -> None:
            subprocess.run([*become, *command], check=True, cwd=folder, stdout=subprocess.DEVNULL)

        def new_database() -> str:
            name = f"study{len(list(Path(folder).glob('made*')))}"
            Path(folder, f"made{name}").touch()
            with psycopg.connect(host=folder, user="me", dbname="postgres", autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
            return f"postgresql+psycopg://me@/{name}?host={folder}"

        run("initdb", "-D", f"{folder}/data", "-U", "me", "--auth=trust", "--no-sync")
        options = f"-F -c listen_addresses='' -c unix_socket_directories={folder}"
        run("pg_ctl", "-D", f"{folder}/data", "-o", options, "-l", f"{folder}/log", "-w", "start")
        try:
            yield new_database
        finally:
            run("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "-w", "stop")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind."""
    if request.param == "postgres":
        return request.getfixturevalue("postgres")()
    return f"sqlite:///{tmp_path}/shared.db"


@pytest.mark.parametrize(("sampler", "expected"), [("random", 12), ("grid", 10)])
def test_those_who_share_a_study_take_each_trial_once(tmp_path: Path, url: str, sampler: str, expected: int) -> None:
    """Four at the same time, from the first making of the tables on; and there are as many trials as were asked for."""

    def work(_: int) -> list[int]:
        one = join(tmp_path, url, sampler=sampler)
        numbers = []
        while (trial := one.take()) is not None:
            numbers.append(trial.number)
            time.sleep(0.01)
            one.tell(one.directory_of(trial.number), "COMPLETE", trial.params["lr"])
        return numbers

    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(work, range(4)))
    assert sorted(number for numbers in taken for number in numbers) == list(range(expected))
    found = optuna.load_study(study_name="found", storage=url)
    assert [trial.state.name for trial in found.trials] == ["COMPLETE"] * expected
    assert len({trial.params["lr"] for trial in found.trials}) == expected, "each process proposes something else"


def test_what_a_dead_process_had_is_taken_over_and_what_a_living_one_has_is_not(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = join(tmp_path, url, n_trials=2), join(tmp_path, url, n_trials=2)
    trials = [first.take(), first.take()]
    assert second.take() is None, "both are under way, and there are no more"
    for taken in first.taken.values():
        taken.held.release()  # as at the end of its process, however that comes
    resumed = [second.take(), second.take()]
    assert [one and one.params for one in resumed] == [one and one.params for one in trials]
    assert second.take() is None and first.take() is None

    # On another machine nothing but the time tells, and one that was taken for dead learns it.
    monkeypatch.setattr("lab.sweeps.trials.platform.node", lambda: "elsewhere")
    third = join(tmp_path / "elsewhere", url, n_trials=2)
    assert third.take() is None
    monkeypatch.setattr("lab.sweeps.trials.SECONDS_ALIVE", -1)
    for taken in second.taken.values():
        taken.held.release()
    assert third.take() is not None
    monkeypatch.undo()
    assert [second.say_alive(directory) for directory in second.taken] == [False, True]


def test_a_locked_database_is_waited_for_and_then_given_up_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    one = join(tmp_path, url)
    other = sqlite3.connect(tmp_path / "shared.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(one.take)
        time.sleep(0.5)
        other.execute("COMMIT")
        assert taken.result() is not None
    monkeypatch.setattr(study, "SECONDS_LOCKED", 0.1)
    one = join(tmp_path, url)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Unmet, match="database is locked"), explained(url, "wait", Unmet):
        one.take()
    with pytest.raises(UserError, match="database is locked"):
        join(tmp_path, url)


def make_foreign(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE patients (name TEXT)")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///{folder}/text.db", "file is not a database"),
        ("sqlite:///{folder}/foreign.db", "holds something else than studies (the table patients)"),
        ("sqlite:///file:{folder}/study.db?mode=ro&uri=true", "attempt to write a readonly database"),
        ("sqlite:///{folder}/nowhere/study.db", "there is no folder"),
        ("{folder}/study.db", "search.storage takes a URL such as"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/studies", "me:***@127.0.0.1"),
        ("mysql://me:secret@127.0.0.1:1/studies", "me:***@127.0.0.1"),
        ("redis://127.0.0.1:1", "cannot be used"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line(url: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all, but a text of some length\n" * 10)
    make_foreign(tmp_path / "foreign.db")
    join(tmp_path, f"sqlite:///{tmp_path}/study.db")
    with pytest.raises(UserError) as caught:
        join(tmp_path, url.format(folder=tmp_path))
    assert words in str(caught.value) and "\n" not in str(caught.value) and "secret" not in str(caught.value)
    with sqlite3.connect(tmp_path / "foreign.db") as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("patients",)], "left as it was"


@pytest.mark.slow
def test_two_processes_share_a_search_and_one_finishes_what_the_other_leaves(tmp_path: Path, url: str) -> None:
    arguments = ["search=mlp", "search.n_trials=12", "trainer.epochs=30", *SMALL[1:], f"search.storage='{url}'"]
    with start(tmp_path, *arguments) as killed, start(tmp_path, *arguments) as other:
        wait_for(tmp_path, "found/trial-*/metrics.json", num=4)
        killed.kill()
        out, err = other.communicate(timeout=240)
    assert other.returncode == 0, err
    assert "trials  12 complete" in out
    found = optuna.load_study(study_name="found", storage=url)
    assert [trial.state.name for trial in found.trials] == ["COMPLETE"] * 12
    for trial in found.trials:
        directory = tmp_path / "found" / f"trial-{trial.number:04d}"
        epochs = [record["epoch"] for record in read_lines(directory / "metrics.jsonl")]
        assert epochs == list(range(1, 31)) == sorted(trial.intermediate_values)
