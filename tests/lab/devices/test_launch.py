"""Processes that train together: how they are started, and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets  # noqa: F401  these here, so that no forked process imports them for itself
from helpers.commands import read_lines
from helpers.distributed import free_port
from helpers.processes import (
    fork,
    is_alive,
    needs_proc,
    started_by,
    wait_until,
)
from helpers.runs import (
    SHORT,
    outcome_of,
    same,
)

from lab.devices.launch import run_in_processes
from utils import PROJECT


@needs_proc
def test_processes_end_with_the_one_that_launched_them() -> None:
    """Even one that is killed while they start, and can tell them nothing."""
    pid = fork(lambda: run_in_processes(time.sleep, 60, num_processes=2))
    wait_until(lambda: len(started_by(pid)) == 2)
    started = started_by(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_until(lambda: not any(map(is_alive, started)), seconds=20)


def launch(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"}
    return subprocess.run(
        command, check=False, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120
    )


AT_THE_END = """
import atexit, glob, os, pathlib

@atexit.register
def threads_of_a_process_that_trained():
    if "RANK" in os.environ:
        names = [pathlib.Path(path).read_text().strip() for path in glob.glob("/proc/self/task/*/comm")]
        pathlib.Path(__file__).with_name(f"threads-{os.getpid()}").write_text(" ".join(names))
"""


@needs_proc
@pytest.mark.parametrize("options", ["trainer.parallel=ddp", "trainer.parallel=fsdp", "trainer.fail_above=0.0"])
def test_no_thread_that_exchanges_tensors_outlives_training(
    options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that lets go of a tensor while Python ends makes PyTorch abort a process that has done all well."""
    (tmp_path / "sitecustomize.py").write_text(AT_THE_END)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "train.py"]
    outcome = launch(*torchrun, *SHORT, "trainer.device=cpu", options, f"experiments_dir={tmp_path}")
    assert outcome.returncode == (1 if "fail_above" in options else 0), outcome.stderr
    threads = [path.read_text() for path in tmp_path.glob("threads-*")]
    assert len(threads) == 2
    assert not [names for names in threads if "gloo" in names]


@pytest.mark.parametrize("seconds", [None, 0.0, 0.7], ids=["training", "started", "starting"])
def test_ctrl_c_ends_processes_and_their_launcher_soon_and_in_few_words(seconds: float | None, tmp_path: Path) -> None:
    """As a terminal sends it, to all of them; while they start, there is nothing to save."""
    command = [sys.executable, "train.py", "trainer.devices=2", "trainer.epochs=5000", "name=x"]
    command += [*SHORT[:3], "trainer.images=false", "trainer.device=cpu", f"experiments_dir={tmp_path}"]
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
    from torch.distributed.launcher import api

    launch_all = api.elastic_launch

    def signalled(*arguments: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        return launch_all(*arguments, **keywords)

    monkeypatch.setattr(api, "elastic_launch", signalled)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_in_processes(time.sleep, 60, num_processes=2)
    assert time.monotonic() - started < 20


ONE_RUN = [*SHORT, "model=mlp", "model.dropout=0.2", "name=x", "trainer.device=cpu", "seed=3"]


def test_torchrun_on_two_machines_does_what_it_does_on_one(tmp_path: Path) -> None:
    """One run directory that all see, here and as where both processes are on one machine."""
    one = launch(sys.executable, "train.py", "trainer.devices=2", *ONE_RUN, f"experiments_dir={tmp_path / 'one'}")
    assert one.returncode == 0, one.stderr
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}"]
    command = [*torchrun, "train.py", *ONE_RUN, f"experiments_dir={tmp_path / 'two'}"]
    with ThreadPoolExecutor(2) as machines:
        outcomes = list(machines.map(lambda _: launch(*command), range(2)))
    assert [outcome.returncode for outcome in outcomes] == [0, 0], outcomes[0].stderr + outcomes[1].stderr
    assert sorted(outcome.stdout.count("epoch   3/3") for outcome in outcomes) == [0, 1]
    texts = [path.read_text() for path in sorted(tmp_path.glob("*/x/*/metrics.json"))]
    assert len(texts) == 2
    assert texts[0] == texts[1]


def test_the_command_and_torchrun_do_the_same(tmp_path: Path) -> None:
    metrics = []
    for folder, command in {
        "command": [sys.executable, "train.py", "trainer.devices=2"],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "train.py"],
    }.items():
        outcome = launch(*command, *ONE_RUN, f"experiments_dir={tmp_path / folder}")
        assert outcome.returncode == 0, outcome.stderr
        assert outcome.stdout.count("epoch   3/3") == 1  # one log
        (directory,) = (tmp_path / folder / "x").iterdir()
        metrics.append(json.loads((directory / "metrics.json").read_text()))
        assert "devices: 2" in (directory / "config.yaml").read_text()
    longer = launch(sys.executable, "train.py", f"resume={directory}", "trainer.devices=1", "trainer.epochs=4")
    assert longer.returncode == 0, longer.stderr
    assert "trainer.devices=1 where it was 2" in longer.stderr
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_torchrun_starts_a_killed_process_again_and_the_run_goes_on(tmp_path: Path) -> None:
    """Into the directory that it began in, although the same command otherwise starts a new one."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=2"]
    arguments = ["train.py", "model=cnn", "trainer.epochs=60", "trainer.images=false", "trainer.device=cpu", "name=x"]
    calm = launch(*torchrun, *arguments, f"experiments_dir={tmp_path / 'calm'}")
    assert calm.returncode == 0, calm.stderr
    command = [*torchrun, *arguments, f"experiments_dir={tmp_path / 'killed'}"]
    with subprocess.Popen(command, cwd=PROJECT, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        deadline = time.monotonic() + 60
        while not (records := list(tmp_path.glob("killed/x/*/metrics.jsonl"))) or len(read_lines(records[0])) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], check=True, capture_output=True, text=True)
        os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
        assert process.wait(timeout=120) == 0
    (disturbed,), (undisturbed,) = ((tmp_path / name / "x").iterdir() for name in ("killed", "calm"))
    assert "going on after epoch" in (disturbed / "train.log").read_text()
    for what, expected in outcome_of(undisturbed).items():
        assert same(outcome_of(disturbed)[what], expected), what
