"""Several processes train what one would: the same numbers, one run directory, one way to stop and to go on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets  # noqa: F401  these here, so that no forked process imports them for itself
import torch
import torch._dynamo
import torch.multiprocessing
import torch.utils.tensorboard
from conftest import read_lines
from helpers.processes import needs_proc
from test_resume import outcome_of, same
from test_train import compose
from torch import nn

import train
from lab.config.command import checked
from lab.config.schema import TrainConfig
from lab.devices.distributed import World
from lab.runs.directory import recorded_part
from model.net import MLP, DataSpec, DynamicNet
from utils import PROJECT, UserError


class Double(MLP):
    """A network in float64, whose numbers tell rounding from mistakes."""

    def __init__(self, spec: DataSpec, *, hidden_sizes: tuple[int, ...] = (32,), norm: bool = False) -> None:
        super().__init__(spec, hidden_sizes=hidden_sizes)
        self.norm = nn.BatchNorm1d(spec.output_size) if norm else nn.Identity()
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x.double()))


DOUBLE = ["model._target_=test_distributed.Double", "model.hidden_sizes=[32]"]
DOUBLE += ["~model.dropout", "~model.activation", "~model.output", "optimizer=momentum", "optimizer.lr=0.1"]
SHORT = ["data.limit=300", "data.batch_size=64", "trainer.log_every=2", "trainer.epochs=3", "trainer.images=false"]
STEPS_PER_EPOCH = 5  # of 64, 64, 64, 64 and 44 examples


def run_rank(rank: int, size: int, port: int, cfg: Any, directory: Path, prepare: Callable[[int], None]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    prepare(rank)
    try:
        train.train(cfg, directory)
    except KeyboardInterrupt as error:
        os._exit(getattr(error, "exit_code", 130))
    except UserError as error:
        directory.mkdir(exist_ok=True)
        (directory / f"error-{rank}.txt").write_text(str(error))
        os._exit(2)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def train_with(
    size: int, directory: Path, *overrides: str, prepare: Callable[[int], None] = lambda rank: None
) -> list[int]:
    """Trains in so many forked processes (or goes on); their exit codes."""
    cfg = checked(recorded_part(compose(*SHORT, *overrides, "name=x")), TrainConfig)
    port = free_port()
    context = torch.multiprocessing.get_context("fork")
    ranks = [context.Process(target=run_rank, args=(rank, size, port, cfg, directory, prepare)) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=40)
    stuck = [process for process in ranks if process.is_alive()]
    for process in stuck:
        process.kill()
    assert not stuck, "a process that waits for ever"
    return [process.exitcode for process in ranks]


def numbers(directory: Path) -> list[list[float]]:
    """The metrics of each epoch."""
    return [[value for key, value in line.items() if "/" in key] for line in read_lines(directory / "metrics.jsonl")]


@pytest.mark.parametrize("size", [2, 3])
def test_so_many_processes_give_the_curve_of_one(size: int, tmp_path: Path) -> None:
    assert train_with(1, tmp_path / "one", *DOUBLE) == [0]
    assert train_with(size, tmp_path / "many", *DOUBLE) == [0] * size
    torch.testing.assert_close(numbers(tmp_path / "many"), numbers(tmp_path / "one"), rtol=1e-10, atol=1e-10)
    assert len(list((tmp_path / "many").glob("events.*"))) == 1
    assert json.loads((tmp_path / "many" / "status.json").read_text())["state"] == "finished"


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("options", [[], ["trainer.max_grad_norm=0.1", "scheduler=onecycle"]], ids=["", "clipping"])
def test_accumulated_gradients_are_those_of_the_whole_batch(size: int, options: list[str], tmp_path: Path) -> None:
    assert train_with(1, tmp_path / "whole", *DOUBLE, *options) == [0]
    assert train_with(size, tmp_path / "parts", *DOUBLE, *options, "trainer.accumulate=3") == [0] * size
    torch.testing.assert_close(numbers(tmp_path / "parts"), numbers(tmp_path / "whole"), rtol=1e-10, atol=1e-10)


def test_a_sum_of_losses_is_the_sum_over_all_processes(tmp_path: Path) -> None:
    options = [*DOUBLE, "data=quadratic", "trainer.loss=sum_of_squares", "optimizer.lr=1e-4"]
    assert train_with(1, tmp_path / "one", *options) == [0]
    assert train_with(2, tmp_path / "two", *options, "trainer.accumulate=2") == [0, 0]
    torch.testing.assert_close(numbers(tmp_path / "two"), numbers(tmp_path / "one"), rtol=1e-10, atol=1e-10)


def test_synchronised_batch_norm_is_refused_where_pytorch_has_none(tmp_path: Path) -> None:
    options = [*DOUBLE, "+model.norm=true", "trainer.sync_batchnorm=true", "trainer.device=cpu"]
    assert train_with(2, tmp_path, *options) == [2, 2]
    assert "trainer.sync_batchnorm=true takes GPUs" in (tmp_path / "error-0.txt").read_text()
    assert train_with(1, tmp_path, *options) == [0]  # a process alone has the whole batch anyway


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_each_example_belongs_to_one_process(size: int) -> None:
    worlds = [World(torch.device("cpu"), rank, size) for rank in range(size)]
    for num in range(size, 40):
        parts = [list(range(num))[world.part(num)] for world in worlds]
        assert [number for part in parts for number in part] == list(range(num))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def at_step(number: int, act: Callable[[], Any], *, on_rank: int) -> Callable[[int], None]:
    """What makes a process of that rank act at the start of its step `number`."""

    def prepare(rank: int) -> None:
        step, num_steps = train.Learner.step, 0

        def counted(*batch: Any, **keywords: Any) -> Any:
            nonlocal num_steps
            num_steps += 1
            if num_steps == number and rank == on_rank:
                act()
            return step(*batch, **keywords)

        train.Learner.step = counted  # type: ignore[method-assign]

    return prepare


DROPOUT = ["model=mlp", "model.dropout=0.2", "trainer.checkpoint_every=3"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes come to that nobody disturbs."""
    directory = tmp_path_factory.mktemp("whole")
    assert train_with(2, directory, *DROPOUT) == [0, 0]
    return outcome_of(directory)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_at_the_same_step(
    rank: int, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    ask = at_step(7, lambda: os.kill(os.getpid(), signal.SIGTERM), on_rank=rank)
    assert train_with(2, tmp_path, *DROPOUT, prepare=ask) == [143, 143]
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["step"]) == ("interrupted", 8)  # agreed on within one step
    assert train_with(2, tmp_path, *DROPOUT) == [0, 0]
    outcome = outcome_of(tmp_path)
    for what, expected in undisturbed.items():
        assert same(outcome[what], expected), what


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(
    rank: int, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    started = time.monotonic()
    kill = at_step(8, lambda: os.kill(os.getpid(), signal.SIGKILL), on_rank=rank)
    codes = train_with(2, tmp_path, *DROPOUT, prepare=kill)
    assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, 2)
    assert "another process of this run has ended" in (tmp_path / f"error-{1 - rank}.txt").read_text()
    assert time.monotonic() - started < 30
    state = json.loads((tmp_path / "status.json").read_text())["state"]
    assert state == ("running" if rank == 0 else "failed")  # who was killed says nothing
    (tmp_path / f"error-{1 - rank}.txt").unlink()
    assert train_with(2, tmp_path, *DROPOUT) == [0, 0]
    outcome = outcome_of(tmp_path)
    for what, expected in undisturbed.items():
        assert same(outcome[what], expected), what


def test_another_number_of_processes_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    ask = at_step(7, lambda: os.kill(os.getpid(), signal.SIGTERM), on_rank=0)
    assert train_with(1, tmp_path / "whole", *DOUBLE) == [0]
    for before, after in ((2, 1), (1, 2), (2, 3)):
        directory = tmp_path / f"{before}-{after}"
        assert set(train_with(before, directory, *DOUBLE, prepare=ask)) == {143}
        assert train_with(after, directory, *DOUBLE) == [0] * after
        assert f"trainer.devices={after} where it was {before}" in (directory / "train.log").read_text()
        torch.testing.assert_close(numbers(directory), numbers(tmp_path / "whole"), rtol=1e-10, atol=1e-10)


def test_a_network_whose_weights_take_part_by_chance_is_for_one_process() -> None:
    network = DynamicNet(DataSpec((4,), 2, "regression"))
    assert World(torch.device("cpu")).place(network) is network
    with pytest.raises(UserError, match=r"DynamicNet .* set trainer\.devices=1"):
        World(torch.device("cpu"), rank=1, size=2).place(network)


def test_a_batch_too_small_for_the_processes_is_told_before_anything_runs(tmp_path: Path) -> None:
    assert train_with(2, tmp_path, "data.limit=65") == [2, 2]
    assert "the smallest batch has 1 examples; set data.drop_last=true" in (tmp_path / "error-0.txt").read_text()
    assert not (tmp_path / "status.json").exists()


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
