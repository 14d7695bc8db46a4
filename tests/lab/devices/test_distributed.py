"""Several processes train what one would: the same numbers, one run directory, one way to stop and to go on."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets  # noqa: F401  these here, so that no forked process imports them for itself
import torch
import torch._dynamo
import torch.multiprocessing
import torch.utils.tensorboard
from helpers.distributed import DOUBLE, DROPOUT, at_step, numbers, train_with
from helpers.runs import (
    outcome_of,
    same,
    scalars,
)

from lab.devices.distributed import World
from model.net import DataSpec, DynamicNet
from utils import UserError


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
    options = [*DOUBLE, "data=quadratic", "loss=sum_of_squares", "optimizer.lr=1e-4"]
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
    assert state == "failed"  # who was killed says nothing, but the other one does
    (tmp_path / f"error-{1 - rank}.txt").unlink()
    assert train_with(2, tmp_path, *DROPOUT) == [0, 0]
    outcome = outcome_of(tmp_path)
    for what, expected in undisturbed.items():
        assert same(outcome[what], expected), what


def rest_of_an_epoch(directory: Path, after: int, until: int) -> float:
    """The mean training loss over the examples of a run's steps `after` + 1 ... `until`, which ends an epoch."""
    losses = {step: loss for step, loss in scalars(directory)["loss/step"] if after < step <= until}
    sizes = {step: 300 % 64 if step == until else 64 for step in losses}
    assert len(losses) == until - after
    return sum(losses[step] * sizes[step] for step in losses) / sum(sizes.values())


def test_another_number_of_processes_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """All is as without the stop, but for the training metrics of that epoch: they are means over the rest of it."""
    ask = at_step(7, lambda: os.kill(os.getpid(), signal.SIGTERM), on_rank=0)
    assert train_with(1, tmp_path / "whole", *DOUBLE, "trainer.log_every=1") == [0]
    for before, after in ((2, 1), (1, 2), (2, 3)):
        directory = tmp_path / f"{before}-{after}"
        assert set(train_with(before, directory, *DOUBLE, prepare=ask)) == {143}
        stopped = json.loads((directory / "status.json").read_text())["step"]
        assert 5 < stopped < 10, "in the second epoch"
        assert train_with(after, directory, *DOUBLE) == [0] * after
        log = (directory / "train.log").read_text()
        assert f"trainer.devices={after} where it was {before}" in log
        assert "what this epoch has measured so far is left out of its means" in log
        rows, whole = numbers(directory), numbers(tmp_path / "whole")
        rest = rest_of_an_epoch(tmp_path / "whole", stopped, 10)
        assert rows[1][0] == pytest.approx(rest, rel=1e-6)  # TensorBoard's numbers are in float32
        assert whole[1][0] != pytest.approx(rest, rel=1e-6)
        del rows[1][:2], whole[1][:2]  # train/loss and train/accuracy
        torch.testing.assert_close(rows, whole, rtol=1e-10, atol=1e-10)


def test_a_network_whose_weights_take_part_by_chance_is_for_one_process() -> None:
    network = DynamicNet(DataSpec((4,), 2, "regression"))
    assert World(torch.device("cpu")).place(network) is network
    with pytest.raises(UserError, match=r"DynamicNet .* set trainer\.devices=1"):
        World(torch.device("cpu"), rank=1, size=2).place(network)


def test_a_batch_too_small_for_the_processes_is_told_before_anything_runs(tmp_path: Path) -> None:
    assert train_with(2, tmp_path, "data.limit=65") == [2, 2]
    assert "the smallest batch has 1 examples; set data.drop_last=true" in (tmp_path / "error-0.txt").read_text()
    assert not (tmp_path / "status.json").exists()
