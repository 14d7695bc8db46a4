"""A damaged checkpoint is told of, and the one before it taken."""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Outcome, assert_one_line
from helpers.processes import (
    fork,
)
from helpers.runs import (
    after_step,
    contents,
    flip,
    send,
)

from lab.runs.checkpoint import FORMAT, load_tensors, save_tensors
from lab.runs.lock import locked


@pytest.mark.parametrize("harm", [flip, Path.unlink, lambda path: path.write_bytes(b"")], ids=["flip", "gone", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    harm: Callable[[Path], Any],
    stopped: Path,
    goes_on_exactly: Callable[[], None],
    run_command: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harm(stopped / "last.pt")
    (stopped / ".last.pt.tmp").write_bytes(b"what a kill has left")
    after_step(11, lambda run: send(signal.SIGTERM), monkeypatch)
    outcome = run_command("train", f"resume={stopped}")
    monkeypatch.undo()
    assert "WARNING" in outcome.err and "last.pt" in outcome.err and "the checkpoint before it" in outcome.err
    assert "WARNING" not in outcome.out and (stopped / "train.log").read_text().count("the checkpoint before it") == 1
    assert "going on after epoch 2, step 10" in outcome.out
    assert load_tensors(stopped / "before.pt")["progress"]["step"] == 10, (
        "the one that it went back to, not the damaged one"
    )
    assert not list(stopped.glob(".*.tmp"))
    goes_on_exactly()


def test_without_a_whole_checkpoint_nothing_is_changed(stopped: Path, run_command: Callable[..., Outcome]) -> None:
    for name in ("last.pt", "before.pt"):
        flip(stopped / name)
    before = contents(stopped)
    assert_one_line(run_command("train", f"resume={stopped}"), "last.pt is damaged", "before.pt is damaged")
    assert contents(stopped) == before


def test_damaged_best_weights_are_warned_of(
    stopped: Path, run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(stopped / "best.pt")
    after_step(13, lambda run: send(signal.SIGTERM), monkeypatch)
    outcome = run_command("train", f"resume={stopped}")
    assert "WARNING" in outcome.err and "best.pt is damaged" in outcome.err
    assert_one_line(run_command("evaluate", f"run={stopped}"), "best.pt is damaged")


def test_a_file_that_was_asked_for_is_not_replaced_by_another(
    stopped: Path, run_command: Callable[..., Outcome]
) -> None:
    assert run_command("evaluate", f"run={stopped}", "checkpoint=last").code == 0
    flip(stopped / "last.pt")
    before = contents(stopped)
    assert_one_line(run_command("evaluate", f"run={stopped}", "checkpoint=last"), "last.pt is damaged")
    assert contents(stopped) == before


def test_a_checkpoint_of_a_newer_version_is_refused(stopped: Path, run_command: Callable[..., Outcome]) -> None:
    save_tensors(stopped / "last.pt", load_tensors(stopped / "last.pt") | {"format": FORMAT + 1})
    before = contents(stopped)
    assert_one_line(run_command("train", f"resume={stopped}"), f"has the format {FORMAT + 1}", "newer version")
    assert contents(stopped) == before


def test_a_run_is_written_by_one_process_at_a_time(stopped: Path, run_command: Callable[..., Outcome]) -> None:
    """Another is refused, and told who writes it; the lock of a process that was killed does not count."""
    reader, writer = os.pipe()

    def hold() -> None:
        with locked(stopped):
            os.write(writer, b"held")
            signal.pause()

    pid = fork(hold)
    try:
        assert os.read(reader, 4) == b"held"
        before = contents(stopped)
        assert_one_line(run_command("train", f"resume={stopped}"), f"by process {pid} on {platform.node()}")
        assert contents(stopped) == before
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert (stopped / ".lock.owner").exists()
    assert run_command("train", f"resume={stopped}").code == 0
