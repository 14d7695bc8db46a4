"""Several processes that train one network together, each on its own device: PyTorch's DistributedDataParallel, or FSDP2.

python train.py trainer.devices=2
torchrun --nproc-per-node=2 train.py

Both do the same. With `trainer.parallel=fsdp` each process holds its part of every weight. One process alone is the neutral
case of a `World`: whatever is summed or shared is its own.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lab.devices.device import choose_device, keep_freed_memory
from lab.devices.launch import GONE, Lost, agreed_directory, launched, launchers_store, num_launched, run_in_processes
from utils import UserError


@dataclass
class World:
    """The processes that train together, as one of them sees it: its number among them, and what they agree on.

    Whatever they agree on is the same in all of them; all must call the same methods in the same order.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    parallel: str = "ddp"  # "fsdp": the processes share one network, where otherwise each has its own copy
    asked: Any = None  # the answer to the latest `latest_max`, which is on its way
    mesh: Any = None  # of "fsdp", once there is a network

    @property
    def is_main(self) -> bool:
        """Whether this process writes what the run writes."""
        return self.rank == 0

    @property
    def is_sharded(self) -> bool:
        """Whether no process has the whole network: a forward pass, and what reads all weights, then takes every one."""
        return self.size > 1 and self.parallel == "fsdp"

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.size > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """A value of plain data and tensors from each process, in their order."""
        values = [value] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The main process's value."""
        values = [value]
        if self.size > 1:
            torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def latest_max(self, value: int) -> int:
        """The largest value over all processes; of the call before this one, so that nobody waits (alone: of this one)."""
        if self.size == 1:
            return value
        latest = self.asked
        values = torch.tensor(value)
        self.asked = (torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, async_op=True), values)
        if latest is None:
            return 0
        latest[0].wait()
        return int(latest[1])

    def place(self, model: Any, *, sync_batchnorm: bool = False) -> nn.Module:
        """The network on this process's device, or its part of it; before an optimiser is made for its parameters."""
        if self.size > 1 and getattr(model, "for_one_process", False):
            raise UserError(
                f"{type(model).__name__} draws at each step which of its weights take part, and each of {self.size} "
                f"processes would draw something else; set trainer.devices=1"
            )
        if self.size > 1 and sync_batchnorm:
            if self.device.type != "cuda":
                raise UserError(f"trainer.sync_batchnorm=true takes GPUs, and this run is on {self.device}")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if not self.is_sharded:
            return model.to(self.device)
        self.mesh = torch.distributed.device_mesh.init_device_mesh(self.device.type, (self.size,))
        shard(model, self.mesh)
        if any(True for _ in model.buffers()):  # as DistributedDataParallel does
            model.register_forward_pre_hook(lambda module, _: self.share_buffers(module) if module.training else None)
        return model

    def whole(self, model: nn.Module) -> nn.Module | None:
        """The network, if this process has the whole of it."""
        return None if self.is_sharded else model

    def wrap(self, model: Any) -> nn.Module:
        """The network whose backward pass averages the gradients over all processes; alone: the network itself."""
        if self.size == 1 or self.is_sharded:
            return model
        return nn.parallel.DistributedDataParallel(
            model, device_ids=None if self.device.type == "cpu" else [self.device]
        )

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every process the main one's running statistics (each had its own batches), before they are used."""
        if self.size > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def part(self, num: int) -> slice:
        """This process's part of so many things: contiguous, and at most one longer than another's."""
        return slice(num * self.rank // self.size, num * (self.rank + 1) // self.size)

    def leave(self) -> None:
        """Ends what connects this process to the others, with its threads; networks made here must be gone.

        A thread of gloo that still lets go of a tensor while Python ends makes PyTorch 2.15 abort the process.
        """
        self.asked = None
        getattr(self.mesh, "_pg_registry", {}).clear()  # PyTorch's caches hold the mesh, and it the group
        with contextlib.suppress(Exception):  # the others may be gone
            torch.distributed.destroy_process_group()
        gc.collect()


ALONE = World(torch.device("cpu"))


def is_sharded(value: Any) -> bool:
    """Whether this process holds a part of a tensor, a DTensor (not asked by its type, which takes long to import)."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")


def local(tensor: Any) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def gradient_norm(weights: Sequence[Tensor]) -> float:
    """The norm of the gradient that the weights hold, over all of them."""
    norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    return float(norm.full_tensor() if is_sharded(norm) else norm)  # type: ignore[attr-defined]


def share_out(value: Any, *, like: Any) -> Any:
    """This process's part of a whole tensor, shared out as another one of its shape is; anything else as it is."""
    if not isinstance(value, Tensor) or not is_sharded(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def shard(model: nn.Module, mesh: Any) -> None:
    """Leaves of each weight the rows of this process, in place: PyTorch's fully_shard (FSDP2) on a DeviceMesh.

    Each of `units`, and all that is in none, is put together for its own forward and backward pass alone.
    """
    from torch.distributed.fsdp import fully_shard

    try:
        model.to(memory_format=torch.contiguous_format)  # it takes no other
        for part in (*units(model), model):
            fully_shard(part, mesh=mesh)
    except (NotImplementedError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"trainer.parallel=fsdp cannot share out this network ({reason}); set trainer.parallel=ddp"
        ) from error


def units(model: nn.Module) -> list[nn.Module]:
    """A network's children that hold parameters (of a list or a sequence: its members), and share them with no other."""

    def members(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
                yield from members(child)
            else:
                yield child

    def places(module: nn.Module) -> Counter[Tensor]:
        return Counter(parameter for _, parameter in module.named_parameters(remove_duplicate=False))

    everywhere = places(model)
    inside = {module: places(module) for module in members(model)}
    return [module for module, own in inside.items() if own and all(everywhere[key] == own[key] for key in own)]


@contextlib.contextmanager
def joined(device: str, parallel: str = "ddp") -> Iterator[World]:
    """The world that the launcher of this process speaks of in the environment; without a launcher, this process alone.

    device: the name of the device to train on; each process on a machine takes one of its own. parallel: how they share
    the network. Raises Lost where another process has gone.
    """
    size, rank, local_rank = launched() or (1, 0, 0)
    chosen = choose_device(device)
    if size == 1:
        yield World(chosen)
        return
    if chosen.type == "cuda":
        chosen = choose_device(f"cuda:{local_rank}")
        torch.cuda.set_device(chosen)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    from torch.distributed.nn import functional  # noqa: F401  imported later, as by DDP, it keeps the group for good

    with explained():
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=launchers_store(), rank=rank, world_size=size)
        world = World(chosen, rank, size, parallel)
        try:
            yield world
        except BaseException as error:
            forget_variables(error)  # or they hold what the world is to let go of
            raise
        finally:
            world.leave()


def in_world(
    function: Callable[..., Any], *, on_lost: Callable[[Path, Exception], Exception] = lambda _, error: error
) -> Callable[..., Any]:
    """Makes function(world, cfg, directory, ...) one of (cfg, directory, ...), run by each process of its world.

    Those are `trainer.devices` new ones on this machine, those that a launcher such as torchrun has started, or this one
    alone. What the function has built is gone when it returns, and with it what connects the processes. on_lost: gives what
    to raise for (directory, error) where one of the new processes has ended without a word.
    """

    @functools.wraps(function)
    def join(cfg: Any, directory: Path, *arguments: Any, **keys: Any) -> Any:
        if cfg.trainer.devices > 1 and num_launched() is None:
            work = functools.partial(join, **keys)
            try:
                return run_in_processes(work, cfg, directory, *arguments, num_processes=cfg.trainer.devices)
            except Lost as error:
                raise on_lost(directory, error) from error
        keep_freed_memory()
        with joined(cfg.trainer.device, cfg.trainer.parallel) as world:
            return function(world, cfg, agreed_directory(directory), *arguments, **keys)

    return join


def forget_variables(error: BaseException | None) -> None:
    """Clears the variables of the functions that an error, and what it came from, has ended."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Says in plain words what PyTorch's distributed package raises where processes cannot go on together."""
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if "Expected to have finished reduction" in text:
            raise UserError(
                "the network leaves some of its parameters out of some steps, which several processes cannot "
                "train together; set trainer.devices=1"
            ) from error
        if "placement" in text or "DTensor" in text:
            raise UserError(
                f"the network or its optimizer does what PyTorch cannot do with parts of weights ({text[:150]}); "
                f"set trainer.parallel=ddp"
            ) from error
        if isinstance(error, torch.distributed.DistError) or "gloo" in text:
            raise Lost(GONE) from error
        raise
