"""Signals that ask a process to stop, noted so that it can end where its work is whole; and the death of its parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

# Ctrl-C, the polite kill, and the warnings that clusters send some time before they kill.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """A signal that asked this process to stop."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.exit_code = 128 + signum  # as a shell reports a process that a signal has ended


SECONDS_OF_ONE = 1.0  # signals so close together are one: a terminal's and that of a launcher which passes it on


class StopSignals:
    """Notes the first of these signals while it is open; a second one raises Interrupted at once, wherever it arrives.

    Raised anywhere, the first one too would leave things half done, or be lost where exceptions are ignored. A signal
    that this process ignores stays ignored; outside of the main thread nothing is noted.

    relayed: this process waits for others that are to stop, and passes on to them what it takes from `received`; then
    nothing is raised here.
    """

    def __init__(self, *, relayed: bool = False) -> None:
        self.relayed = relayed
        self.received: list[int] = []
        self.noted: int | None = None
        self.noted_at = 0.0
        self.pid = os.getpid()
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self.reader, self.writer = os.pipe()  # readable once something is noted, so that waiting can end then
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                    self.before[signum] = signal.signal(signum, self._note)
        return self

    def _note(self, signum: int, _: Any) -> None:
        if os.getpid() != self.pid:  # a fork, which has inherited this handler: its parent decides for it
            return
        if self.relayed:
            self.noted = self.noted or signum
            self.received.append(signum)
            os.write(self.writer, b"!")
            return
        if self.noted is not None and time.monotonic() - self.noted_at < SECONDS_OF_ONE:
            return
        if self.noted is not None:
            self._let_go()
            raise Interrupted(signum)
        self.noted, self.noted_at = signum, time.monotonic()
        os.write(self.writer, b"!")
        with contextlib.suppress(OSError):  # not print: a signal may arrive in the middle of one
            os.write(2, f"\n{signal.Signals(signum).name}: ending after this step; once more to end at once\n".encode())

    def take(self) -> list[int]:
        """The signals to pass on that came since the last call; until others come, `reader` is not readable."""
        taken = [self.received.pop(0) for _ in range(len(self.received))]
        if taken:
            os.read(self.reader, len(taken))
        return taken

    def check(self) -> None:
        """Raises Interrupted if a signal was noted, after the handler for it that was there before (which may exit)."""
        if self.noted is None:
            return
        before = self.before.get(self.noted)
        self._let_go()
        if isinstance(before, EndsAtOnce):  # what is written because of the signal is not to be interrupted in turn
            signal.signal(self.noted, signal.SIG_IGN)
            raise Interrupted(self.noted)
        try:
            if callable(before):
                before(self.noted, None)
        except Exception as error:  # such as: this job was queued too often already
            raise Interrupted(self.noted) from error
        raise Interrupted(self.noted)

    def _let_go(self) -> None:
        while self.before:
            signal.signal(*self.before.popitem())

    def __exit__(self, *_: object) -> None:
        self._let_go()
        os.close(self.reader)
        os.close(self.writer)


class EndsAtOnce:
    """What a signal does to a process that has nothing to save yet: an exception could get lost where it arrives.

    tell: is given the Interrupted that it stands for.
    """

    def __init__(self, tell: Callable[[Interrupted], Any]) -> None:
        self.tell = tell

    def __call__(self, signum: int, _: Any) -> NoReturn:
        self.tell(Interrupted(signum))
        os._exit(1)


def die_with_parent() -> None:
    """Ends this process when the one that asked for it is gone, or the one that it was forked from; for a thread."""
    parent, forked_from = multiprocessing.parent_process(), os.getppid()
    assert parent is not None
    while parent.is_alive() and os.getppid() == forked_from:
        parent.join(timeout=0.5)
    os._exit(1)
