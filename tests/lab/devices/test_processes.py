"""One function in a process of its own: what it returns, what ends it, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import is_alive, needs_proc, wait_until

from lab.devices import processes
from lab.devices.processes import Child, Outcome
from utils import UserError


def outcome_of(child: Child, *, seconds: float = 30) -> Outcome:
    """Waits for the end of a process; what came out of it."""
    deadline = time.monotonic() + seconds
    while not child.has_ended():
        assert time.monotonic() < deadline, "it should have ended by now"
        wait(child.handles(), timeout=0.2)
    child.close()
    assert child.outcome is not None
    return child.outcome


def refuse() -> None:
    raise UserError("there is no such data\nat all")


def press_ctrl_c() -> None:
    raise KeyboardInterrupt


def test_a_value_of_any_size_comes_back() -> None:
    assert outcome_of(Child(bytes, 10_000_000, threads=1)).value == bytes(10_000_000)


@pytest.mark.parametrize(
    ("function", "argument", "expected"),
    [
        (int, "x", ("ValueError: invalid literal for int() with base 10: 'x'", 1)),
        (sys.exit, 3, ("SystemExit: 3", 1)),
        (os._exit, 0, ("ended with code 0, and said nothing", 1)),
        (os._exit, 7, ("ended with code 7, and said nothing", 1)),
        (threading.Lock, None, ("TypeError: cannot pickle '_thread.lock' object", 1)),
    ],
)
def test_why_there_is_no_value_is_one_line(function: Callable[..., Any], argument: Any, expected: Any) -> None:
    arguments = [] if argument is None else [argument]
    outcome = outcome_of(Child(function, *arguments, threads=1))
    assert (outcome.error, outcome.exit_code) == expected and not outcome.is_for_user


def test_a_mistake_of_the_users_keeps_its_exit_code_and_an_interruption_of_its_own_is_none() -> None:
    outcome = outcome_of(Child(refuse, threads=1))
    assert (outcome.error, outcome.exit_code, outcome.is_for_user) == ("there is no such data at all", 2, True)
    outcome = outcome_of(Child(press_ctrl_c, threads=1))
    assert (outcome.error, outcome.signum) == ("KeyboardInterrupt", None)


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_signal_ends_a_process_even_before_it_listens(has_begun: bool) -> None:
    child = Child(time.sleep, 60, threads=1)
    while has_begun and not child.has_begun:
        child.has_ended()
    child.send_signal(signal.SIGINT)
    outcome = outcome_of(child)
    if has_begun:
        assert (outcome.error, outcome.signum, outcome.exit_code) == ("interrupted", signal.SIGINT, 130)
    else:
        assert "SIGKILL" in str(outcome.error)


def test_what_it_is_told_it_sees_and_nobody_else() -> None:
    assert outcome_of(Child(os.getenv, "COLOUR", threads=3, environment={"COLOUR": "red"})).value == "red"
    assert outcome_of(Child(os.getenv, "OMP_NUM_THREADS", threads=3)).value == "3"
    assert "COLOUR" not in os.environ


def leave_a_thread() -> str:
    threading.Thread(target=time.sleep, args=(60,)).start()
    return "done"


def test_a_thread_that_is_left_behind_keeps_nobody_waiting() -> None:
    started = time.monotonic()
    assert outcome_of(Child(leave_a_thread, threads=1)).value == "done"
    assert time.monotonic() - started < processes.SECONDS_FOR_THE_REST + 10


@needs_proc
def test_the_loss_of_the_process_that_all_are_forked_from_is_told_and_the_next_is_started() -> None:
    child = Child(time.sleep, 60, threads=1)
    os.kill(int(parent_of(child.pid or 0)), signal.SIGKILL)
    assert outcome_of(child).error == "lost: the process that it was forked from was killed"
    wait_until(lambda: not is_alive(child.pid or 0))
    assert outcome_of(Child(abs, -3, threads=1)).value == 3


def parent_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]


def start_another() -> Any:
    """In a process: one more, as a job of a sweep starts those that train together."""
    return outcome_of(Child(abs, -4, threads=1)).value


def test_a_process_can_start_others() -> None:
    assert outcome_of(Child(start_another, threads=1), seconds=60).value == 4
