"""Processes that share one network train what one would, and put it together for a checkpoint like any other."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.distributed import DOUBLE, DROPOUT, at_step, numbers, train_with
from helpers.processes import die_at, in_the_second_save
from helpers.runs import assert_same, flip, outcome_of, weights_of
from torch import nn

import train
from evaluate import load_run
from lab.devices.distributed import units
from lab.runs import checkpoint
from lab.runs.checkpoint import load_tensors, save_tensors
from model.net import CNN, DataSpec
from utils import UserError

FSDP = "trainer.parallel=fsdp"


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (2, ["trainer.max_grad_norm=0.1", "scheduler=onecycle"]),
        (3, ["trainer.accumulate=4", "data=quadratic", "optimizer=adam", "optimizer.lr=0.01", "trainer.epochs=2"]),
    ],
    ids=["clipping", "accumulating, with parts of no rows"],
)
def test_processes_that_share_a_network_give_the_curve_of_one(size: int, options: list[str], tmp_path: Path) -> None:
    assert train_with(1, tmp_path / "one", *DOUBLE, *options) == [0]
    assert train_with(size, tmp_path / "many", *DOUBLE, *options, FSDP) == [0] * size
    torch.testing.assert_close(numbers(tmp_path / "many"), numbers(tmp_path / "one"), rtol=1e-10, atol=1e-10)
    one, many = (weights_of(tmp_path / name / "last.pt") for name in ("one", "many"))
    torch.testing.assert_close(many, one, rtol=1e-10, atol=1e-10)


def test_a_run_goes_on_with_other_processes_and_other_ways_to_share(tmp_path: Path) -> None:
    """What some processes have saved is read by more, by fewer and by one, and the other way round, within an epoch."""
    directory, stop = tmp_path / "changing", at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM), on_rank=0)
    options = [*DOUBLE, "optimizer=adam", "optimizer.lr=0.01"]
    assert train_with(1, tmp_path / "one", *options) == [0]
    for size, parallel in ((2, "fsdp"), (3, "fsdp"), (2, "ddp"), (2, "fsdp"), (1, "fsdp")):
        last = parallel == "fsdp" and size == 1
        codes = train_with(size, directory, *options, f"trainer.parallel={parallel}", prepare=print if last else stop)
        assert codes == [0 if last else 143] * size
    log = (directory / "train.log").read_text()
    for after, before in ((3, 2), (2, 3), (1, 2)):
        assert f"going on with trainer.devices={after} where it was {before}: the same batches" in log
    assert (
        log.count("what this epoch has measured so far is left out of its means") == 2
    )  # the third had ended its epoch
    of_validation, of_one = ([line[2:] for line in numbers(path)] for path in (directory, tmp_path / "one"))
    torch.testing.assert_close(of_validation, of_one, rtol=1e-10, atol=1e-10)
    last, last_of_one = (load_tensors(path / "last.pt") for path in (directory, tmp_path / "one"))
    for part in ("model", "optimizer"):
        torch.testing.assert_close(last[part], last_of_one[part], rtol=1e-10, atol=1e-10)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nobody disturbs."""
    directory = tmp_path_factory.mktemp("whole")
    assert train_with(2, directory, *DROPOUT, FSDP) == [0, 0]
    return directory


def assert_same_outcome(directory: Path, expected: Path) -> None:
    assert_same(outcome_of(directory), outcome_of(expected))
    assert all(path.is_file() for path in directory.iterdir())


def in_step(number: int, signum: int, *, on_rank: int) -> Callable[[int], None]:
    return at_step(number, lambda: os.kill(os.getpid(), signum), on_rank=on_rank)


def in_validation(rank: int) -> None:
    """Dies before the first forward pass of the process that goes on, which then measures before it trains."""
    if rank == 0:
        train.validate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]


def in_save(number: int, *, on_rank: int) -> Callable[[int], None]:
    """Dies at the so-manyth time that the main process begins a file, or another one gives its parts of a state."""

    def prepare(rank: int) -> None:
        name, times = "save_tensors" if rank == 0 else "put_together", []
        original = getattr(checkpoint, name)

        def torn(*arguments: Any, **keywords: Any) -> Any:
            times.append(arguments)
            if len(times) == number and rank == on_rank:
                if rank == 0:
                    (arguments[0].parent / ".last.pt.tmp").write_bytes(b"half of it")
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **keywords)

        setattr(checkpoint, name, torn)

    return prepare


@pytest.mark.parametrize(
    ("end", "options", "codes"),
    [
        (in_step(7, signal.SIGTERM, on_rank=1), [], [143, 143]),
        (in_step(8, signal.SIGKILL, on_rank=0), [], [-9, 2]),
        (in_save(4, on_rank=0), [], [-9, 2]),
        (in_save(20, on_rank=1), [], [2, -9]),
        (in_validation, ["trainer.checkpoint_every=5"], [-9, 2]),
    ],
    ids=["SIGTERM", "SIGKILL", "SIGKILL in a save", "SIGKILL in a gathering", "SIGKILL in a validation"],
)
def test_a_stopped_run_goes_on_exactly(
    end: Callable[[int], None], options: list[str], codes: list[int], undisturbed: Path, tmp_path: Path
) -> None:
    assert train_with(2, tmp_path, *DROPOUT, *options, FSDP, prepare=end) == codes
    if 2 in codes:
        error = tmp_path / f"error-{codes.index(2)}.txt"
        assert "another process of this run has ended" in error.read_text()
    assert train_with(2, tmp_path, *DROPOUT, *options, FSDP) == [0, 0]
    assert_same_outcome(tmp_path, undisturbed)


def test_a_damaged_checkpoint_is_noticed_by_all(undisturbed: Path, tmp_path: Path) -> None:
    """The run goes on from the checkpoint before, or each process says what is wrong."""
    assert train_with(2, tmp_path, *DROPOUT, FSDP, prepare=in_step(8, signal.SIGKILL, on_rank=1)) == [2, -9]
    twin = shutil.copytree(tmp_path, tmp_path.with_name("twin"))
    flip(tmp_path / "last.pt")
    assert train_with(2, tmp_path, *DROPOUT, FSDP) == [0, 0]
    log = (tmp_path / "train.log").read_text()
    assert f"{tmp_path / 'last.pt'} is damaged" in log and log.count("going back to the checkpoint before it") == 1
    assert_same_outcome(tmp_path, undisturbed)

    (twin / "last.pt").unlink()
    flip(twin / "before.pt")
    assert train_with(2, twin, *DROPOUT, FSDP) == [2, 2]
    for rank in range(2):
        text = (twin / f"error-{rank}.txt").read_text()
        assert "last.pt cannot be read" in text and "before.pt is damaged" in text and "\n" not in text


class Trap:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("sprung"),)


def narrow(state: dict[str, Any]) -> None:
    state["model"]["fc1.bias"] = torch.zeros(3)


def narrow_optimizer(state: dict[str, Any]) -> None:
    state["optimizer"]["state"][1]["exp_avg"] = torch.zeros(3)


def set_a_trap(state: dict[str, Any]) -> None:
    state["model"]["fc1.bias"] = Trap()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (narrow, "does not fit this configuration: model: .*size mismatch for fc1.bias"),
        (narrow_optimizer, "does not fit this configuration: optimizer: exp_avg of weight 1 is .*shape \\[3\\]"),
        (set_a_trap, "holds more than tensors and plain types"),
    ],
)
def test_a_checkpoint_from_a_stranger_executes_nothing(
    change: Callable[[dict[str, Any]], None],
    reason: str,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(undisturbed, tmp_path / "run")
    state = load_tensors(run / "last.pt")
    change(state)
    save_tensors(run / "last.pt", state)
    assert train_with(2, run, *DROPOUT, FSDP, "trainer.epochs=4") == [2, 2]
    for rank in range(2):
        assert re.search(reason, (run / f"error-{rank}.txt").read_text())
    if change is not narrow_optimizer:
        with pytest.raises(UserError, match=reason):
            load_run(run, "last")
    assert not Path("sprung").exists()


def test_a_run_of_several_is_evaluated_by_one(undisturbed: Path, run_command: Callable[..., Any]) -> None:
    for weights in ("best", "last"):
        outcome = run_command("evaluate", f"run={undisturbed}", f"checkpoint={weights}", "split=val")
        assert outcome.code == 0, outcome.err
        measured = json.loads((undisturbed / f"evaluation_val{'_last' * (weights == 'last')}.json").read_text())
        metrics = json.loads((undisturbed / "metrics.json").read_text())
        recorded = metrics["best" if weights == "best" else "final"]["val/loss"]
        assert measured["val/loss"] == pytest.approx(recorded, rel=1e-6)


class DoubleCNN(CNN):
    """A network in float64 with batch norms, which go through the processes' own statistics."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec, channels=[4, 8], kernel_size=3)
        self.norm = nn.BatchNorm1d(spec.output_size)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x.double()))


def test_both_ways_to_share_give_the_same_curve(tmp_path: Path) -> None:
    options = [
        "optimizer=momentum",
        "model=cnn",
        "model._target_=test_sharding.DoubleCNN",
        "~model.channels",
        "~model.kernel_size",
    ]
    for parallel in ("ddp", "fsdp"):
        assert train_with(2, tmp_path / parallel, *options, f"trainer.parallel={parallel}") == [0, 0]
    torch.testing.assert_close(numbers(tmp_path / "fsdp"), numbers(tmp_path / "ddp"), rtol=1e-10, atol=1e-10)
    ddp, fsdp = (load_tensors(tmp_path / parallel / "best.pt")["model"] for parallel in ("ddp", "fsdp"))
    torch.testing.assert_close(fsdp, ddp, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["trainer.animate=true"], "trainer.animate=true looks into a whole network"),
        (["optimizer=sgd", "optimizer._target_=torch.optim.Adafactor"], "what PyTorch cannot do with parts of weights"),
    ],
)
def test_what_needs_a_whole_network_is_refused(options: list[str], reason: str, tmp_path: Path) -> None:
    assert train_with(2, tmp_path, *options, FSDP) == [2, 2]
    assert reason in (tmp_path / "error-0.txt").read_text()


@pytest.mark.parametrize("tied", [False, True])
def test_the_units_that_are_put_together_one_at_a_time(tied: bool) -> None:
    """Members of lists and sequences count each; weights that two modules have in common are the whole network's."""
    blocks = nn.ModuleList([nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))])
    model = nn.Module()
    model.blocks, model.head, model.dropout = blocks, nn.LSTM(3, 3), nn.Dropout()
    model.weight = nn.Parameter(torch.zeros(2))
    if tied:
        blocks[1][2].weight = blocks[0].weight
    expected = [blocks[1][0], model.head] if tied else [blocks[0], blocks[1][0], blocks[1][2], model.head]
    assert units(model) == expected


def die_in_gathering(number: int) -> Callable[[], None]:
    """As `die_at`, before the so-manyth state of which a process is to give its parts."""
    left, put_together = -1, checkpoint.put_together

    def counted(*arguments: Any) -> Any:
        nonlocal left
        left -= left > 0
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return put_together(*arguments)

    def start() -> None:
        nonlocal left
        left = number

    checkpoint.put_together = counted
    return start


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_kill_at_any_operation_of_a_save_leaves_a_checkpoint(rank: int, tmp_path: Path) -> None:
    options = ["model.hidden_sizes=[4]", "trainer.epochs=1", "trainer.checkpoint_every=1", FSDP]
    assert train_with(2, tmp_path / "whole", *options) == [0, 0]
    for number in range(1, 100):
        directory = tmp_path / str(number)

        def prepare(own: int, number: int = number, directory: Path = directory) -> None:
            if own == rank:
                in_the_second_save(die_at(number, directory) if rank == 0 else die_in_gathering(number))

        codes = train_with(2, directory, *options, prepare=prepare)
        if codes[rank] == 0:
            break
        assert codes[rank] == -signal.SIGKILL
        assert train_with(2, directory, *options) == [0, 0]
        assert numbers(directory) == numbers(tmp_path / "whole")
        assert not list(directory.glob(".*.tmp"))
    print(f"killed at {number - 1} operations")
    assert number > (15 if rank == 0 else 6)
