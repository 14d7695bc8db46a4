"""A run directory belongs to one process at a time, and holds no links: what is written into it lands in it."""

from __future__ import annotations

import contextlib
import os
import platform
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from lab.runs.files import read_text
from utils import Unwritable, UserError, unwritable


def refuse_links(directory: Path) -> None:
    """UserError where a run directory that is to be written holds a link: what is written would land where that points."""
    for folder, subfolders, files in os.walk(directory):
        for path in (Path(folder, name) for name in (*subfolders, *files)):
            try:
                kind = path.lstat().st_mode
            except FileNotFoundError:  # written and renamed by another process meanwhile
                continue
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                raise UserError(
                    f"{path} is no file but a link or a device, and what is written into {directory} could land elsewhere; "
                    f"put a copy of the file in its place, or remove it"
                )


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Makes a run directory and holds it; UserError where another process does. The lock of a dead one does not count."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unwritable(f"{directory} cannot be made ({error.strerror}); choose another experiments_dir") from error
    refuse_links(directory)
    lock = FileLock(directory / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        owner = directory / ".lock.owner"
        holder = read_text(owner) if owner.exists() else "another process"
        raise UserError(f"{directory} is being written by {holder}; wait for it, or stop it first") from None
    try:
        (directory / ".lock.owner").write_text(f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        with contextlib.suppress(OSError):  # a folder that can no longer be written is told of elsewhere
            (directory / ".lock.owner").unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Lets one command at a time write the files of that kind into a folder; the others wait, and say so."""
    path = folder / f".lock.{what}"
    if path.is_symlink():
        raise UserError(f"{path} is a link, and what is written could land elsewhere; remove it")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another command that writes into {folder}", file=sys.stderr)
        lock.acquire()
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()
