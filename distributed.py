"""Several processes that train one network together, each on its own device: PyTorch's DistributedDataParallel, or FSDP2.

python train.py trainer.devices=2
torchrun --nproc-per-node=2 train.py

Both do the same. With `trainer.parallel=fsdp` each process holds its part of every weight. One process alone is the neutral
case of a `World`: whatever is summed or shared is its own.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import threading
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from devices import choose_device
from stopping import Interrupted, StopSignals, die_with_parent
from utils import UserError

MOST_PROCESSES = 128  # each of some hundred MB: a number typed wrongly, or in a run from someone else, ends no machine


class Lost(UserError):
    """A process that trained with this one has ended, or cannot be reached."""

    exit_code = 1


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

    def share(self, value: Any) -> Any:
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
            raise Lost("another process of this run has ended, or cannot be reached") from error
        raise


def launched() -> tuple[int, int, int] | None:
    """(number of processes, of this one among them, of this one on its machine) as a launcher has set them, or None.

    UserError where the environment holds them in part, or what they cannot be.
    """
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        return None
    keys = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    given = {key: os.environ[key] for key in keys if key in os.environ}
    is_whole = all(given.get(key, "0").isdecimal() for key in keys if key != "MASTER_ADDR")
    if is_whole and given["WORLD_SIZE"] != "1":
        is_whole = {"MASTER_ADDR", "MASTER_PORT"} <= given.keys() and int(given["RANK"]) < int(given["WORLD_SIZE"])
    if not is_whole:
        shown = " ".join(f"{key}={value}" for key, value in given.items())
        raise UserError(f"the environment holds {shown}, which no launcher sets; start with torchrun, or unset them")
    return int(given["WORLD_SIZE"]), int(given["RANK"]), int(given.get("LOCAL_RANK", "0"))


def num_launched() -> int | None:
    """How many processes a launcher such as torchrun has started, this one among them; None without a launcher."""
    world = launched()
    return world and world[0]


def launchers_store(*, of_this_attempt: bool = True) -> torch.distributed.Store | None:
    """The store of torchrun, which all its processes reach; None where this process has another launcher.

    of_this_attempt: apart from what processes left there that have been started before. PyTorch 2.15 itself does not
    keep them apart, so that processes that were started again looked for each other where those before them had been.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return torch.distributed.PrefixStore(f"attempt {attempt}", store) if of_this_attempt else store


def agreed_directory(directory: Path) -> Path:
    """The run directory that the first of torchrun's processes has chosen; after a restart, the one from before.

    It stands in the launcher's own store, which outlives the processes that it starts.
    """
    store = launchers_store(of_this_attempt=False)
    if num_launched() is None or store is None:
        return directory
    if os.environ["RANK"] == "0" and not store.check(["run_directory"]):
        store.set("run_directory", str(directory))
    return Path(store.get("run_directory").decode())


def run_in_processes(function: Callable[..., Any], *arguments: Any, num_processes: int) -> Any:
    """Calls a function in so many new processes of this machine, which join one world; what it returns in the main one.

    Raises what it raised there (UserError and Interrupted only), or Lost where a process was killed.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if num_processes > MOST_PROCESSES:
        raise UserError(f"trainer.devices is {num_processes}; one machine takes at most {MOST_PROCESSES}")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    threads = max(1, torch.get_num_threads() // num_processes)
    os.environ.setdefault(
        "PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker"
    )  # of killed processes

    def launch() -> dict[int, dict[str, Any]]:
        resource_tracker.ensure_running()  # or the first process would start it, which unblocks the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # here, and in the processes until they unblock it
        return elastic_launch(config, entrypoint=_call)(function, arguments, threads)

    # In a thread, for PyTorch would stop the others by waiting 30 s for what they have to say, and not listen to it.
    with StopSignals(pass_on=pass_on_to_processes) as stops, ThreadPoolExecutor(1) as thread:
        logging.disable()  # what PyTorch logs of an end is told below, in one line
        try:
            outcomes = thread.submit(launch).result()
        except ChildFailedError as error:
            stops.check()
            rank, failure = error.get_first_failure()
            reason = failure.message if failure.exitcode < 0 else f"exit code {failure.exitcode}"
            raise Lost(f"process {rank} of the {num_processes} that trained together has ended ({reason})") from None
        finally:
            logging.disable(logging.NOTSET)
        errors = [outcome["error"] for _, outcome in sorted(outcomes.items()) if "error" in outcome]
        for told in sorted(
            errors, key=lambda error: isinstance(error, Lost)
        ):  # who lost others only says that they ended
            if isinstance(told, Interrupted):
                stops.check()
            raise told
    return outcomes[0]["value"]


def pass_on_to_processes(signum: int) -> None:
    """Sends a signal to the processes started here; one that is still starting, and can save nothing, is ended by it."""
    for process in multiprocessing.active_children():
        with contextlib.suppress(ProcessLookupError):
            assert process.pid is not None
            has_begun = os.getsid(process.pid) == process.pid  # _call has
            os.kill(process.pid, signum if has_begun else signal.SIGTERM)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], threads: int) -> dict[str, Any]:
    """In a new process: what a function returns, or the error that its user is to be told."""
    os.setsid()  # Ctrl-C reaches the launching process, which passes it on: once, not twice
    threading.Thread(target=die_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        return {"value": function(*arguments)}
    except (UserError, Interrupted) as error:
        return {"error": error}
    except KeyboardInterrupt:  # before training listens to signals
        return {"error": Interrupted(signal.SIGINT)}
    except Exception as error:
        if getattr(error, "for_user", False):
            return {"error": UserError(str(error))}
        traceback.print_exc()
        raise
