"""Processes that train together: how they are started, and how they end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sklearn.datasets  # noqa: F401  these here, so that no forked process imports them for itself
from helpers.commands import read_lines
from helpers.distributed import SHORT, free_port
from helpers.processes import (
    needs_proc,
)
from helpers.runs import outcome_of, same
from helpers.warm import Warm

from utils import PROJECT

pytestmark = pytest.mark.long
TORCHRUN = ["-m", "torch.distributed.run"]
ONE_RUN = [*SHORT, "model=mlp", "model.dropout=0.2", "name=x", "trainer.device=cpu", "seed=3"]
AT_THE_END = """
import atexit, glob, os, pathlib

@atexit.register
def threads_of_a_process_that_trained():
    if "RANK" in os.environ:
        names = [pathlib.Path(path).read_text().strip() for path in glob.glob("/proc/self/task/*/comm")]
        pathlib.Path(__file__).with_name(f"threads-{os.getpid()}").write_text(" ".join(names))
"""


@pytest.fixture(scope="module")
def by_command(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """(the folder of, the outcome of) a run of two processes that train.py has started."""
    folder = tmp_path_factory.mktemp("command")
    return folder, warm.run("train.py", "trainer.devices=2", *ONE_RUN, f"experiments_dir={folder}")


@pytest.fixture(scope="module")
def by_torchrun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The same by torchrun, where nothing comes from a process that was there before."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "sitecustomize.py").write_text(AT_THE_END)
    command = [sys.executable, *TORCHRUN, "--nproc-per-node=2", "train.py", *ONE_RUN, f"experiments_dir={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    return folder, subprocess.run(
        command, check=False, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120
    )


def threads_at_the_end(folder: Path) -> list[str]:
    """The names of the threads that each process which trained has had when Python ended."""
    return [path.read_text() for path in folder.glob("threads-*")]


@needs_proc
def test_no_thread_that_exchanges_tensors_outlives_training(
    by_torchrun: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """One that lets go of a tensor while Python ends makes PyTorch abort a process that has done all well."""
    folder, outcome = by_torchrun
    assert outcome.returncode == 0, outcome.stderr
    assert len(threads_at_the_end(folder)) == 2
    assert not [names for names in threads_at_the_end(folder) if "gloo" in names]


@needs_proc
@pytest.mark.parametrize("options", ["trainer.parallel=fsdp", "trainer.fail_above=0.0"])
def test_nor_does_one_of_processes_that_share_a_network_or_fail(options: str, warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(AT_THE_END)
    command = ["train.py", *SHORT, "trainer.device=cpu", options, f"experiments_dir={tmp_path}", "name=x"]
    world = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()),
        "PYTHONPATH": str(tmp_path),
    }
    ranks = [{**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(lambda rank: warm.run(*command, **rank), ranks))
    expected = 1 if "fail_above" in options else 0
    assert [outcome.returncode for outcome in outcomes] == [expected, expected], outcomes[0].stderr + outcomes[1].stderr
    assert len(threads_at_the_end(tmp_path)) == 2
    assert not [names for names in threads_at_the_end(tmp_path) if "gloo" in names]


def test_torchrun_on_two_machines_does_what_it_does_on_one(
    by_torchrun: tuple[Path, subprocess.CompletedProcess[str]], warm: Warm, tmp_path: Path
) -> None:
    """One run directory that all see, here and as where both processes are on one machine."""
    torchrun = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1"]
    torchrun += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}"]
    command = [*torchrun, "train.py", *ONE_RUN, f"experiments_dir={tmp_path}"]
    with ThreadPoolExecutor(2) as machines:
        outcomes = list(machines.map(lambda _: warm.run(*command), range(2)))
    assert [outcome.returncode for outcome in outcomes] == [0, 0], outcomes[0].stderr + outcomes[1].stderr
    assert sorted(outcome.stdout.count("epoch   3/3") for outcome in outcomes) == [0, 1]
    (one,) = by_torchrun[0].glob("x/*/metrics.json")
    (two,) = tmp_path.glob("x/*/metrics.json")
    assert one.read_text() == two.read_text()


def test_the_command_and_torchrun_do_the_same(
    by_command: tuple[Path, subprocess.CompletedProcess[str]],
    by_torchrun: tuple[Path, subprocess.CompletedProcess[str]],
    warm: Warm,
    tmp_path: Path,
) -> None:
    metrics = []
    for folder, outcome in (by_command, by_torchrun):
        assert outcome.returncode == 0, outcome.stderr
        assert outcome.stdout.count("epoch   3/3") == 1  # one log
        (directory,) = (folder / "x").iterdir()
        metrics.append(json.loads((directory / "metrics.json").read_text()))
        assert "devices: 2" in (directory / "config.yaml").read_text()
    assert metrics[0] == metrics[1]
    copied = shutil.copytree(directory, tmp_path / "run")
    longer = warm.run("train.py", f"resume={copied}", "trainer.devices=1", "trainer.epochs=4")
    assert longer.returncode == 0, longer.stderr
    assert "trainer.devices=1 where it was 2" in longer.stderr


@pytest.mark.slow
def test_torchrun_starts_a_killed_process_again_and_the_run_goes_on(tmp_path: Path) -> None:
    """Into the directory that it began in, although the same command otherwise starts a new one."""
    torchrun = [sys.executable, *TORCHRUN, "--nproc-per-node=2", "--max-restarts=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = ["train.py", "model=cnn", "trainer.epochs=60", "trainer.images=false", "trainer.device=cpu", "name=x"]
    calm = [*torchrun, *arguments, f"experiments_dir={tmp_path / 'calm'}"]
    subprocess.run(calm, check=True, cwd=PROJECT, env=environment, timeout=120)
    command = [*torchrun, *arguments, f"experiments_dir={tmp_path / 'killed'}"]
    with subprocess.Popen(command, cwd=PROJECT, env=environment) as process:
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
