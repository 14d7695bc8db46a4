"""Real processes that need not import PyTorch again: forked from one that has, and otherwise as a shell starts them.

A process of its own imports what others than this project have written, and nothing else; it has no threads. What is forked
from it has its own command line, folder, environment and output, reads the script from its file and ends as Python ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

PROJECT = Path(__file__).resolve().parents[2]


class WarmProcess:
    """A command that runs in a process forked from the warm one; `pid` is its own, and of its session."""

    def __init__(self, connection: socket.socket) -> None:
        self.answers = connection.makefile()
        self.pid = int(self.answers.readline())
        connection.close()

    def wait(self) -> int:
        """The exit code, below 0 for the signal that it died of; the process has then been buried."""
        return int(self.answers.readline())


class Warm:
    """The process that others are forked from; it ends with this one."""

    def __init__(self, address: Path) -> None:
        self.address = address
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(address))
        listener.listen(64)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # read when PyTorch is imported
        command = [sys.executable, __file__, str(listener.fileno())]
        self.process = subprocess.Popen(
            command, cwd=PROJECT, env=environment, pass_fds=[listener.fileno()], stdin=subprocess.PIPE
        )
        listener.close()

    def start(self, *command: str, cwd: Path = PROJECT, out: IO[Any], err: IO[Any], **environment: str) -> WarmProcess:
        """Starts `train.py ...` or `-m module ...` (what follows `python`) in a new session."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.address))
        request = json.dumps({"command": command, "cwd": str(cwd), "environment": os.environ | environment})
        socket.send_fds(connection, [b"0"], [out.fileno(), err.fileno()])
        connection.sendall(request.encode() + b"\n")
        return WarmProcess(connection)

    def run(self, *command: str, cwd: Path = PROJECT, **environment: str) -> subprocess.CompletedProcess[str]:
        """What `subprocess.run` of the same command gives."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            code = self.start(*command, cwd=cwd, out=out, err=err, **environment).wait()
            out.seek(0), err.seek(0)
            return subprocess.CompletedProcess(list(command), code, out.read(), err.read())

    def close(self) -> None:
        """Ends it; what it has started goes on."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# ------------------------------------------------------------------------------------------------- in the warm process


def serve(listener: socket.socket) -> dict[str, Any]:
    """Forks for every request; comes back in the process that is to do what was asked, and in no other."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return watched(connection)
        connection.close()


def watched(connection: socket.socket) -> dict[str, Any]:
    """Forks once more, and tells who asked the number and the end of the process in which it comes back."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, (out, err), *_ = socket.recv_fds(connection, 1, 2)
    request = json.loads(connection.makefile().readline())
    pid = os.fork()
    if pid == 0:
        connection.close()
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        return dict(request)
    os.close(out)
    os.close(err)
    with contextlib.suppress(OSError):  # nobody may be interested any more
        connection.sendall(f"{pid}\n".encode())
        connection.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
    os._exit(0)


def become(command: list[str], cwd: str, environment: dict[str, str]) -> None:
    """Does what `python command...` does."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    given = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    is_module = command[0] == "-m"
    sys.argv = command[is_module:]
    folder = cwd if is_module else str(Path(command[0]).resolve().parent)
    sys.path[:1] = [folder, *given]  # in place of the folder of this file
    for path in given:
        if (Path(path) / "sitecustomize.py").exists():
            runpy.run_path(str(Path(path) / "sitecustomize.py"))
    if is_module:
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    import torch.distributed.launcher.api
    import torch.utils.tensorboard  # noqa: F401  and not torch._dynamo, with which Python has more to say when it ends

    server = os.getpid()
    if os.fork() == 0:  # waits for the end of who started this, or for `close`
        sys.stdin.read()
        if os.getppid() == server:
            os.kill(server, signal.SIGKILL)
        os._exit(0)
    become(**serve(socket.socket(fileno=int(sys.argv[1]))))
