"""A checkpoint gives back what was saved, and notices every change."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets  # noqa: F401  these here, so that no forked process imports them for itself
import torch
import torch._dynamo
import torch.utils.tensorboard
from helpers.runs import (
    configuration,
)

import train
from lab.runs.checkpoint import Checkpoint, Damaged, load_tensors, read_whole, save_tensors
from utils import UserError

STATE: dict[str, Any] = {
    "model": {"weight": torch.arange(24.0).view(4, 6), "count": torch.tensor(7)},
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "bits": torch.tensor([True, False]),
    "progress": {"epoch": 3, "best": {"val/loss": 0.1 + 0.2}, "names": ["a", "ü"], "nothing": None, "pair": (1, 2.5)},
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small checkpoint file."""
    save_tensors(tmp_path / "small.pt", STATE)
    return tmp_path / "small.pt"


def assert_is_state(loaded: dict[str, Any]) -> None:
    assert loaded["progress"] == STATE["progress"]
    for left, right in [
        (loaded["model"]["weight"], STATE["model"]["weight"]),
        (loaded["model"]["count"], STATE["model"]["count"]),
        (loaded["half"], STATE["half"]),
        (loaded["bits"], STATE["bits"]),
    ]:
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


def test_checkpoint_gives_back_what_was_saved(saved: Path) -> None:
    assert_is_state(load_tensors(saved))


def test_any_reader_of_pytorch_files_reads_a_checkpoint(saved: Path) -> None:
    assert_is_state(torch.load(saved, weights_only=True))


def test_every_flipped_bit_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    generator = random.Random(0)
    positions = (
        generator.sample(range(len(content)), 250) + list(range(30)) + list(range(len(content) - 80, len(content)))
    )
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 1 << generator.randrange(8)
        saved.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            load_tensors(saved)


def test_every_truncation_and_addition_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    lengths = [0, 1, 63, 64, 70, 71, 72, len(content) - 1, len(content) - 71, *range(0, len(content), 97)]
    for damaged in [*(content[:length] for length in lengths), content + b"\0", content + content, b"\0" + content]:
        saved.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            load_tensors(saved)


def test_torch_load_alone_would_not_notice(saved: Path) -> None:
    """Why the checksum is there; if this fails, torch has learned it, and the checksum may go."""
    content = bytearray(saved.read_bytes())
    position = content.find(STATE["model"]["weight"].numpy().tobytes())
    assert position > 0
    content[position + 4] ^= 1
    saved.write_bytes(content)
    assert not torch.equal(torch.load(saved, weights_only=True)["model"]["weight"], STATE["model"]["weight"])


def test_a_checkpoint_cannot_hold_code(tmp_path: Path) -> None:
    path = tmp_path / "hostile.pt"

    class Hostile:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "was-here",))

    save_tensors(path, {"model": Hostile()})  # a whole file with a right checksum
    with pytest.raises(Exception, match=r"(?i)weights.only|Unsupported"):
        load_tensors(path)
    assert not (tmp_path / "was-here").exists()


def test_missing_checkpoint_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pt") as caught:
        load_tensors(tmp_path / "none.pt")
    assert "\n" not in str(caught.value)


def test_restore_names_the_part_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    Checkpoint({"model": torch.nn.Linear(2, 3)}, spec={"a": 1}).save(path)
    other = torch.nn.Linear(2, 3)
    Checkpoint({"model": other}).restore(load_tensors(path), path)
    assert torch.equal(other.weight, load_tensors(path)["model"]["weight"])
    assert load_tensors(path)["spec"] == {"a": 1}
    with pytest.raises(UserError, match="model"):
        Checkpoint({"model": torch.nn.Linear(5, 3)}).restore(load_tensors(path), path)
    with pytest.raises(UserError, match="optimizer"):
        Checkpoint({"optimizer": torch.optim.SGD(other.parameters())}).restore(load_tensors(path), path)


def test_a_thousand_flipped_bits_are_noticed(tmp_path: Path) -> None:
    train.train(configuration("trainer.epochs=1", "model.hidden_sizes=[16]"), tmp_path)
    chance = random.Random(0)
    for name in ("best.pt", "last.pt"):
        with (tmp_path / name).open("r+b", buffering=0) as file:
            size = len(read_whole(tmp_path / name))
            for _ in range(500):
                position, bit = chance.randrange(size), 1 << chance.randrange(8)
                file.seek(position)
                (byte,) = file.read(1)
                for value in (byte ^ bit, byte):
                    file.seek(position)
                    file.write(bytes([value]))
                    if value != byte:
                        with pytest.raises(Damaged):
                            read_whole(tmp_path / name)
        load_tensors(tmp_path / name)  # put right again
