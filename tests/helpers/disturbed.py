"""Fixtures: runs of 4 epochs that something happens to."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import Outcome
from helpers.runs import (
    SHORT,
    after_step,
    assert_same,
    only_run,
    outcome_of,
    send,
)


@pytest.fixture
def try_short(run_command: Callable[..., Outcome], tmp_path: Path) -> Callable[..., Outcome]:
    """try_short(...) trains 4 epochs of 5 steps below tmp_path/experiments, or not; its outcome."""

    def run(*arguments: str, name: str = "run") -> Outcome:
        fixed = [f"experiments_dir={tmp_path / 'experiments'}", f"name={name}", "trainer.device=cpu"]
        return run_command("train", *fixed, "trainer.images=false", "model.dropout=0.3", *SHORT, *arguments)

    return run


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """What the run of `try_short` comes to, once one has ended; empty before."""
    yield []


@pytest.fixture
def goes_on_exactly(
    try_short: Callable[..., Outcome], run_command: Callable[..., Outcome], calm: list[dict[str, Any]], tmp_path: Path
) -> Callable[[], None]:
    """Says whether the run of `try_short`, resumed, comes to what one comes to that nothing happens to."""

    def check() -> None:
        if not calm:
            assert try_short(name="calm").code == 0
            calm.append(outcome_of(next((tmp_path / "experiments" / "calm").iterdir())))
        again = run_command("train", f"resume={only_run(tmp_path)}")
        assert again.code == 0, again.err
        assert_same(outcome_of(only_run(tmp_path)), calm[0])

    return check


@pytest.fixture
def stopped(try_short: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was asked to stop after step 12, with the checkpoint of step 10 before that one."""
    after_step(12, lambda run: send(signal.SIGTERM), monkeypatch)
    assert try_short().code == 143
    monkeypatch.undo()
    return only_run(tmp_path)
