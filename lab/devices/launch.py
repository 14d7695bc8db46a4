"""How several processes come to train together: what a launcher such as torchrun has set, and a launcher of our own."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from lab.devices.processes import Child, Outcome
from lab.devices.signals import Interrupted, StopSignals
from utils import UserError

MOST_PROCESSES = 128  # each of some hundred MB: a number typed wrongly, or in a run from someone else, ends no machine
GONE = "another process of this run has ended, or cannot be reached"  # says one that knows no more
SECONDS_TO_NOTICE = 30.0  # that a process with which one trained is gone


class Lost(UserError):
    """A process that trained with this one has ended, or cannot be reached."""

    exit_code = 1


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

    Raises the UserError or Interrupted that it raised there, or Lost where a process was killed, or ended by a bug.
    """
    if num_processes > MOST_PROCESSES:
        raise UserError(f"trainer.devices is {num_processes}; one machine takes at most {MOST_PROCESSES}")
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # where they meet
    size = str(num_processes)
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port)}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}  # as torchrun says that its store is there already
    threads = max(1, torch.get_num_threads() // num_processes)
    preload = [getattr(function, "func", function).__module__]
    ranks: list[Child] = []
    with StopSignals(relayed=True) as stops:
        try:
            for rank in range(num_processes):
                environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                if stops.noted is None:
                    ranks.append(Child(function, *arguments, threads=threads, environment=environment, preload=preload))
            wait_for(ranks, stops)
        finally:
            for one in ranks:
                one.close()
        outcomes = [one.outcome for one in ranks if one.outcome is not None]
        if len(outcomes) == num_processes and all(outcome.error is None for outcome in outcomes):
            return outcomes[0].value
        if all(outcome.kind in ("", "Interrupted", "Killed") for outcome in outcomes):
            stops.check()
    raise first_error(outcomes)


def wait_for(ranks: Sequence[Child], stops: StopSignals) -> None:
    """Waits until all processes have ended, and passes signals on to them.

    Once one has failed, the others have some time to notice, and are killed if they do not.
    """
    deadline = math.inf
    while alive := [one for one in ranks if not one.has_ended()]:
        for signum in stops.take():
            for one in alive:
                one.send_signal(signum)
        if any(one.outcome and one.outcome.kind not in ("", "Interrupted") for one in ranks):
            deadline = min(deadline, time.monotonic() + SECONDS_TO_NOTICE)
        if time.monotonic() > deadline:
            for one in alive:
                one.process.kill()
                one.outcome = Outcome(error="waited for another process, which had ended", kind="Lost")
        wait([stops.reader, *(handle for one in alive for handle in one.handles())], timeout=0.5)


def first_error(outcomes: Sequence[Outcome]) -> BaseException:
    """What to raise for processes that have not all done their work: what ended the first of them, not who lost it."""
    ended = [(rank, outcome) for rank, outcome in enumerate(outcomes) if outcome.error is not None]
    order = ("Killed", "Lost")  # who was killed has lost nobody; who lost others only says that they ended
    rank, outcome = min(ended, key=lambda one: order.index(one[1].kind) + 1 if one[1].kind in order else 0)
    if outcome.signum is not None:
        return Interrupted(outcome.signum)
    if outcome.is_for_user:
        error = (Lost if outcome.kind == "Lost" else UserError)(outcome.error)
        error.exit_code = outcome.exit_code
        return error
    return Lost(f"process {rank} of the {len(outcomes)} that trained together has ended ({outcome.error})")
