"""The device, its precision, threads and memory."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import nn

from lab.devices.device import choose_compile, choose_device, choose_precision, choose_threads, threads
from utils import PROJECT, UserError


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "cuda:x", "cuda:-1", "cpu:7"])
def test_devices_that_are_not_there_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="auto, cpu"):
        choose_device(name)


def test_devices_that_are_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    torch.zeros(1, device=choose_device("auto"))


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
