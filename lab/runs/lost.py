"""A run whose main process has ended without a word: whoever notices says so in its place."""

from __future__ import annotations

import contextlib
from pathlib import Path

from lab.config.quoting import path_typed
from lab.devices.launch import GONE, Lost
from lab.runs.files import read_json
from lab.runs.lock import locked
from lab.runs.logger import write_status
from utils import UserError, hint


def record_lost(directory: Path, error: BaseException) -> None:
    """Makes status.json say that such a run has failed; one that a process still holds stays as it is."""
    if not (directory / "config.yaml").is_file():
        return
    with contextlib.suppress(UserError, OSError), locked(directory):
        status = read_json(directory / "status.json", state=str, epoch=int, step=int, pid=int)
        if status["state"] == "running" or str(status.get("error")).endswith(GONE):  # said by one who knew no more
            position = {key: status[key] for key in ("epoch", "step", "pid")}
            write_status(directory, "failed", error=str(error), **position)


def explain_lost(directory: Path, error: BaseException) -> Lost:
    """As `record_lost`; the error for the user, with how to go on."""
    record_lost(directory, error)
    command = f"; go on with: {hint('train.py')} {path_typed('resume', directory)}"
    return Lost(f"{error}{command * directory.exists()}")
