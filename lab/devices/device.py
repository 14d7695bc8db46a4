"""What a run computes on and how: device, precision, threads, compiled or not, memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import math
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils import UserError

# Parameters times batch size, from which a CPU gains.
PRODUCTS_FOR_BF16 = 2**24  # mlp and lstm of several widths: 0.9 to 1.1 times as fast there, 1.3 to 3 times beyond
PRODUCTS_FOR_THREADS = 2**21  # two threads on mlp: 0.75 times as fast below, 0.9 to 1.4 times beyond
STEPS_TO_COMPILE = 2000  # compiling takes the time of about so many


def choose_device(name: str, *, key: str = "trainer.device") -> torch.device:
    """The torch.device for "auto", "cpu", "cuda", "cuda:1" or "mps"; UserError where it is not there.

    key: what the user calls it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = name.partition(":")
    there = ["cpu", *["cuda"] * torch.cuda.is_available(), *["mps"] * torch.backends.mps.is_available()]
    there += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if name not in there and not (kind == "cuda" and number.isdigit() and int(number) < torch.cuda.device_count()):
        raise UserError(f"{key} is {name!r}; there is auto, {', '.join(there)} on this machine")
    return torch.device(name)


@dataclass(frozen=True)
class Computing:
    """How a run computes on its device."""

    precision: str  # fp32, bf16 or fp16
    num_threads: int  # of a training step on a CPU
    compiled: bool


def choose_computing(
    device: torch.device,
    model: torch.nn.Module,
    *,
    precision: str,
    compile: str | bool,
    threads: str | int,
    task: str,
    batch_size: int | None,
    num_steps: int,
    optimizer: Any,
) -> Computing:
    """What the options of a run come to on this device: rules and no measurements, so that a run repeats its numbers.

    optimizer: its class, which does without PyTorch's compiler where nothing is compiled.
    """
    compiled = choose_compile(compile, device, num_steps=num_steps)
    if not compiled:
        spare_the_compiler(optimizer)
    return Computing(
        choose_precision(precision, device, model, task=task, batch_size=batch_size),
        choose_threads(device, model, batch_size=batch_size) if threads == "auto" else int(threads),
        compiled,
    )


def keep_freed_memory() -> None:
    """Keeps the memory of freed tensors in this process, for the tensors of the next step; with glibc alone.

    It gives every block above 32 MiB back to the system and asks for it anew, which comes in pages of zeros: an eighth
    of the time of a training step on a CPU whose activations are that large.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if adjust is not None:
        adjust(-3, 2**30)  # M_MMAP_THRESHOLD: the size from which a block is the system's
        adjust(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: how much may lie unused


def choose_precision(
    name: str, device: torch.device, model: torch.nn.Module, *, task: str, batch_size: int | None
) -> str:
    """ "fp32", "bf16" or "fp16"; for "auto" the fastest that is safe: bf16 where the device gains by it, else fp32.

    A rule and no measurement, so that the same run computes the same numbers the next time. A regression stays in fp32,
    for its error may become smaller than bf16 can tell. On a CPU convolutions gain, and products large enough to pay for
    the conversions. batch_size: of training; None: all examples in one batch.
    """
    if name != "auto":
        return name
    if task == "regression":
        return "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has_native_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    if device.type != "cpu" or not has_native_bf16():
        return "fp32"
    return "bf16" if num_products(model, batch_size) >= PRODUCTS_FOR_BF16 else "fp32"


def choose_threads(device: torch.device, model: torch.nn.Module, *, batch_size: int | None) -> int:
    """How many threads a training step is to use: one where sharing the work would take longer than the work."""
    is_recurrent = any(isinstance(module, torch.nn.RNNBase) for module in model.modules())  # works through a sequence
    is_small = num_products(model, batch_size) < PRODUCTS_FOR_THREADS and not is_recurrent
    return 1 if device.type == "cpu" and is_small else torch.get_num_threads()


def num_products(model: torch.nn.Module, batch_size: int | None) -> float:
    """The multiplications of a forward pass, where each weight is used once for each example; else infinity."""
    if any(isinstance(module, torch.nn.modules.conv._ConvNd) for module in model.modules()):
        return math.inf
    return sum(parameter.numel() for parameter in model.parameters()) * (batch_size or math.inf)


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Inside, operations on the CPU share so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_compile(name: str | bool, device: torch.device, *, num_steps: int) -> bool:
    """Whether to compile the network; for "auto": on a GPU where that works, in a run long enough to gain by it."""
    if name != "auto":
        return bool(name)
    return device.type == "cuda" and num_steps >= STEPS_TO_COMPILE and can_compile(device)


def can_compile(device: torch.device) -> bool:
    """Whether there is what PyTorch takes to compile for a GPU: one that Triton serves, a C compiler, Python's headers."""
    if importlib.util.find_spec("triton") is None or torch.cuda.get_device_capability(device) < (7, 0):
        return False
    has_compiler = any(shutil.which(name) for name in (os.environ.get("CC", "gcc"), "gcc", "clang"))
    return has_compiler and Path(sysconfig.get_config_var("INCLUDEPY") or "", "Python.h").is_file()


def spare_the_compiler(kind: Any) -> None:
    """Lets a class of optimisers do without PyTorch's compiler, whose import takes nearly as long as PyTorch's own.

    Those of PyTorch import it when they are made and at their steps, only to tell it where it is to stay out. Where
    nothing is compiled there is nothing to tell. What is not as in PyTorch 2.15 stays as it is.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        if undecorated := getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None):
            vars(undecorated).setdefault("__dynamo_disable", undecorated)  # where PyTorch itself notes that it has told
    step = getattr(kind, "step", None)
    if step is None or getattr(getattr(step, "__code__", None), "co_name", "") != "_use_grad":  # PyTorch's decorator
        return
    plain = step.__wrapped__

    @functools.wraps(plain)
    def plain_step(self: torch.optim.Optimizer, *arguments: Any, **keys: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return plain(self, *arguments, **keys)

    kind.step = plain_step


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context in which a network computes in "fp32" (that is: as it is), "bf16" or "fp16"; may be entered again."""
    if precision == "fp32":
        return contextlib.nullcontext()  # an autocast that is off does the same, in the time of some operations
    return torch.autocast(device.type, torch.float16 if precision == "fp16" else torch.bfloat16)


def full_precision(values: torch.Tensor) -> torch.Tensor:
    """Half-precision outputs as float32, in which losses are computed; others as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
