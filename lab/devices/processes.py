"""Functions in processes of their own: how these are started, asked to stop, and what came out of them.

All are forked from one process that has imported everything once. Each is the first of a session (Ctrl-C in a terminal
reaches the process that started it, which passes it on: once, not twice), ends when that one is gone, and listens to
signals only when it is ready to.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from lab.devices.signals import SIGNALS, EndsAtOnce, Interrupted, die_with_parent
from utils import PROJECT

LOST = 255  # what multiprocessing takes for the exit code of a process that nobody can tell it of
SECONDS_FOR_THE_REST = 5.0  # for threads and processes that a function has left behind when it returns
forking = multiprocessing.get_context("forkserver")
os.register_at_fork(after_in_child=forkserver._forkserver.__init__)  # type: ignore[misc]  # has none of its own


@dataclass(frozen=True)
class Outcome:
    """What came out of a process: `value`, or `error`, which is why there is none, in one line.

    kind: the name of the error's class; exit_code: with which a command should end; signum: of the signal that ended it;
    is_for_user: a mistake of the user's, of which the line says all.
    """

    value: Any = None
    error: str | None = None
    kind: str = ""
    exit_code: int = 1
    signum: int | None = None
    is_for_user: bool = False


class Child:
    """A process that this one has started, which calls one function."""

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        threads: int,
        environment: Mapping[str, str] | None = None,
        preload: Sequence[str] = (),
    ) -> None:
        """environment: beside this process's own; preload: the modules to import once, before the first is forked."""
        self.results, sender = forking.Pipe(duplex=False)
        given = {**os.environ, "OMP_NUM_THREADS": str(threads), **(environment or {})}
        self.process = forking.Process(target=_work, args=(function, arguments, given, threads, sender))
        self.has_begun = False
        self.outcome: Outcome | None = None
        self.is_open = True
        warm_up(threads, preload)
        try:
            self.process.start()
        finally:
            sender.close()
        self.pid = self.process.pid
        self.started = time.monotonic()

    def handles(self) -> list[Any]:
        """What `multiprocessing.connection.wait` can wait for: something of this process to be read, or its end."""
        return [*[self.results] * self.is_open, self.process.sentinel]

    def has_ended(self) -> bool:
        """Whether the process is gone, and `outcome` what came out of it; to be asked again and again until it is."""
        is_gone = not self.process.is_alive()
        try:
            while self.is_open and self.results.poll():
                self.has_begun, self.outcome = True, self.results.recv()
        except (EOFError, OSError):
            self.is_open = False
        if is_gone and self.outcome is None:
            self.outcome = Outcome(error=reason_of(self.process.exitcode or 0), kind="Killed")
        return is_gone

    def send_signal(self, signum: int) -> None:
        """Asks the process to stop; one that has not begun has nothing to save, and is killed."""
        if not self.has_begun:
            self.process.kill()
        elif self.process.is_alive() and self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def close(self) -> None:
        """Kills the process, if it is still there."""
        self.process.kill()
        self.process.join()
        self.results.close()
        self.is_open = False


def warm_up(threads: int, preload: Sequence[str] = ()) -> None:
    """Starts, unless it is there, the process that imports everything once and from which all others are forked."""
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH"), *sys.path])),
        "OMP_NUM_THREADS": str(threads),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # counting devices otherwise is a first use of CUDA, which no fork survives
    }
    resource_tracker.ensure_running()  # on its own: starting it unblocks signals
    forkserver.set_forkserver_preload([__name__, *preload])
    mask, mine = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS), dict(os.environ)
    os.environ.update(environment)
    try:
        forkserver.ensure_running()  # inherits both: a process forked from it listens to signals when it is ready to
    finally:
        os.environ.clear()
        os.environ.update(mine)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def reason_of(code: int) -> str:
    """Why a process ended that said nothing itself."""
    if code == -signal.SIGKILL:
        return "killed (SIGKILL), by someone or by a system out of memory"
    if code == LOST:
        return "lost: the process that it was forked from was killed"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"ended with code {code}, and said nothing"


# ------------------------------------------------------------------------------------------------------ in the process


def _work(
    function: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str], threads: int, results: Any
) -> None:
    """Calls the function, and sends first None, when this process listens to signals, then the Outcome."""
    os.setsid()
    threading.Thread(target=die_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its own is one for many processes, and outlives one that is killed
    try:
        signal.signal(signal.SIGINT, EndsAtOnce(lambda error: results.send(tell(error))))
        results.send(None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        results.send(Outcome(function(*arguments)))
    except BaseException as error:
        results.send(tell(error))
        leave(code=1)
    leave(code=0)


def tell(error: BaseException) -> Outcome:
    """What ended a function, in one line; a traceback is for stderr, unless it is a mistake of the user's."""
    text, kind = " ".join(str(error).split())[:300], type(error).__name__
    if isinstance(error, Interrupted):
        return Outcome(error="interrupted", kind=kind, exit_code=error.exit_code, signum=error.signum)
    if getattr(error, "for_user", False):
        return Outcome(error=text, kind=kind, exit_code=getattr(error, "exit_code", 2), is_for_user=True)
    traceback.print_exception(error)
    return Outcome(error=f"{kind}: {text}" if text else kind, kind=kind)


def leave(*, code: int) -> NoReturn:
    """Ends this process, even if its function has left threads or processes behind that do not end by themselves."""
    deadline = time.monotonic() + SECONDS_FOR_THE_REST
    for child in multiprocessing.active_children():
        if not child.daemon:
            child.join(max(0.0, deadline - time.monotonic()))
        child.kill()
    threads = [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = [thread.name for thread in threads if thread.is_alive()]
    if left:
        print(f"left behind, and ended with the process: the thread {', '.join(left)}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
