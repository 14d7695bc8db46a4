"""What every script relies on: files written whole, seeds, plain records, locks."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lab.runs.checkpoint import load_tensors, save_tensors
from lab.runs.lock import locked
from utils import RandomState, Unwritable, UserError, flatten, seed_everything, write_file, write_json


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_write_file_that_fails_leaves_the_old_content_alone(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    write_file(path, b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    if failing == "write":
        open_path = Path.open

        def open_full(self: Path, *arguments: Any, **keywords: Any) -> Any:
            file = open_path(self, "wb", buffering=0)
            file.write(b"ne")  # so far it went
            file.close()
            return open_path(Path("/dev/full"), "wb")

        monkeypatch.setattr(Path, "open", open_full)
    elif failing == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(
        Unwritable, match=r"record.json cannot be written \(No space left on device; [\d,]+ MiB are free"
    ):
        write_file(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_file_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_file(path, b"a longer content")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_write_file_that_is_interrupted_leaves_the_old_content_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    write_file(path, b"old")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    write_file(path, b"newer")  # whatever was left beside is no hindrance, and goes with the next one
    assert path.read_bytes() == b"newer"
    assert list(tmp_path.iterdir()) == [path]


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_write_json_is_json_for_any_number(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    value = {
        "loss": math.nan,
        "best": {"high": math.inf, "low": -math.inf},
        "list": [1.5, math.nan, (1, math.inf)],
        3: None,
    }
    write_json(path, value)
    read = json.loads(path.read_text(), parse_constant=refuse_constant)
    assert read == {
        "loss": "nan",
        "best": {"high": "inf", "low": "-inf"},
        "list": [1.5, "nan", [1, "inf"]],
        "3": None,
    }
    assert math.isnan(float(read["loss"]))  # what a reader gets back is the number again
    assert float(read["best"]["low"]) == -math.inf


def test_json_keeps_every_digit(tmp_path: Path) -> None:
    numbers = [0.1 + 0.2, 1 / 3, 1e-308, 2.0**53 + 2, -0.0]
    write_json(tmp_path / "n.json", numbers)
    assert [x.hex() for x in json.loads((tmp_path / "n.json").read_text())] == [x.hex() for x in numbers]


def test_flatten() -> None:
    values = {"a": 1, "b": {"c": 2.5, "d": {"e": "x", "f": True}}, "list": [1, 2], "none": None, "empty": {}}
    flat = flatten(values)
    assert flat == {"a": 1, "b.c": 2.5, "b.d.e": "x", "b.d.f": True, "list": "[1, 2]", "none": "null"}
    assert flat["b.d.f"] is True
    assert all(isinstance(value, (bool, int, float, str)) for value in flat.values())


def draw() -> tuple[Any, ...]:
    """Numbers from every global generator, Gaussian ones too (whose generators hold one back)."""
    return (
        random.random(),
        random.gauss(0, 1),
        random.randrange(10**9),
        np.random.rand(),
        np.random.standard_normal(),
        int(np.random.randint(10**9)),
        float(torch.rand(())),
        float(torch.randn(())),
        torch.randperm(20).tolist(),
    )


def test_seed_everything_repeats_every_generator() -> None:
    seed_everything(3)
    first = draw()
    seed_everything(3)
    assert draw() == first
    seed_everything(4)
    other = draw()
    assert all(left != right for left, right in zip(first, other, strict=True))


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_every_allowed_seed_is_taken(seed: int) -> None:
    seed_everything(seed)
    first = draw()
    seed_everything(seed)
    assert draw() == first


@pytest.mark.parametrize("through_file", [False, True], ids=["in memory", "through a file"])
def test_random_state_goes_on_where_it_was(through_file: bool, tmp_path: Path) -> None:
    seed_everything(5)
    draw()  # an odd number of Gaussians: one is held back in numpy and in python
    state = RandomState().state_dict()
    if through_file:
        save_tensors(tmp_path / "random.pt", state)
        state = load_tensors(tmp_path / "random.pt")
    expected = [draw(), draw()]
    seed_everything(99)
    draw()
    RandomState().load_state_dict(state)
    assert [draw(), draw()] == expected
    RandomState().load_state_dict(state)  # restoring does not use the state up
    assert draw() == expected[0]


def test_a_held_directory_is_refused_naming_who_holds_it(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with locked(directory):
        with pytest.raises(UserError, match=f"process {os.getpid()}"), locked(directory):
            pass
        with pytest.raises(UserError), locked(directory):  # being refused does not free it
            pass
    with locked(directory):
        pass


def test_a_lock_is_freed_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path):
        pass


def test_the_lock_of_a_dead_process_does_not_count(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:  # holds the lock, says so, and dies without tidying up
        try:
            with locked(tmp_path):
                os.write(write_end, b"held")
                os._exit(9)
        finally:
            os._exit(1)
    assert os.read(read_end, 4) == b"held"
    os.waitpid(child, 0)
    with locked(tmp_path):
        pass
    os.close(read_end)
    os.close(write_end)


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save to a full disk raises RuntimeError; save_tensors raises what commands report in one line."""
    open_path: Callable[..., Any] = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: open_path(Path("/dev/full"), *a, **k))
    with pytest.raises(Unwritable, match="No space left"):
        save_tensors(tmp_path / "x.pt", {"weights": torch.zeros(3)})
