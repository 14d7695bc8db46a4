"""Sweeps: what is missing is run, in processes that cannot harm each other, and disturbances do not show in the results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.commands import Outcome, read, read_lines
from helpers.sweeps import results, snapshot, states

from lab.sweeps import pool


def test_more_seeds_and_values_run_only_what_is_new(run_sweep: Callable[..., Outcome], tmp_path: Path) -> None:
    assert run_sweep("seed=0,1", "optimizer.lr=0.01").code == 0
    before = snapshot(tmp_path / "study")
    outcome = run_sweep("seed=0,1,2", "optimizer.lr=0.01,0.02")
    assert outcome.code == 0
    assert "6 jobs: 2 were finished, 4 ran, 0 failed" in outcome.out
    assert states(tmp_path) == ["finished"] * 6
    after = snapshot(tmp_path / "study")
    files = [path for path in before if path.is_file()]
    assert {path: after[path] for path in files} == {path: before[path] for path in files}


def test_a_dry_run_says_what_would_run_and_writes_nothing(run_sweep: Callable[..., Outcome], tmp_path: Path) -> None:
    assert run_sweep("seed=0,1").code == 0
    (broken,) = tmp_path.glob("study/*/seed-1")
    status = read(broken / "status.json")
    (broken / "status.json").write_text(json.dumps(status | {"state": "running"}))  # as a killed process leaves it
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    outcome = run_sweep("seed=0,1,2", "dry_run=true")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert re.search(r"seed-0 has finished already$", lines[0])
    assert re.search(r"seed-1 goes on \(interrupted after epoch 2\)$", lines[1])
    assert re.search(r"seed-2 starts$", lines[2])
    assert lines[3] == "3 jobs: 1 have finished, 2 would run"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert run_sweep("seed=0", "dry_run=true", name="other").code == 0
    assert not (tmp_path / "other").exists()


def test_a_dry_run_of_one_run_writes_nothing(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run_command("train", f"experiments_dir={tmp_path / 'new'}", "name=one", "dry_run=true")
    assert outcome.code == 0
    assert "starts" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_other_code_is_noted_and_rerun_starts_anew(run_sweep: Callable[..., Outcome], tmp_path: Path) -> None:
    assert run_sweep("seed=0,1").code == 0
    (run,) = tmp_path.glob("study/*/seed-1")
    assert "other code" not in run_sweep("seed=0,1").out
    record = read(run / "provenance.json")
    record["code_sha256"]["model/net.py"] = "0" * 64
    (run / "provenance.json").write_text(json.dumps(record))
    before = snapshot(run)
    outcome = run_sweep("seed=0,1")
    (note,) = [line for line in outcome.out.splitlines() if "other code" in line]
    assert "1 of the 2 finished runs" in note
    assert "rerun=true" in note
    assert snapshot(run) == before

    (run / "old.png").touch()
    expected = results(tmp_path)
    outcome = run_sweep("seed=0,1", "rerun=true")
    assert outcome.code == 0
    assert "2 ran" in outcome.out
    assert results(tmp_path) == expected
    assert not (run / "old.png").exists()
    assert [record["epoch"] for record in read_lines(run / "metrics.jsonl")] == [1, 2]
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    assert "rerun" not in (run / "config.yaml").read_text()
    assert "other code" not in run_sweep("seed=0,1").out


def assert_nothing_started(outcome: Outcome, folder: Path, *parts: str) -> None:
    assert outcome.code == 2
    (line,) = outcome.err.strip().splitlines()
    assert all(part in line for part in parts), line
    assert not list(folder.rglob("seed-*"))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["seed=0,1,2", "optimizer.lr=0.1,-1"], ["optimizer.lr", "-1", "(in the job seed=0 optimizer.lr=-1)"]),
        (["optimizer=sgd,adam", "+optimizer.nesterov=true"], ["nesterov", "in the job optimizer="]),
        (["optimizer=adam,sgd", "optimizer.betas=[0.9,0.9]"], ["optimizer.betas", "in the job optimizer=sgd"]),
        (["seed=0,1", "data=digits,none_such"], ["none_such"]),
        (["seed=3,3"], ["seed-3", "two jobs"]),
        (["seed=0,1", "hydra.launcher.n_jobs=0"], ["hydra.launcher.n_jobs", "0", "at least 1"]),
        (["seed=0,1", "hydra/launcher=pol"], ["pol", "did you mean pool?"]),
    ],
)
def test_a_mistake_in_one_job_starts_none(
    arguments: list[str], parts: list[str], run_sweep: Callable[..., Outcome], tmp_path: Path
) -> None:
    assert_nothing_started(run_sweep(*arguments), tmp_path, *parts)


def test_a_directory_of_another_configuration_is_not_reused(run_sweep: Callable[..., Outcome], tmp_path: Path) -> None:
    assert run_sweep("seed=1").code == 0
    (run,) = tmp_path.glob("study/*/seed-1")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("batch_size: 64", "batch_size: 32"))
    before = snapshot(tmp_path / "study")
    for more in ([], ["rerun=true"]):
        outcome = run_sweep("seed=0,1", *more)
        assert outcome.code == 2
        (line,) = outcome.err.strip().splitlines()
        assert "data.batch_size" in line
        assert "in the job seed=1" in line
    assert snapshot(tmp_path / "study") == before


def test_parallel_jobs_give_what_jobs_give_one_by_one(
    run_sweep: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same metrics, bit for bit, in processes side by side, one after the other, and in this process."""
    values = ["seed=0,1", "model=mlp,cnn"]
    threads = pool.threads_for(2)
    assert run_sweep(*values, "hydra.launcher.n_jobs=2").code == 0
    expected = results(tmp_path / "study")
    assert len(expected) == 4
    assert {read(path)["cpu_threads"] for path in tmp_path.rglob("provenance.json")} == {threads}

    monkeypatch.setattr(pool, "num_cpus", lambda: threads)
    assert run_sweep(*values, "hydra.launcher.n_jobs=1", name="one_by_one").code == 0
    assert results(tmp_path / "one_by_one") == expected

    threads_here = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert run_sweep(*values, "hydra/launcher=basic", name="in_this_process").code == 0
    finally:
        torch.set_num_threads(threads_here)
    assert results(tmp_path / "in_this_process") == expected


def test_the_threads_of_a_job_depend_on_how_many_run_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "num_cpus", lambda: 8)
    assert [pool.threads_for(n_jobs) for n_jobs in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
