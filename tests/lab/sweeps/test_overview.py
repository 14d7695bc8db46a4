"""What is seen of jobs while they run, on a terminal of 80 columns and elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.sweeps import make_job

from lab.sweeps.overview import Overview, shorten, shown
from lab.sweeps.pool import Ended, Job, Running


def write_run(directory: Path, *, higher: bool = True, monitor: str = "val/accuracy") -> Path:
    """What a run has written after its second epoch, while it writes of its third."""
    directory.mkdir()
    directions = {"loss": False, monitor.rpartition("/")[2]: higher}
    (directory / "metrics.json").write_text(json.dumps({"monitor": monitor, "higher_is_better": directions}))
    record = {"epoch": 2, "train/loss": 0.9, "val/loss": 0.61239, "val/accuracy": 0.5}
    (directory / "metrics.jsonl").write_text(json.dumps(record) + '\n{"epoch": 3, "tr')
    return directory


def test_a_terminal_shows_how_far_each_job_is_and_which_is_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((80, 24)))
    overview = Overview(total=10, num_finished=4, n_jobs=2)
    overview.is_live = True
    job = make_job(tmp_path, 0, "trainer.epochs=20")
    now = overview.started + 60
    monkeypatch.setattr(time, "monotonic", lambda: now)  # or a slow machine would show another second
    runs = [write_run(tmp_path / str(number)) for number in range(4)]
    labels = [f"model=cnn optimizer.lr=0.{number} seed=0 data.batch_size=64 trainer.epochs=20" for number in range(4)]
    jobs = [Job(job.cfg, run, label=label) for run, label in zip(runs, labels, strict=True)]
    running: Any = [Running(jobs[0], None)]  # type: ignore[arg-type]
    overview.end(Ended(jobs[1], {"val/accuracy": 0.87654, "val/loss": 0.3}, None, 1.0))
    overview.end(Ended(jobs[2], {"val/accuracy": 0.7, "val/loss": 0.1}, None, 1.0))
    overview.end(Ended(jobs[3], None, "no luck", 1.0))
    overview.draw(running)
    overview.draw(running)
    out = capsys.readouterr().out
    assert out.startswith("10 jobs, 2 at a time, 4 of them finished already\n")
    drawn = out.split("no luck\n")[1].split("\x1b[3F\x1b[J")
    assert len(drawn) == 2 and drawn[0] == drawn[1], "the second time over the first"
    # 3.1 of 6 jobs in a minute: the other 2.9 take 56 seconds.
    assert drawn[0].splitlines() == [
        "6/10 done, 1 running, 1 failed, about 0:00:56 left",
        "best so far  val/accuracy 0.877  model=cnn lr=0.1 seed=0 batch_size=64 epochs=2",
        "  epoch  2/20  val/accuracy 0.500  val/loss 0.612  model=cnn lr=0.0 seed=0 batc",
    ]


def test_a_line_for_each_event_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overview = Overview(total=2, num_finished=0, n_jobs=8)
    job = make_job(write_run(tmp_path / "a", higher=False, monitor="val/rmse"), 0)
    overview.start(Running(Job(job.cfg, job.directory, label="optimizer.lr=0.1"), None))  # type: ignore[arg-type]
    for value in (12.3456, 3.0, 4.0):
        overview.end(
            Ended(Job(job.cfg, job.directory, label=f"x={value}"), {"val/loss": 1.0, "val/rmse": value}, None, 2.0)
        )
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "2 jobs, 2 at a time",
        "start   lr=0.1",
        "done    1/2  val/rmse 12.3  val/loss 1.00  2.0 s  x=12.3456",
    ]
    assert overview.best == ("val/rmse", 3.0, "x=3.0"), "the lower the better, as the run has recorded"


def test_keys_are_short_where_they_stay_apart() -> None:
    assert shorten("model=cnn optimizer.lr=0.1 ~model.dropout=null") == "model=cnn lr=0.1 dropout=null"
    assert shorten("model.lr=1 optimizer.lr=2 seed=0") == "model.lr=1 optimizer.lr=2 seed=0"
    assert shorten("trial 3: data.root=/a.b/c=d") == "trial 3: root=/a.b/c=d"


def test_numbers_have_three_digits() -> None:
    record = {"epoch": 3, "val/loss": 123.456, "train/loss": 1.0, "val/r2": 0.00012345, "val/accuracy": "nan"}
    assert shown(record, first="val/r2") == "val/r2 0.000123  val/loss 123  val/accuracy nan"
