"""A run whose main process has ended without a word says that it has failed, once somebody notices."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import Outcome, read
from helpers.processes import fork

from lab.devices.launch import GONE, Lost
from lab.runs.lock import locked
from lab.runs.logger import write_status
from lab.runs.lost import explain_lost, record_lost


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a run has left that was killed."""
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    write_status(tmp_path, "running", epoch=2, step=8, pid=123)
    return tmp_path


def test_whoever_notices_says_so(run: Path) -> None:
    error = explain_lost(run, RuntimeError("process 0 has ended"))
    status = read(run / "status.json")
    assert {key: status[key] for key in ("state", "epoch", "step", "pid", "error")} == {
        **{"state": "failed", "epoch": 2, "step": 8, "pid": 123},
        "error": "process 0 has ended",
    }
    assert "process 0 has ended; go on with: python " in str(error)
    assert shlex.split(str(error))[-1] == f"resume={run}"


def test_who_knows_more_has_the_last_word(run: Path) -> None:
    record_lost(run, Lost(GONE))
    assert read(run / "status.json")["error"] == GONE
    for error in ("process 0 was killed", "something else"):
        record_lost(run, Lost(error))
        assert read(run / "status.json")["error"] == "process 0 was killed"


@pytest.mark.parametrize("state", ["finished", "diverged", "interrupted", "failed"])
def test_what_a_run_has_said_itself_stands(run: Path, state: str) -> None:
    write_status(run, state, epoch=3, step=12, error="its own")
    before = (run / "status.json").read_bytes()
    record_lost(run, RuntimeError("lost"))
    assert (run / "status.json").read_bytes() == before


def test_a_run_that_goes_on_is_left_alone(run: Path) -> None:
    before = (run / "status.json").read_bytes()
    reader, writer = os.pipe()

    def hold() -> None:
        with locked(run):
            os.write(writer, b"x")
            signal.pause()

    pid = fork(hold)
    try:
        os.read(reader, 1)
        record_lost(run, RuntimeError("lost"))
        assert (run / "status.json").read_bytes() == before
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_no_run_is_made_where_there_is_none(tmp_path: Path) -> None:
    record_lost(tmp_path / "gone", RuntimeError("lost"))
    assert not (tmp_path / "gone").exists()


def test_two_processes_of_which_the_first_is_killed(
    run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that started them says so, in one line and in the run's directory."""
    folder = tmp_path / "experiments"
    (tmp_path / "killing_net.py").write_text(KILLING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    outcome = run_command(
        "train", f"experiments_dir={folder}", "name=x", "trainer.devices=2", "trainer.device=cpu", "trainer.epochs=3",
        "data.limit=128", "trainer.images=false", "+model.after=6", "model._target_=killing_net.Net", *REMOVED,
    )  # fmt: skip
    assert outcome.code == 1, outcome.err
    (directory,) = (folder / "x").iterdir()
    status = read(directory / "status.json")
    assert status["state"] == "failed" and "SIGKILL" in json.dumps(status) + outcome.err
    assert f"resume={directory}" in outcome.err


REMOVED = [f"~model.{key}" for key in ("hidden_sizes", "dropout", "activation", "output")]
KILLING = """
import os, signal
from torch import nn
from model.net import DataSpec

class Net(nn.Module):
    def __init__(self, spec: DataSpec, *, after: int) -> None:
        super().__init__()
        self.layer, self.left = nn.Linear(64, spec.output_size), after

    def forward(self, x):
        self.left -= self.training
        if self.left == 0 and os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layer(x.flatten(1))
"""
