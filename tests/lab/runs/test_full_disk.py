"""A disk that takes no more ends a run in one line, and leaves its checkpoint."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Outcome, assert_one_line, read
from helpers.runs import (
    STEPS_PER_EPOCH,
    after_step,
    only_run,
)

from lab.runs.checkpoint import load_tensors
from lab.runs.run import Run


@pytest.fixture
def unlimited() -> Iterator[None]:
    """Puts the largest size of a file back to what it was."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def limit_size(size: int) -> None:
    """Makes every file end at a size, as a full disk would."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def refuse(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets no file be made any more."""
    open_path: Callable[..., Any] = Path.open

    def refused(self: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        if mode.startswith("w"):
            raise OSError(number, os.strerror(number))
        return open_path(self, mode, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", refused)


DISKS: dict[str, tuple[Callable[[Run, pytest.MonkeyPatch], Any], list[str]]] = {
    "full for the checkpoint": (lambda run, patch: limit_size(100_000), ["last.pt", "File too large"]),
    "full for TensorBoard": (lambda run, patch: limit_size(6_000), ["events.out.tfevents", "File too large"]),
    "full for all": (lambda run, patch: limit_size(1), ["File too large"]),
    "read-only": (lambda run, patch: refuse(errno.EROFS, patch), ["metrics.json", "Read-only file system"]),
    "forbidden": (lambda run, patch: refuse(errno.EACCES, patch), ["metrics.json", "Permission denied"]),
}


@pytest.mark.parametrize("disk", DISKS)
def test_a_disk_that_takes_no_more_leaves_the_checkpoint(
    disk: str,
    try_short: Callable[..., Outcome],
    goes_on_exactly: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unlimited: None,
) -> None:
    happens, parts = DISKS[disk]
    after_step(7, lambda run: happens(run, monkeypatch), monkeypatch)
    outcome = try_short()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.undo()
    assert_one_line(Outcome(outcome.code, "", outcome.err), *parts, "MiB are free there", "can go on", code=1)
    assert load_tensors(only_run(tmp_path) / "last.pt")["progress"]["step"] == STEPS_PER_EPOCH
    assert not list(only_run(tmp_path).glob(".*.tmp"))
    goes_on_exactly()


def test_a_folder_that_vanishes_is_said_to_be_gone(
    try_short: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_step(7, lambda run: shutil.rmtree(run.directory), monkeypatch)
    outcome = try_short()
    assert_one_line(Outcome(outcome.code, "", outcome.err), "experiments/run/", "removed", code=1)
    assert list((tmp_path / "experiments" / "run").iterdir()) == []


def move_away(run: Run) -> Path:
    """Moves a run's directory, and makes an empty one in its place."""
    moved = run.directory.with_name("moved")
    run.directory.rename(moved)
    run.directory.mkdir()
    return moved


def empty(run: Run) -> None:
    for path in run.directory.iterdir():
        if path.name not in (".lock", ".lock.owner", "train.log"):
            path.unlink()


@pytest.mark.parametrize("happens", [move_away, empty])
@pytest.mark.parametrize("step", [7, 12])
def test_a_run_without_its_folder_never_says_that_it_has_finished(
    happens: Callable[[Run], Any],
    step: int,
    try_short: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    after_step(step, happens, monkeypatch)
    outcome = try_short()
    assert_one_line(Outcome(outcome.code, "", outcome.err), "was moved, removed or emptied", code=1)
    for directory in (tmp_path / "experiments" / "run").iterdir():
        if directory.name == "moved":
            assert read(directory / "status.json")["state"] == "running"  # as a killed run's, which goes on
            assert load_tensors(directory / "last.pt")["progress"]["step"] == step // STEPS_PER_EPOCH * STEPS_PER_EPOCH
        else:
            assert not {"status.json", "last.pt", "best.pt"} & {path.name for path in directory.iterdir()}
