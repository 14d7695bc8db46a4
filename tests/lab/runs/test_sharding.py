"""Processes that share one network train what one would, and each writes its own part of a checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.distributed import DOUBLE, DROPOUT, at_step, numbers, train_with
from helpers.processes import die_at, in_the_second_save
from helpers.runs import outcome_of, same
from lab.runs.sharding import PIECES, changed, dotted, stands_in
from torch import nn

import train
from evaluate import load_run
from lab.devices.distributed import units
from lab.runs import pieces
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
    assert len(list((tmp_path / "many" / "shards").glob("*/*"))) == 4 * size


def test_a_run_goes_on_with_other_processes_and_other_ways_to_share(tmp_path: Path) -> None:
    """The pieces that some processes have written are read by more, by fewer and by one, and the other way round."""
    directory, stop = tmp_path / "changing", at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM), on_rank=0)
    options = [*DOUBLE, "optimizer=adam", "optimizer.lr=0.01"]
    assert train_with(1, tmp_path / "one", *options) == [0]
    for size, parallel in ((2, "fsdp"), (3, "fsdp"), (2, "ddp"), (2, "fsdp"), (1, "fsdp")):
        last = parallel == "fsdp" and size == 1
        codes = train_with(size, directory, *options, f"trainer.parallel={parallel}", prepare=print if last else stop)
        assert codes == [0 if last else 143] * size
    log = (directory / "train.log").read_text()
    assert "trainer.devices=3 where it was 2: the same" in log
    assert "trainer.devices=2 where it was 3 and trainer.parallel=ddp where it was fsdp" in log
    assert "going on with trainer.parallel=fsdp where it was ddp" in log
    torch.testing.assert_close(numbers(directory), numbers(tmp_path / "one"), rtol=1e-10, atol=1e-10)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nobody disturbs."""
    directory = tmp_path_factory.mktemp("whole")
    assert train_with(2, directory, *DROPOUT, FSDP) == [0, 0]
    return directory


def assert_same_outcome(directory: Path, expected: Path) -> None:
    found, wanted = ({**outcome_of(path), "pieces": pieces_of(path)} for path in (directory, expected))
    for outcome in (found, wanted):
        del outcome["last"]["model"], outcome["last"]["optimizer"]["state"]
    for what in wanted:
        assert same(found[what], wanted[what]), what
    assert len(list((directory / "shards").iterdir())) == 2


def pieces_of(directory: Path) -> dict[str, Any]:
    """Each tensor of last.pt, put together by hand."""
    found = {}

    def put_together(path: tuple[Any, ...], value: Any) -> None:
        if stands_in(value):
            pieces = sorted(value[PIECES]["pieces"])
            parts = [
                load_tensors(directory / file)[f"{dotted(path[1:])}@{','.join(map(str, offsets))}"]
                for offsets, _, file in pieces
            ]
            assert len(parts) == 2
            found[path] = torch.cat(parts)
        elif isinstance(value, torch.Tensor):
            found[path] = value

    state = load_tensors(directory / "last.pt")
    changed({key: state[key] for key in ("model", "optimizer")}, put_together)
    assert len(found) == 6 + 6 * 3
    return found


def in_step(number: int, signum: int, *, on_rank: int) -> Callable[[int], None]:
    return at_step(number, lambda: os.kill(os.getpid(), signum), on_rank=on_rank)


def in_validation(rank: int) -> None:
    """Dies before the first forward pass of the process that goes on, which then measures before it trains."""
    if rank == 0:
        train.validate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]


def in_save(number: int, *, on_rank: int) -> Callable[[int], None]:
    """Dies in the middle of writing its pieces for the so-manyth time."""

    def prepare(rank: int) -> None:
        save, times = pieces.save_tensors, []

        def torn(path: Path, tensors: dict[str, Any]) -> None:
            times.append(path)
            if len(times) == number and rank == on_rank:
                path.write_bytes(b"half of it")
                os.kill(os.getpid(), signal.SIGKILL)
            save(path, tensors)

        pieces.save_tensors = torn

    return prepare


@pytest.mark.parametrize(
    ("end", "options", "codes"),
    [
        (in_step(7, signal.SIGTERM, on_rank=1), [], [143, 143]),
        (in_step(8, signal.SIGKILL, on_rank=0), [], [-9, 2]),
        (in_save(6, on_rank=1), [], [2, -9]),
        (in_validation, ["trainer.checkpoint_every=5"], [-9, 2]),
    ],
    ids=["SIGTERM", "SIGKILL", "SIGKILL in a save", "SIGKILL in a validation"],
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


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_pieces_are_noticed(undisturbed: Path, tmp_path: Path) -> None:
    """Whichever process' they are: the run goes on from the checkpoint before, or says what is wrong."""
    assert train_with(2, tmp_path, *DROPOUT, FSDP, prepare=in_step(8, signal.SIGKILL, on_rank=1)) == [2, -9]
    older, newer = sorted((tmp_path / "shards").iterdir())
    twin = shutil.copytree(tmp_path, tmp_path.with_name("twin"))
    change_a_byte(newer / "optimizer-1.pt")
    assert train_with(2, tmp_path, *DROPOUT, FSDP) == [0, 0]
    assert f"{newer / 'optimizer-1.pt'} is damaged" in (tmp_path / "train.log").read_text()
    assert_same_outcome(tmp_path, undisturbed)

    (twin / "shards" / newer.name / "model-0.pt").unlink()
    change_a_byte(twin / "shards" / older.name / "model-1.pt")
    assert train_with(2, twin, *DROPOUT, FSDP) == [2, 2]
    for rank in range(2):
        text = (twin / f"error-{rank}.txt").read_text()
        assert "model-0.pt cannot be read" in text and "model-1.pt is damaged" in text and "\n" not in text


class Trap:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("sprung"),)


def test_pieces_from_a_stranger_execute_nothing(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(undisturbed, tmp_path / "run")
    state = load_tensors(run / "last.pt")
    state["model"]["fc1.bias"][PIECES]["pieces"][0] = ([0], [64], "shards/../../elsewhere.pt")
    save_tensors(run / "last.pt", state)
    with pytest.raises(UserError, match=r"does not fit this configuration: model: .*a piece is not where it can be"):
        load_run(run, "last")
    shutil.copy(undisturbed / "last.pt", run)
    save_tensors(max((run / "shards").iterdir()) / "model-1.pt", {"fc1.bias@64": Trap()})
    with pytest.raises(UserError, match="holds more than tensors and plain types"):
        load_run(run, "last")
    assert not Path("sprung").exists()


def test_a_run_of_several_is_evaluated_by_one(undisturbed: Path, run_command: Callable[..., Any]) -> None:
    for checkpoint in ("best", "last"):
        outcome = run_command("evaluate", f"run={undisturbed}", f"checkpoint={checkpoint}", "split=val")
        assert outcome.code == 0, outcome.err
        measured = json.loads((undisturbed / f"evaluation_val{'_last' * (checkpoint == 'last')}.json").read_text())
        metrics = json.loads((undisturbed / "metrics.json").read_text())
        recorded = metrics["best" if checkpoint == "best" else "final"]["val/loss"]
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


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_kill_at_any_operation_of_a_save_leaves_a_checkpoint(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["model.hidden_sizes=[4]", "trainer.epochs=1", "trainer.checkpoint_every=1", FSDP]
    assert train_with(2, tmp_path / "whole", *options) == [0, 0]
    for number in range(1, 100):
        directory = tmp_path / str(number)

        def prepare(own: int, number: int = number, directory: Path = directory) -> None:
            if own == rank:
                in_the_second_save(die_at(number, directory))

        codes = train_with(2, directory, *options, prepare=prepare)
        if codes[rank] == 0:
            break
        assert codes[rank] == -signal.SIGKILL
        assert train_with(2, directory, *options) == [0, 0]
        assert numbers(directory) == numbers(tmp_path / "whole")
        assert len(list((directory / "shards").iterdir())) == 2
    print(f"killed at {number - 1} operations")
    assert number > (15 if rank == 0 else 6)
