"""A signal ends a run after its step, with a checkpoint that goes on exactly."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Outcome, assert_one_line, read, read_lines
from helpers.runs import (
    STEPS_PER_EPOCH,
    after_step,
    contents,
    only_run,
    send,
)

from lab.devices import signals as stopping
from lab.runs.checkpoint import load_tensors
from lab.runs.loading import load_config
from lab.runs.run import Run


def send_when_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends SIGTERM in the middle of the next file that is written."""
    sync = os.fsync

    def sync_and_send(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        send(signal.SIGTERM)

    monkeypatch.setattr(os, "fsync", sync_and_send)


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGUSR2, 140)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_signal_ends_a_run_after_its_step(
    signum: signal.Signals,
    code: int,
    try_short: Callable[..., Outcome],
    run_command: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With its checkpoint on the disk, when the handler that was there before is called; the command that it says works."""
    seen = []

    def handle(number: int, _: Any) -> None:
        run = only_run(tmp_path)
        seen.append((number, read(run / "status.json")["state"], load_tensors(run / "last.pt")["progress"]["step"]))

    after_step(7, lambda run: send(signum), monkeypatch)
    before = signal.signal(signum, handle)
    try:
        outcome = try_short()
    finally:
        signal.signal(signum, before)
    monkeypatch.undo()
    assert outcome.code == code
    assert seen == [(signum, "interrupted", 7)]
    assert read(only_run(tmp_path) / "status.json")["step"] == 7
    assert outcome.err.strip() == "train.py: interrupted"
    command = shlex.split(outcome.out.split("go on with: ")[1].splitlines()[0])
    assert command[:2] == ["python", "train.py"]
    assert (
        run_command("train", *command[2:], "dry_run=true").out.strip().endswith("goes on (interrupted after epoch 1)")
    )


def test_a_second_signal_ends_a_run_at_once(
    try_short: Callable[..., Outcome],
    goes_on_exactly: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stopping, "SECONDS_OF_ONE", 0)
    after_step(7, lambda run: (send(signal.SIGUSR1), send(signal.SIGTERM)), monkeypatch)
    outcome = try_short()
    assert outcome.code == 143
    status = read(only_run(tmp_path) / "status.json")
    assert (status["state"], status["step"]) == ("interrupted", 7)
    assert load_tensors(only_run(tmp_path) / "last.pt")["progress"]["step"] == STEPS_PER_EPOCH
    monkeypatch.undo()
    goes_on_exactly()


def test_a_second_signal_during_the_checkpoint_of_the_first_does_no_harm(
    try_short: Callable[..., Outcome],
    goes_on_exactly: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stopping, "SECONDS_OF_ONE", 0)

    def disturb(run: Run) -> None:
        send(signal.SIGTERM)
        send_when_it_writes(monkeypatch)

    after_step(7, disturb, monkeypatch)
    assert try_short().code == 143
    assert load_tensors(only_run(tmp_path) / "last.pt")["progress"]["step"] == STEPS_PER_EPOCH
    assert not list(only_run(tmp_path).glob(".*.tmp"))
    monkeypatch.undo()
    goes_on_exactly()


def test_a_signal_during_a_periodic_checkpoint_is_not_forgotten(
    try_short: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_step(6, lambda run: send_when_it_writes(monkeypatch), monkeypatch)
    assert try_short("trainer.checkpoint_every=6").code == 143
    assert load_tensors(only_run(tmp_path) / "last.pt")["progress"]["step"] == 7


def test_so_many_more_epochs(
    try_short: Callable[..., Outcome],
    goes_on_exactly: Callable[[], None],
    run_command: Callable[..., Outcome],
    tmp_path: Path,
) -> None:
    assert try_short("trainer.epochs=2").code == 0
    again = run_command("train", f"resume={only_run(tmp_path)}", "trainer.epochs=+2", "dry_run=true")
    assert again.out.strip().endswith("goes on (finished after epoch 2)")
    assert run_command("train", f"resume={only_run(tmp_path)}", "trainer.epochs=+1").code == 0
    assert load_config(only_run(tmp_path)).trainer.epochs == 3
    assert run_command("train", f"resume={only_run(tmp_path)}", "trainer.epochs=+1").code == 0
    goes_on_exactly()
    assert [record["epoch"] for record in read_lines(only_run(tmp_path) / "metrics.jsonl")] == [1, 2, 3, 4]


def test_more_epochs_of_a_schedule_that_is_a_share_of_them_are_refused(
    try_short: Callable[..., Outcome], run_command: Callable[..., Outcome], tmp_path: Path
) -> None:
    assert try_short("trainer.epochs=1", "scheduler=cosine").code == 0
    before = contents(only_run(tmp_path))
    outcome = run_command("train", f"resume={only_run(tmp_path)}", "trainer.epochs=+3")
    assert_one_line(outcome, "started for 1 epochs", "scheduler.T_max=100%", "4 epochs would be another run")
    assert contents(only_run(tmp_path)) == before
