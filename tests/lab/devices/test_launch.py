"""Processes that train together: how they are started and asked to stop, and what is said when one of them ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import is_alive, needs_proc, started_by, wait_until

from lab.devices import launch
from lab.devices.launch import Lost, run_in_processes
from lab.devices.processes import Child
from utils import PROJECT, Diverged, UserError

SHORT = ["data.limit=300", "data.batch_size=64", "trainer.log_every=2", "trainer.images=false", "trainer.device=cpu"]


def read_environment(keys: Sequence[str]) -> list[str]:
    return [os.environ[key] for key in keys]


def test_what_the_processes_are_told_makes_one_world() -> None:
    told = run_in_processes(read_environment, ("RANK", "LOCAL_RANK", "WORLD_SIZE"), num_processes=2)
    assert told == ["0", "0", "2"], "what the main one returns"
    assert "RANK" not in os.environ


def let_one_act(act: Callable[[], Any], seconds: float) -> None:
    """The second of two processes acts, the first one waits."""
    if os.environ["RANK"] == "1":
        act()
    else:
        time.sleep(seconds)


def diverge() -> None:
    raise Diverged("the loss is nan at step 3")


def refuse() -> None:
    raise UserError("there is no such data")


@pytest.mark.parametrize(
    ("act", "kind", "code", "words"),
    [
        (partial(os.abort), Lost, 1, "process 1 of the 2 that trained together has ended (ended by SIGABRT)"),
        (partial(os._exit, 3), Lost, 1, "has ended (ended with code 3, and said nothing)"),
        (partial(int, "x"), Lost, 1, "has ended (ValueError: invalid literal for int() with base 10: 'x')"),
        (partial(sys.exit, 4), Lost, 1, "has ended (SystemExit: 4)"),
        (refuse, UserError, 2, "there is no such data"),
        (diverge, UserError, 1, "the loss is nan at step 3"),
    ],
)
def test_the_end_of_one_process_ends_the_others_and_is_one_line(
    act: Callable[[], Any], kind: type[UserError], code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "SECONDS_TO_NOTICE", 0.5)
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        run_in_processes(let_one_act, act, 60.0, num_processes=2)
    assert time.monotonic() - started < 40, "which would otherwise sleep for 60 s"
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == code


@needs_proc
def test_processes_end_with_the_one_that_launched_them() -> None:
    """Even one that is killed while they start, and can tell them nothing."""
    script = "import time; from lab.devices.launch import run_in_processes as r; r(time.sleep, 60, num_processes=2)"
    with subprocess.Popen([sys.executable, "-c", script], cwd=PROJECT) as process:
        wait_until(lambda: len(started_by(process.pid)) == 2, seconds=60)
        started = started_by(process.pid)
        process.kill()
    wait_until(lambda: not any(map(is_alive, started)), seconds=20)


@pytest.mark.parametrize("seconds", [None, 0.0, 0.7], ids=["training", "started", "starting"])
def test_ctrl_c_ends_processes_and_their_launcher_soon_and_in_few_words(seconds: float | None, tmp_path: Path) -> None:
    """As a terminal sends it, to all of them; while they start, there is nothing to save."""
    command = [sys.executable, "train.py", "trainer.devices=2", "trainer.epochs=5000", "name=x"]
    command += [*SHORT, f"experiments_dir={tmp_path}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=PROJECT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        if seconds is None:
            wait_until(lambda: bool(list(tmp_path.glob("x/*/last.pt"))), seconds=60)
        else:
            wait_until(lambda: len(started_by(process.pid)) == 2, seconds=60)
            time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=20)  # PyTorch's own way takes 30 s
    assert process.returncode == 130
    assert err.splitlines()[-1] == "train.py: interrupted"
    assert "Traceback" not in err
    if seconds is None:
        (status,) = tmp_path.glob("x/*/status.json")
        assert json.loads(status.read_text())["state"] == "interrupted"


def test_a_signal_before_the_processes_are_there_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Child.__init__

    def signalled(*arguments: Any, **keywords: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        make(*arguments, **keywords)

    monkeypatch.setattr(Child, "__init__", signalled)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_in_processes(time.sleep, 60, num_processes=2)
    assert time.monotonic() - started < 20
