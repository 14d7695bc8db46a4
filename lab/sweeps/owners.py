"""Whose a trial is: what a process that trains one says of itself in the study, and whether it holds a lock."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

if TYPE_CHECKING:  # Optuna takes a second to import; --help and mistakes do without
    import optuna


def owner(directory: Path) -> dict[str, Any]:
    """What says that this process trains in that directory now."""
    return {"host": platform.node(), "directory": str(directory), "alive": time.time()}


def owner_of(trial: optuna.trial.FrozenTrial) -> dict[str, Any] | None:
    """What `owner` said of the process that trains a trial; None where that is not recorded, or not so."""
    recorded = trial.user_attrs.get("owner")
    kinds: dict[str, Any] = {"host": str, "directory": str, "alive": (int, float)}
    is_whole = isinstance(recorded, dict) and all(isinstance(recorded.get(key), kind) for key, kind in kinds.items())
    return recorded if is_whole else None


def is_free(file: Path, *, seconds: float = 0) -> bool:
    """Whether no process holds that lock, or lets go of it within so many seconds."""
    try:
        with FileLock(file, timeout=seconds):
            return True
    except Timeout:
        return False
