"""What every script relies on: checkpoints that notice damage, files written whole, seeds, plain records."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import random
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lab.devices.device import choose_compile, choose_device, choose_precision, choose_threads, threads
from lab.runs.checkpoint import Checkpoint, load_tensors, save_tensors
from lab.runs.lock import locked
from utils import (
    PROJECT,
    RandomState,
    Unwritable,
    UserError,
    flatten,
    read_json,
    seed_everything,
    write_file,
    write_json,
)

# -------------------------------------------------------------------------------------------------------- checkpoints

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
    Checkpoint({"model": other}).restore(path)
    assert torch.equal(other.weight, load_tensors(path)["model"]["weight"])
    assert load_tensors(path)["spec"] == {"a": 1}
    with pytest.raises(UserError, match="model"):
        Checkpoint({"model": torch.nn.Linear(5, 3)}).restore(path)
    with pytest.raises(UserError, match="optimizer"):
        Checkpoint({"optimizer": torch.optim.SGD(other.parameters())}).restore(path)


# -------------------------------------------------------------------------------------------------------------- files


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
    assert [x.hex() for x in read_json(tmp_path / "n.json")] == [x.hex() for x in numbers]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b'{"a": 1} x'], ids=["empty", "cut", "binary", "more"])
def test_read_json_names_a_damaged_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(UserError, match=r"status\.json is damaged"):
        read_json(tmp_path / "status.json")


def test_read_json_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"status\.json is missing"):
        read_json(tmp_path / "status.json")


def test_flatten() -> None:
    values = {"a": 1, "b": {"c": 2.5, "d": {"e": "x", "f": True}}, "list": [1, 2], "none": None, "empty": {}}
    flat = flatten(values)
    assert flat == {"a": 1, "b.c": 2.5, "b.d.e": "x", "b.d.f": True, "list": "[1, 2]", "none": "null"}
    assert flat["b.d.f"] is True
    assert all(isinstance(value, (bool, int, float, str)) for value in flat.values())


# ---------------------------------------------------------------------------------------------------- random numbers


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


# -------------------------------------------------------------------------------------------------- locks and devices


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


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "cuda:x", "cuda:-1", "cpu:7"])
def test_devices_that_are_not_there_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="auto, cpu"):
        choose_device(name)


def test_devices_that_are_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    torch.zeros(1, device=choose_device("auto"))


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save to a full disk raises RuntimeError; save_tensors raises what commands report in one line."""
    open_path: Callable[..., Any] = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: open_path(Path("/dev/full"), *a, **k))
    with pytest.raises(Unwritable, match="No space left"):
        save_tensors(tmp_path / "x.pt", STATE)


@pytest.mark.parametrize(
    ("model", "task", "batch_size", "chosen"),
    [
        (nn.Linear(784, 128), "classification", 512, "bf16"),
        (nn.Linear(784, 128), "classification", None, "bf16"),  # all examples in one batch
        (nn.Linear(784, 128), "classification", 64, "fp32"),  # too small to pay for the conversions
        (nn.Conv2d(1, 8, 3), "classification", 64, "bf16"),
        (nn.Conv2d(1, 8, 3), "regression", 64, "fp32"),  # its error may become smaller than bf16 can tell
    ],
)
def test_automatic_precision(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, task: str, batch_size: int | None, chosen: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu, model, task=task, batch_size=batch_size) == chosen
    assert choose_precision("fp16", cpu, model, task=task, batch_size=batch_size) == "fp16"  # what is asked for is done
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert choose_precision("auto", cpu, model, task=task, batch_size=batch_size) == "fp32"
    assert not choose_compile("auto", cpu, num_steps=10**9)


def test_a_gpu_compiles_long_runs_where_all_is_there_that_it_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu, long = torch.device("cuda", 0), 10**6
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(shutil, "which", {"gcc": "/usr/bin/gcc"}.get)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert choose_compile("auto", gpu, num_steps=long)
    assert not choose_compile("auto", gpu, num_steps=100)
    assert not choose_compile(False, gpu, num_steps=long)
    for module, name, without in (
        (importlib.util, "find_spec", lambda name: None),
        (torch.cuda, "get_device_capability", lambda device: (6, 1)),
        (shutil, "which", lambda name: None),
        (sysconfig, "get_config_var", lambda name: str(tmp_path / "none")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, without)
            assert not choose_compile("auto", gpu, num_steps=long), name
    assert choose_compile("auto", gpu, num_steps=long)


def test_small_steps_take_one_thread() -> None:
    before, cpu = torch.get_num_threads(), torch.device("cpu")
    with threads(3):
        assert choose_threads(cpu, nn.Linear(64, 128), batch_size=64) == 1
        assert choose_threads(cpu, nn.Linear(784, 128), batch_size=512) == 3
        assert choose_threads(cpu, nn.Linear(64, 128), batch_size=None) == 3  # all examples in one batch
        assert (
            choose_threads(cpu, nn.LSTM(28, 8), batch_size=64) == 3
        )  # each weight is used at each place of a sequence
        assert choose_threads(cpu, nn.Conv2d(1, 2, 3), batch_size=4) == 3
    assert torch.get_num_threads() == before


COUNT_NEW_PAGES = """
import resource, torch
from lab.devices.device import keep_freed_memory
keep_freed_memory()
for number in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MiB, more than glibc keeps of itself
    if number >= 15:  # not before: aligned blocks leave gaps, until they add up to one
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to keep memory")
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    """In a process of its own, where no other test has left gaps."""
    counted = subprocess.run(
        [sys.executable, "-c", COUNT_NEW_PAGES], cwd=PROJECT, stdout=subprocess.PIPE, check=True, text=True
    )
    assert sum(map(int, counted.stdout.split())) < 100, counted.stdout
