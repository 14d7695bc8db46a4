"""A search proposes, trains ordinary runs, goes on where it stopped, and says what it found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import Outcome
from helpers.sweeps import OTHER_MODEL, SMALL, own_space, start, study_of, wait_for


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
    defaults = {"optimizer.lr": 1e-3, "model.hidden_sizes": "[128,64]", "model.dropout": 0.0, "data.batch_size": 64}
    assert (found.trials[0].user_attrs["overrides"], found.trials[0].params) == ([], defaults)
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


def test_the_best_trials_are_confirmed_on_fresh_seeds(search: Callable[..., Outcome], tmp_path: Path) -> None:
    arguments = ["search=lr", "search.n_trials=4", "search.confirm=2x2", "seed=7", *SMALL]
    done = search(*arguments)
    assert done.code == 0, done.err
    trials = sorted(study_of(tmp_path).trials, key=lambda trial: trial.value or 0.0, reverse=True)
    folders = {path.name: path for path in (tmp_path / "found_confirmed").glob("trial-*")}
    assert folders.keys() == {f"trial-{trial.number:04d}" for trial in trials[:2]}
    means = {}
    for name, folder in folders.items():
        assert {path.name for path in folder.iterdir()} == {"seed-8", "seed-9"}
        found = [json.loads(path.read_text())["best"]["val/accuracy"] for path in folder.glob("*/metrics.json")]
        means[int(name.removeprefix("trial-"))] = sum(found) / 2
    best = max(means, key=lambda number: means[number])
    assert f"best    trial {best}: val/accuracy {means[best]:.4f} on average of 2 fresh seeds" in done.out
    assert "fresh seeds, as the best trial" in (tmp_path / "conf" / "found_best.yaml").read_text()
    again = search(*arguments)
    assert again.code == 0 and "4 jobs: 4 were finished, 0 ran" in again.out and "start " not in again.out


def test_a_trial_that_ends_itself_has_failed(search: Callable[..., Outcome], tmp_path: Path) -> None:
    """Whatever way it takes; and the configuration as it is comes first."""
    (tmp_path / "trap").touch()
    options = [*own_space(tmp_path, "model.harm: {choices: [exit, interrupt]}"), f"+model.trap={tmp_path / 'trap'}"]
    options += ["model._target_=sweep_networks.Trapped", *OTHER_MODEL, "+model.harm=none", "data.batch_size=15"]
    done = search(*options, "search.n_trials=5", "search.sampler=random", *SMALL)
    assert done.code == 0, done.err
    trials = study_of(tmp_path).trials
    assert (trials[0].user_attrs["overrides"], trials[0].params) == ([], {})
    assert [trial.state.name for trial in trials] == ["COMPLETE", *["FAIL"] * 4]
    assert {trial.params["model.harm"] for trial in trials[1:]} == {"exit", "interrupt"}
    assert "trials  1 complete, 4 fail" in done.out
    assert "(the configuration as it is)" in done.out


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
        (["search.confirm=3"], "search.confirm is 3; it takes null, or as 3x5"),
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
