"""Processes that train together, forked from this one."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401  these here, so that no forked process imports them for itself
import torch
import torch._dynamo
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.multiprocessing
import torch.utils.tensorboard
from torch import nn

import train
from helpers.commands import compose, read_lines
from lab.config.command import checked
from lab.config.schema import TrainConfig
from lab.runs.directory import recorded_part
from model.net import MLP, DataSpec
from utils import UserError


class Double(MLP):
    """A network in float64, whose numbers tell rounding from mistakes."""

    def __init__(self, spec: DataSpec, *, hidden_sizes: tuple[int, ...] = (32,), norm: bool = False) -> None:
        super().__init__(spec, hidden_sizes=hidden_sizes)
        self.norm = nn.BatchNorm1d(spec.output_size) if norm else nn.Identity()
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x.double()))


DOUBLE = ["model._target_=helpers.distributed.Double", "model.hidden_sizes=[32]"]


DOUBLE += ["~model.dropout", "~model.activation", "~model.output", "optimizer=momentum", "optimizer.lr=0.1"]
SHORT = ["data.limit=300", "data.batch_size=64", "trainer.log_every=2", "trainer.epochs=3", "trainer.images=false"]


DROPOUT = ["model=mlp", "model.dropout=0.2", "trainer.checkpoint_every=3"]


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
