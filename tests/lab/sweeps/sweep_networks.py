"""Networks for the tests of sweeps: one that takes its time, one that takes its process down."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from torch import nn

from model.net import MLP


class Slow(MLP):
    """A network that needs at least 10 ms for a training step, so that there is time to disturb it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.01 * self.training)
        return super().forward(x)


class Trapped(nn.Module):
    """A network that comes to harm while the file `trap` is there: when it is made, or at its 10th training step.

    "kill" ends the process that says what comes of the run, where several train together.
    """

    def __init__(self, spec, *, trap: str, harm: str = "none") -> None:
        super().__init__()
        self.trap, self.harm, self.num_steps = Path(trap), harm, 0
        self.mlp = MLP(spec)
        if harm == "refuse" and self.trap.exists():
            raise AssertionError("this network refuses to be made")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_steps += self.training
        if self.num_steps >= 10 and self.trap.exists():
            if self.harm == "raise":
                raise ZeroDivisionError("this network divides by zero")
            if self.harm == "kill" and os.environ.get("RANK", "0") == "0":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.harm == "exit":
                sys.exit("this network has enough")
            if self.harm == "interrupt":
                raise KeyboardInterrupt
            if self.harm == "diverge":
                return self.mlp(x) * math.nan
            if self.harm == "thread" and self.num_steps == 10:
                threading.Thread(target=time.sleep, args=(600,)).start()
        return self.mlp(x)
