"""What a run costs besides its training: the default run's whole process, against `import torch` alone.

python benchmarks/startup.py
Expect: at most 2 s above `import torch` and the training itself. Takes about a minute on two processors.

The parts are those of the default run in a process of its own, whose functions are timed by name from outside.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
NUM_ROUNDS = 3
TRAINING = "training and validation, 20 epochs"
PARTS = {  # what is timed, by module: the rest of a run is its records
    "builders.load_data": "data",
    "train.build": "network, optimiser, schedule",
    "train.train_epoch": TRAINING,
    "train.validate": TRAINING,
    "pictures.Pictures.begin": "pictures",
    "pictures.Pictures.after_epoch": "pictures",
    "pictures.Pictures.finish": "pictures",
}


class Clock:
    """Seconds and processor seconds by part; what a part calls that is a part itself counts there alone."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.processor_seconds: Counter[str] = Counter()
        self.parts, self.since = ["import torch"], (time.perf_counter(), time.process_time())

    def enter(self, part: str) -> None:
        """What follows belongs to `part`."""
        self.leave(part, *self.parts)

    def leave(self, *parts: str) -> None:
        """What follows belongs to the first of `parts`."""
        now = time.perf_counter(), time.process_time()
        self.seconds[self.parts[0]] += now[0] - self.since[0]
        self.processor_seconds[self.parts[0]] += now[1] - self.since[1]
        self.parts, self.since = list(parts), now

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function, and what it returns if that is one, as a part."""

        def call(*arguments: Any, **keys: Any) -> Any:
            before = self.parts
            self.enter(part)
            try:
                result = function(*arguments, **keys)
            finally:
                self.leave(*before)
            return self.timed(result, part) if type(result) is type(call) else result

        return call


def run_timed(out: str, *arguments: str) -> None:
    """In a process of its own: trains as `train.py` would, and writes the seconds of each part to a file."""
    gc.disable()  # as train.py begins
    clock = Clock()
    import torch  # noqa: F401

    clock.leave("other imports")
    sys.path[0] = str(PROJECT)
    import train
    from lab.config import builders
    from lab.plots import pictures

    clock.leave("configuration")
    for name, part in PARTS.items():
        place, _, last = name.rpartition(".")
        owner = {"train": train, "builders": builders, "pictures.Pictures": pictures.Pictures}[place]
        setattr(owner, last, clock.timed(getattr(owner, last), part))
    train.train = clock.timed(train.train, "checkpoints, TensorBoard, provenance and other records")
    sys.argv = ["train.py", *arguments]
    train.main()
    clock.leave("")
    Path(out).write_text(
        json.dumps({part: (clock.seconds[part], clock.processor_seconds[part]) for part in clock.seconds})
    )


def measure(*command: str) -> tuple[float, float]:
    """(seconds, processor seconds) of a whole process."""
    before, started = os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - started, os.times()
    assert done.returncode == 0, done.stderr
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, spent


def table() -> list[str]:
    """The lines of a Markdown table: whole processes, and the parts of the default run; the least of some rounds."""
    with tempfile.TemporaryDirectory() as folder:
        default, out = [str(PROJECT / "train.py"), f"experiments_dir={folder}"], f"{folder}/parts.json"
        commands = {
            '`python -c "import torch"`': ["-c", "import torch"],
            "`python train.py trainer.epochs=1`, no pictures": [*default, "trainer.epochs=1", "trainer.images=false"],
            "`python train.py`, 20 epochs": default,
            "its parts": [str(Path(__file__)), out, *default[1:]],
        }
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(NUM_ROUNDS):
            for name, command in commands.items():  # alternating, so that what else the machine does touches all
                rounds[name].append(measure(*command))
            for part, spent in json.loads(Path(out).read_text()).items():
                rounds.setdefault(f"- {part}", []).append(spent)
    del rounds["its parts"]
    best = {name: [min(values) for values in zip(*measured, strict=True)] for name, measured in rounds.items()}
    torch_alone, _, whole, *_ = best.values()
    training = best[f"- {TRAINING}"]
    best["above `import torch` and the training"] = [
        w - t - n for w, t, n in zip(whole, torch_alone, training, strict=True)
    ]
    lines = ["| | seconds | processor seconds |", "|---|---:|---:|"]
    return lines + [f"| {name} | {seconds:.2f} | {spent:.2f} |" for name, (seconds, spent) in best.items()]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with contextlib.suppress(SystemExit):
            run_timed(*sys.argv[1:])
    else:
        print("\n".join(table()))
