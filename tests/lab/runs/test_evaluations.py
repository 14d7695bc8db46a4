"""Several runs are evaluated at once; what is kept of each example, and how often the test split was opened."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from helpers.commands import Outcome, assert_one_line, read

from lab.runs.checkpoint import load_tensors
from lab.runs.lock import held, refuse_links
from lab.runs.reading import read_run
from lab.tables.content import heading
from lab.tables.summary import summarize
from utils import UserError

SHORT = ["trainer.epochs=1", "data.limit=90", "model.hidden_sizes=[8]"]


@pytest.fixture
def study(run_train: Callable[..., Path]) -> Path:
    """A folder of three runs."""
    runs = [run_train(*SHORT, f"seed={seed}", name="study") for seed in range(3)]
    return runs[0].parent


def test_runs_of_a_pattern_have_a_line_each_and_one_file(
    study: Path, run_command: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = run_command("evaluate", f"run={study.parent}/*/*")
    assert outcome.code == 0, outcome.err
    runs = sorted(path.parent for path in study.glob("*/config.yaml"))
    recorded = {run.name: read(run / "evaluation.json") for run in runs}
    lines = outcome.out.splitlines()
    assert len(lines) == 4 and lines[-1] == f"written: {study / 'evaluations.json'}"
    for run, line in zip(runs, lines, strict=False):
        assert line.startswith(run.name)
        assert f"test/accuracy {recorded[run.name]['test/accuracy']:.4f}" in line
    found = read(study / "evaluations.json")
    assert found.keys() == recorded.keys()
    assert all(one["test/loss"] == recorded[name]["test/loss"] for name, one in found.items())


def test_a_list_of_runs_and_one_of_them_is_broken(study: Path, run_command: Callable[..., Outcome]) -> None:
    good, broken, _ = sorted(study.iterdir())
    (broken / "best.pt").unlink()
    outcome = run_command("evaluate", f"run=[{good},{broken}]")
    assert outcome.code == 1
    assert "1 of 2 runs could not be evaluated" in outcome.err
    assert f"{broken.name}  not evaluated: " in outcome.out and "test/accuracy" in outcome.out
    assert "best.pt" in read(study / "evaluations.json")[broken.name]["problem"]
    assert read(good / "evaluation.json")["split"] == "test"


def test_a_pattern_that_matches_nothing(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    assert_one_line(run_command("evaluate", f"run={tmp_path}/*/*"), f"{tmp_path}/*/*", "matches no run")
    assert_one_line(run_command("evaluate", f"run=[{tmp_path}/*]"), "matches no run")
    assert_one_line(run_command("evaluate", "run=[]"), "empty list")
    assert_one_line(run_command("evaluate", "-m", "run=glob(*)"), "matches no run", "run='experiments/study/*/*'")


def test_several_runs_are_not_exported(study: Path, run_command: Callable[..., Outcome]) -> None:
    assert_one_line(run_command("evaluate", f"run={study}/*", "export=torch_export"), "export", "one run", "3")


def test_several_jobs_leave_no_folder(
    study: Path, run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    first, second, _ = sorted(study.iterdir())
    assert run_command("evaluate", "-m", f"run={first},{second}", "hydra.job.chdir=false").code == 0
    assert set(tmp_path.iterdir()) == before
    assert (first / "evaluation.json").exists() and (second / "evaluation.json").exists()


def test_what_became_of_each_example_is_kept(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    run = run_train(*SHORT, name="classes")
    assert run_command("evaluate", f"run={run}").code == 0
    kept, result = load_tensors(run / "outcomes.pt"), read(run / "evaluation.json")
    assert (kept["kind"], kept["epoch"], kept["values"].dtype) == ("right", 1, torch.uint8)
    assert len(kept["values"]) == result["num_examples"]
    assert kept["values"].double().mean() == pytest.approx(result["test/accuracy"], abs=1e-12)
    values = run_train("data=random_regression", "trainer.epochs=1", "model.hidden_sizes=[8]", name="values")
    assert run_command("evaluate", f"run={values}", "split=val", "checkpoint=last").code == 0
    kept, result = load_tensors(values / "outcomes_val_last.pt"), read(values / "evaluation_val_last.json")
    assert (kept["kind"], kept["values"].dtype) == ("loss", torch.float32)
    assert kept["values"].double().mean() == pytest.approx(result["val/loss"], rel=1e-6)


def test_the_ledger_of_the_test_split(study: Path, run_command: Callable[..., Outcome]) -> None:
    first, second, _ = sorted(study.iterdir())
    assert not any("test split" in line for line in heading(summarize(study)))
    for arguments in (["split=val"], [], ["checkpoint=last"]):
        assert run_command("evaluate", f"run={first}", *arguments).code == 0
    records = [json.loads(line) for line in (first / "test_openings.jsonl").read_text().splitlines()]
    assert [record["checkpoint"] for record in records] == ["best", "last"]
    assert "the test split was opened 2 times, for 1 of the 3 runs" in heading(summarize(study))
    assert run_command("evaluate", f"run={second}").code == 0
    (second / "test_openings.jsonl").unlink()  # as in a run from before there were ledgers
    assert read_run(second, study).num_tested == 1
    assert run_command("train", f"resume={first}", "rerun=true").code == 0
    assert not (first / "evaluation.json").exists() and read_run(first, study).num_tested == 2


@pytest.mark.parametrize("key", ["split_seed: 0", "activation: relu"])
def test_a_changed_configuration_is_not_evaluated_with_the_old_weights(
    key: str, run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    run = run_train(*SHORT)
    text = (run / "config.yaml").read_text()
    assert key in text
    (run / "config.yaml").write_text(text.replace(key, {"s": "split_seed: 1", "a": "activation: gelu"}[key[0]]))
    assert_one_line(run_command("evaluate", f"run={run}"), "best.pt", "another configuration", key.partition(":")[0])
    assert not (run / "evaluation.json").exists() and not (run / "test_openings.jsonl").exists()


def test_the_second_of_two_evaluations_waits(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    run = run_train(*SHORT)
    is_held, was_there = threading.Event(), list[bool]()

    def hold() -> None:
        with FileLock(run / ".lock.evaluation"):
            is_held.set()
            time.sleep(1)
            was_there.append((run / "evaluation.json").exists())

    other = threading.Thread(target=hold)
    other.start()
    is_held.wait()
    outcome = run_command("evaluate", f"run={run}")
    other.join()
    assert outcome.code == 0 and "waiting for another command" in outcome.err
    assert was_there == [False] and (run / "evaluation.json").exists()


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".lock.results").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"), held(tmp_path, "results"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_the_loader_of_an_evaluation_is_closed(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.data_loader import TensorLoader

    closed = []
    run = run_train(*SHORT)
    monkeypatch.setattr(TensorLoader, "close", lambda self: closed.append(self.num_examples))
    assert run_command("evaluate", f"run={run}").code == 0
    assert closed == [read(run / "evaluation.json")["num_examples"]]
    shutil.rmtree(run)


def test_a_file_that_vanishes_while_links_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the temporary file of another evaluation does, once it has its name."""
    monkeypatch.setattr(os, "walk", lambda folder: [(str(folder), [], [".evaluation.json.tmp"])])
    refuse_links(tmp_path)
    (tmp_path / ".evaluation.json.tmp").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match="link"):
        refuse_links(tmp_path)
