"""A kill at any operation on a file leaves a checkpoint."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets  # noqa: F401  these here, so that no forked process imports them for itself
from helpers.processes import (
    die_at,
    fork,
    in_the_second_save,
)
from helpers.runs import (
    Killed,
    assert_same,
    configuration,
    kill_after,
    outcome_of,
    whole_run,
)
from omegaconf import DictConfig

import train
from lab.runs.checkpoint import load_tensors


def kill_at_every_operation(
    cfg: DictConfig,
    stopped: Path,
    folder: Path,
    expected: dict[str, Any],
    start_at: Callable[[Callable[[], None]], None],
) -> int:
    """Kills a copy of a run at each operation on its files after `start_at`; how many there were.

    Each copy must have a checkpoint that loads, and come to what is expected.
    """
    for number in range(1, 1000):
        directory = folder / str(number)
        if stopped.exists():
            shutil.copytree(stopped, directory)

        def work(number: int = number, directory: Path = directory) -> None:
            start_at(die_at(number, directory))
            train.train(cfg, directory)

        code = os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])
        if code == 0:
            return number - 1
        assert code == -signal.SIGKILL
        if stopped.exists():
            load_tensors(directory / "last.pt")
        train.train(cfg, directory)
        assert_same(outcome_of(directory), expected)
        assert not list(directory.glob(".*.tmp"))
        shutil.rmtree(directory)
    raise AssertionError("it never came to its end")


QUADRATIC = ["data=quadratic", "data.passes=2", "data.batch_size=100", "trainer.epochs=2", "trainer.log_every=1"]


def test_a_kill_at_any_operation_of_a_save_leaves_a_checkpoint(tmp_path: Path) -> None:
    cfg = configuration(*QUADRATIC, "trainer.checkpoint_every=1")
    expected = whole_run(cfg, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_after(2, patch)  # the saves of the next process have both last.pt and before.pt to take care of
        train.train(cfg, tmp_path / "stopped")
    num_operations = kill_at_every_operation(
        cfg, tmp_path / "stopped", tmp_path / "killed", expected, in_the_second_save
    )
    # Two logs are synced; last.pt is opened, written in halves, synced, linked, renamed; status.json, but for the link.
    assert num_operations > 15


@pytest.mark.slow
def test_a_kill_at_any_operation_of_a_run_leaves_it_resumable(tmp_path: Path) -> None:
    cfg = configuration(*QUADRATIC, "trainer.checkpoint_every=1")
    expected = whole_run(cfg, tmp_path / "whole")
    nothing = tmp_path / "nothing"
    num_operations = kill_at_every_operation(cfg, nothing, tmp_path / "killed", expected, lambda start: start())
    print(f"killed at {num_operations} operations")
    assert num_operations > 150
