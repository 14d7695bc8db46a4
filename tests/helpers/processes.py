"""Processes that are started, watched and killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets  # noqa: F401  these here, so that no forked process imports them for itself

from lab.runs.run import Run

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


def fork(task: Callable[[], Any]) -> int:
    """Does a task in a new process, which says nothing and whose exit code is 0 if it comes to its end; its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
        task()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it should have happened by now"
        time.sleep(0.01)


def processes_in(session: int) -> list[int]:
    """The processes of a session that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            found += [int(path.parent.name)] * (int(fields[3]) == session and fields[0] != "Z")
    return found


def started_by(pid: int) -> list[int]:
    """The processes that a process has had forked to work for it."""
    return [one for server in children_of(pid) if "forkserver" in command_of(server) for one in children_of(server)]


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found += [int(path.parent.name)] * (path.read_text().rpartition(")")[2].split()[1] == str(pid))
    return found


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


class Torn:
    """A file that counts each write as two operations: half of what is written, and the rest."""

    def __init__(self, file: Any, count: Callable[[], None]) -> None:
        self.file, self.count = file, count

    def write(self, content: Any) -> None:
        self.count()
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        self.count()
        self.file.write(content[len(content) // 2 :])

    def __enter__(self) -> Torn:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def die_at(number: int, directory: Path) -> Callable[[], None]:
    """In a process to be killed: lets it die before its so-manyth operation that changes a file of a directory.

    What it returns is called to start the counting.
    """
    left = -1  # not counting
    open_path = Path.open

    def count() -> None:
        nonlocal left
        if left > 0:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        is_file = isinstance(arguments[0], (str, Path)) if arguments else False
        writes = event in ("open", "os.rename", "os.link", "os.remove", "os.truncate") and not reads
        if writes and is_file and str(directory) in str(arguments[0]):
            count()

    def open_torn(self: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        file = open_path(self, mode, *arguments, **keywords)
        return file if mode.startswith("r") else Torn(file, count)

    def start() -> None:
        nonlocal left
        left = number

    sys.addaudithook(watch)
    Path.open = open_torn  # type: ignore[method-assign, assignment]
    os.fsync = lambda descriptor: count()
    return start


def in_the_second_save(start: Callable[[], None]) -> None:
    """Starts something with the second checkpoint of this process, which ends with it."""
    save, calls = Run.save, []

    def counted(self: Run) -> None:
        calls.append(1)
        if len(calls) == 2:
            start()
        save(self)
        if len(calls) == 2:
            os._exit(0)

    Run.save = counted  # type: ignore[method-assign]
