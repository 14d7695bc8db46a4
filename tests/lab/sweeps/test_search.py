"""A search proposes, trains ordinary runs, goes on where it stopped, and says what it found."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import conftest
import optuna
import pytest
from conftest import Outcome
from omegaconf import OmegaConf

from lab.sweeps import findings, study
from lab.sweeps.findings import best_preset
from lab.sweeps.space import Dimension, as_overrides, read_space, suggest
from lab.sweeps.study import explained, open_study
from lab.sweeps.trials import Search
from utils import Unmet, UserError

PROJECT = Path(__file__).resolve().parents[3]
SMALL = ["trainer.epochs=2", "data.limit=200", "trainer.images=false", "trainer.device=cpu", "search.n_jobs=2"]


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


def test_a_search_trains_ordinary_runs_and_goes_on_to_a_larger_total(
    search: Callable[..., Outcome], tmp_path: Path
) -> None:
    first = search("search=mlp", "search.n_trials=3", *SMALL)
    assert first.code == 0, first.err
    runs = sorted(path.name for path in (tmp_path / "found").glob("trial-*"))
    assert runs == ["trial-0000", "trial-0001", "trial-0002"]
    for name in runs:
        assert json.loads((tmp_path / "found" / name / "status.json").read_text())["state"] == "finished"
    again = search("search=mlp", "search.n_trials=5", *SMALL)
    assert again.code == 0, again.err
    found = study_of(tmp_path)
    assert len(found.trials) == 5 and again.out.count("start ") == 2
    assert len({trial.params["optimizer.lr"] for trial in found.trials}) == 5, "nothing is proposed twice"
    for trial in found.trials:
        metrics = json.loads((tmp_path / "found" / f"trial-{trial.number:04d}" / "metrics.json").read_text())
        assert trial.value == metrics["best"]["val/accuracy"]
        assert trial.intermediate_values.keys() == {1, 2}
    assert f"trial {found.best_trial.number}: val/accuracy {found.best_value:.4f}" in again.out
    for name in ("slices.png", "best.yaml", "study.db"):
        assert (tmp_path / "found" / name).stat().st_size > 0
    assert (tmp_path / "conf" / "found_best.yaml").read_text() == (tmp_path / "found" / "best.yaml").read_text()
    other = search("search=optimizers", "search.n_trials=5", *SMALL)
    assert other.code == 2 and "searches another space" in other.err
    longer = search("search=mlp", "search.n_trials=6", *SMALL, "trainer.epochs=3")
    assert longer.code == 2 and "is of runs with trainer.epochs=2, not with trainer.epochs=3" in longer.err


def test_a_diverged_trial_has_failed_and_is_never_the_best(search: Callable[..., Outcome], tmp_path: Path) -> None:
    arguments = ["search.sampler=grid", "search.n_trials=10", "optimizer=sgd", *SMALL]
    failed = search(*own_space(tmp_path, "optimizer.lr: {choices: [1.0e+30]}"), *arguments, name="hopeless")
    assert failed.code == 1 and "trials  1 fail" in failed.out and "failed  trial 0: optimizer.lr=1e+30" in failed.out
    assert "no trial of hopeless was completed" in failed.err and len(failed.err.strip().splitlines()) == 1
    done = search(*own_space(tmp_path, "optimizer.lr: {choices: [1.0e+30, 0.1]}"), *arguments)
    assert done.code == 0, done.err
    states = sorted((trial.params["optimizer.lr"], trial.state.name) for trial in study_of(tmp_path).trials)
    assert states == [(0.1, "COMPLETE"), (1e30, "FAIL")], "a grid ends when all of it is tried, each point once"
    assert "optimizer.lr=0.1" in done.out.split("best ")[1]


def test_values_that_do_not_go_together_fail_one_trial(search: Callable[..., Outcome], tmp_path: Path) -> None:
    options = own_space(tmp_path, "model.activation: {choices: [relu, rellu]}")
    done = search(*options, "search.sampler=grid", *SMALL)
    assert done.code == 0, done.err
    assert sorted(trial.state.name for trial in study_of(tmp_path).trials) == ["COMPLETE", "FAIL"]
    assert "failed  trial" in done.out and "rellu" in done.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["search=mpl"], "did you mean mlp?"),
        (["search.n_trials=0"], "search.n_trials is 0"),
        (["search.sampler=tpee"], "search.sampler"),
        (["search=optimizers", "search.sampler=grid"], "no conditional keys"),
        (["own", "optimizer.lrr: {low: 0.1, high: 1}"], "optimizer.lrr"),
        (["own", "optimizer.lr: {low: 1, high: 0.1}"], "low must be below high"),
        (["search.storage=nosuch://x"], "cannot be used"),
        (["data=mnist", "data.root=/nonexistent"], "MNIST is not in /nonexistent"),
    ],
)
def test_a_mistake_is_one_line_before_any_trial(
    arguments: list[str], expected: str, search: Callable[..., Outcome], tmp_path: Path
) -> None:
    if arguments[0] == "own":
        arguments = own_space(tmp_path, arguments[1])
    done = search(*arguments)
    assert done.code == 2
    assert expected in done.err and len(done.err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("found/trial-*"))


# --------------------------------------------------------------------------------------------------------- many processes


def join(folder: Path, url: str, *, n_trials: int = 12, sampler: str = "random", fixed: tuple[str, ...] = ()) -> Search:
    """A process's part in a study over one learning rate, without the training."""
    options: dict[str, Any] = {"sampler": sampler, "pruner": "none", "n_trials": n_trials, "seed": 0}
    options["space"] = {"lr": {"low": 0.0, "high": 1.0, "points": 10}}
    cfg = OmegaConf.create({"search": options, "experiments_dir": str(folder), "name": "found"})
    dimensions = read_space(options["space"])
    return Search(
        *open_study(cfg.search, "found", url, "maximize", dimensions, fixed), cfg, (), "val/accuracy", train=dict
    )


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


def wait_for(folder: Path, pattern: str, *, num: int = 1) -> None:
    """Waits until there are so many such files."""
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < num:
        assert time.monotonic() < deadline, f"no {pattern} in {folder}"
        time.sleep(0.05)


def test_a_killed_search_is_gone_on_with_and_its_trials_are_finished(
    search: Callable[..., Outcome], tmp_path: Path
) -> None:
    arguments = ["search=lr", "search.n_trials=3", "trainer.epochs=80", *SMALL[1:]]
    with start(tmp_path, *arguments) as started:
        wait_for(tmp_path, "found/trial-*/last.pt")
        started.kill()
    done = search(*arguments)
    assert done.code == 0, done.err
    assert [trial.state.name for trial in study_of(tmp_path).trials] == ["COMPLETE"] * 3
    for number in range(3):
        status = json.loads((tmp_path / "found" / f"trial-{number:04d}" / "status.json").read_text())
        assert (status["state"], status["epoch"]) == ("finished", 80)


@pytest.mark.slow
def test_two_processes_share_a_search_and_one_finishes_what_the_other_leaves(tmp_path: Path, url: str) -> None:
    arguments = ["search=mlp", "search.n_trials=12", "trainer.epochs=30", *SMALL[1:], f"search.storage='{url}'"]
    with start(tmp_path, *arguments) as killed, start(tmp_path, *arguments) as other:
        wait_for(tmp_path, "found/trial-*/metrics.json", num=4)
        killed.kill()
        out, err = other.communicate(timeout=120)
    assert other.returncode == 0, err
    assert "trials  12 complete" in out
    found = optuna.load_study(study_name="found", storage=url)
    assert [trial.state.name for trial in found.trials] == ["COMPLETE"] * 12
    for trial in found.trials:
        directory = tmp_path / "found" / f"trial-{trial.number:04d}"
        epochs = [record["epoch"] for record in conftest.read_lines(directory / "metrics.jsonl")]
        assert epochs == list(range(1, 31)) == sorted(trial.intermediate_values)
