"""How several processes come to train together: what a launcher such as torchrun has set, and a launcher of our own."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import traceback
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch

from lab.devices.signals import Interrupted, StopSignals, die_with_parent
from utils import UserError

MOST_PROCESSES = 128  # each of some hundred MB: a number typed wrongly, or in a run from someone else, ends no machine


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


def run_in_world(function: Callable[..., Any], cfg: Any, directory: Path, overrides: Any) -> Any:
    """function(cfg, directory, overrides) here, or in `trainer.devices` new processes, unless a launcher started this."""
    directory, num_processes = agreed_directory(directory), cfg.trainer.devices
    if num_processes == 1 or num_launched() is not None:
        return function(cfg, directory, overrides)
    return run_in_processes(function, cfg, directory, overrides, num_processes=num_processes)


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
    # It warns of what killed processes leave.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")

    def launch() -> dict[int, dict[str, Any]]:
        resource_tracker.ensure_running()  # or the first process would start it, which unblocks the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # here, and in the processes until they unblock it
        return elastic_launch(config, entrypoint=_call)(function, arguments, threads)

    # In a thread, for PyTorch would stop the others by waiting 30 s for what they have to say, and not listen to it.
    with StopSignals(pass_on=pass_on_to_processes) as stops, ThreadPoolExecutor(1) as thread:
        logging.disable()  # what PyTorch logs of an end is told below, in one line
        try:
            launched_all = thread.submit(launch)
            while not wait([launched_all], timeout=0.1).done:
                if stops.noted is not None:
                    end_starting_processes()  # also those that were not there yet when the signal came
            outcomes = launched_all.result()
        except ChildFailedError as error:
            stops.check()
            rank, failure = error.get_first_failure()
            reason = failure.message if failure.exitcode < 0 else f"exit code {failure.exitcode}"
            raise Lost(f"process {rank} of the {num_processes} that trained together has ended ({reason})") from None
        finally:
            logging.disable(logging.NOTSET)
        errors = [outcome["error"] for _, outcome in sorted(outcomes.items()) if "error" in outcome]
        errors.sort(key=lambda error: isinstance(error, Lost))  # who lost others only says that they ended
        for told in errors:
            if isinstance(told, Interrupted):
                stops.check()
            raise told
    return outcomes[0]["value"]


def pass_on_to_processes(signum: int) -> None:
    """Sends a signal to the processes started here; those that are still starting are ended."""
    for process in multiprocessing.active_children():
        if has_begun(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signum)  # type: ignore[arg-type]
    end_starting_processes()


def end_starting_processes() -> None:
    """Ends those of the processes started here that have not begun, and have nothing to save."""
    for process in multiprocessing.active_children():
        if not has_begun(process.pid):
            process.terminate()


def has_begun(pid: int | None) -> bool:
    """Whether a process started here has come to `_call`, which makes it the first of a session."""
    try:
        return pid is not None and os.getsid(pid) == pid
    except ProcessLookupError:
        return False


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
