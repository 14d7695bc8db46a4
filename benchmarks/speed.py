"""How fast training is, beside what one would use instead: steady state, whole process, memory.

make bench
Writes benchmarks/results.md. Every contender trains the same network on MNIST (in data/ or DATA_ROOT) and takes turns with
the bare loop, a block of steps each, so that what else the machine does falls on both; ratios are medians over the turns.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hydra
import startup
import torch
from omegaconf import DictConfig, OmegaConf
from references import Bare, Case, Example, now, run_lightning

from lab.config.command import CONF, checked
from lab.config.schema import TrainRequest
from lab.devices.device import threads
from lab.devices.distributed import World
from lab.runs.directory import recorded_part
from lab.runs.progress import TrainingMeter
from lab.runs.run import Record, Run
from model.batching import Batch, Loader
from train import build, train_epoch

HERE = Path(__file__).resolve().parent
CASES = [Case(net, size, kind) for net in ("mlp", "cnn", "lstm") for size in (64, 512) for kind in ("fp32", "bf16")]
SECONDS = 0.3  # of the bare loop, a turn
NUM_TURNS = {"project": 24, "example": 6, "lightning": 6}

STEADY = """Images a second, and in brackets as a share of the bare loop's: the same network, batch, precision and
optimiser on tensors in memory that were normalised beforehand, and nothing else. This project runs its own
`train_epoch`, with progress bar, log and TensorBoard. The DataLoader loop is that of PyTorch's MNIST example
(torchvision's dataset and transforms, no worker processes on a CPU); Lightning's `Trainer`, with progress bar and
TensorBoard, gets the same batches."""
WHOLE = """Wall time and peak memory of whole processes from start to end, medians of three, fp32. This project's
also validates on 6,000 images, writes its run directory with checkpoints, and draws pictures; the others only train."""
STARTUP = """The default run, `python train.py` on scikit-learn's digits."""

Pause = Callable[[float], bool]  # told how many seconds a turn took; whether another one follows

# ----------------------------------------------------------------------------------------------------------- contenders


def configuration(case: Case, device: torch.device) -> DictConfig:
    """What `python train.py data=mnist model=...` would train."""
    keys = [f"model={case.network}", f"data.batch_size={case.batch_size}", f"trainer.precision={case.precision}"]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = hydra.compose("train", overrides=["name=speed", "data=mnist", f"trainer.device={device.type}", *keys])
    return recorded_part(checked(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)), TrainRequest))


class Done(Exception):
    """Enough was measured."""


class Paused:
    """The project's own loader; after every `num_steps` batches it calls `pause(seconds)`, whose time does not count."""

    def __init__(self, loader: Loader, device: torch.device, num_steps: int, pause: Pause) -> None:
        self.loader, self.device, self.num_steps, self.pause = loader, device, num_steps, pause
        self.num_examples, self.batch_size = loader.num_examples, loader.batch_size
        self.step, self.started = 0, 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        self.loader.set_epoch(epoch, start=start)

    def close(self) -> None:
        self.loader.close()

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        for _ in range(len(self.loader)):
            if self.step == self.num_steps:
                if not self.pause(now(self.device) - self.started):
                    raise Done
                self.step = 0
            if self.step == 0:
                self.started = now(self.device)
            self.step += 1
            yield next(batches)


class Terminal:
    """A standard error that passes for a terminal, so that there is a progress bar."""

    def __init__(self) -> None:
        self.file = Path(os.devnull).open("w")  # noqa: SIM115

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def isatty(self) -> bool:
        return True


def run_project(case: Case, device: torch.device, num_steps: int, pause: Pause) -> None:
    """The project's own epochs, with run directory, progress bar, log and TensorBoard, for as long as `pause` says."""
    cfg, world = configuration(case, device), World(device)
    data, learner, metrics, progress = build(cfg, world)
    data = replace(data, train=Paused(data.train, device, num_steps, pause))
    meter = TrainingMeter(metrics, world)
    parts = {"model": learner.model, "meter": meter, "progress": progress}
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), Record(cfg, [], data.fingerprint), world)
        with contextlib.suppress(Done), run:
            run.restore(parts, best={})
            while True:
                progress.end_epoch(train_epoch(learner, data, meter, run) | {"val/loss": 0.0, progress.monitor: 0.0})


def run_example(case: Case, device: torch.device, num_steps: int, pause: Pause) -> None:
    example, has_more = Example(case, device), True
    while has_more:
        started = now(device)
        example.run(num_steps)
        has_more = pause(now(device) - started)


CONTENDERS = {"project": run_project, "example": run_example, "lightning": run_lightning}

# --------------------------------------------------------------------------------------------------------- steady state


def against_bare(name: str, case: Case, device: torch.device) -> tuple[float, float]:
    """(images a second of a contender, its throughput as a share of the bare loop's), taking turns."""
    bare = Bare(case, device)

    def turn(num_steps: int) -> float:
        with threads(num_threads):  # the project may have chosen another number for itself
            started = now(device)
            bare.run(num_steps)
            return now(device) - started

    num_threads = torch.get_num_threads()
    turn(10)
    num_steps = max(4, round(SECONDS / turn(10) * 10))
    theirs, ours = [], []

    def pause(seconds: float) -> bool:
        theirs.append(seconds)
        ours.append(turn(num_steps))
        return len(theirs) <= NUM_TURNS[name]

    with contextlib.redirect_stderr(Terminal()), contextlib.redirect_stdout(Terminal()):  # type: ignore[type-var]
        CONTENDERS[name](case, device, num_steps, pause)
    # The first turn warms up. Each is compared with the bare loop's before it and after it.
    pairs = [*zip(theirs[1:], ours[1:], strict=True), *zip(theirs[1:], ours, strict=False)]
    rate = num_steps * case.batch_size / statistics.median(theirs[1:])
    return rate, statistics.median(bare / own for own, bare in pairs)


def steady_state(device: torch.device) -> list[str]:
    lines = [
        "| network | batch | precision | bare loop, images/s | this project | DataLoader loop | Lightning | "
        "project ÷ DataLoader loop | project ÷ Lightning |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        measured = {name: against_bare(name, case, device) for name in CONTENDERS}
        rate, share = measured["project"]
        cells = [f"{rates:,.0f} ({part:.2f})" for rates, part in measured.values()]
        cells += [f"{share / measured[name][1]:.1f}" for name in ("example", "lightning")]
        cells = [case.network, str(case.batch_size), case.precision, f"{rate / share:,.0f}", *cells]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


# -------------------------------------------------------------------------------------------------------- whole process


# Runs a command from a small process: a process counts the memory of the one that it was forked from as its own.
APART = """
import os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - started, usage.ru_maxrss)
sys.exit(status != 0)
"""


def timed(command: list[str], folder: Path) -> tuple[float, float]:
    """(seconds, peak memory in MB) of a whole process."""
    apart = [sys.executable, "-c", APART, *command]
    output = subprocess.run(apart, cwd=folder, stdout=subprocess.PIPE, check=True, text=True).stdout
    seconds, peak = map(float, output.split())
    return seconds, peak / (2**20 if sys.platform == "darwin" else 2**10)


def whole_process() -> list[str]:
    """One epoch of 54,000 images; the project's also validates, writes its run directory and draws its pictures."""
    lines = [
        "| network | batch | this project | bare loop | DataLoader loop | Lightning | project ÷ bare, in seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in [case for case in CASES if case.precision == "fp32"]:
        options = [f"model={case.network}", f"data.batch_size={case.batch_size}", "trainer.precision=fp32"]
        ours = [str(HERE.parent / "train.py"), "data=mnist", "trainer.epochs=1", *options]
        arguments = [case.network, str(case.batch_size), case.precision]
        commands = {"project": ours} | {
            name: [str(HERE / "references.py"), name, *arguments] for name in ("bare", "example", "lightning")
        }
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        root = str(Path(os.environ.get("DATA_ROOT", "data")).resolve())
        os.environ["DATA_ROOT"] = root
        for _ in range(3):
            for name, command in commands.items():
                with tempfile.TemporaryDirectory() as folder:
                    measured[name].append(timed([sys.executable, *command], Path(folder)))
        best = {
            name: [statistics.median(column) for column in zip(*values, strict=True)]
            for name, values in measured.items()
        }
        cells = [f"{seconds:.1f} s, {memory:,.0f} MB" for seconds, memory in best.values()]
        ratio = best["project"][0] / best["bare"][0]
        lines.append(f"| {case.network} | {case.batch_size} | {' | '.join(cells)} | {ratio:.2f} |")
        print(lines[-1], flush=True)
    return lines


# -------------------------------------------------------------------------------------------------------------- report


def machine(device: torch.device) -> str:
    """What was measured on, in a line."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        processor = f"{len(names)} x {names[0]}" if names else processor
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    import lightning
    import torchvision

    versions = f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}, Lightning {lightning.__version__}"
    return f"{processor}{gpu}; Python {platform.python_version()}, {versions}; {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["steady", "whole", "startup"], help="what to measure")
    parts = parser.parse_args().parts
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sections = {
        "steady": ("Steady state", STEADY, lambda: steady_state(device)),
        "whole": ("Whole process, one epoch", WHOLE, whole_process),
        "startup": ("Starting up", STARTUP, startup.table),
    }
    lines = ["# How fast training is", "", f"`make bench` on {machine(device)}.", ""]
    for name in parts:
        title, text, measure = sections[name]
        lines += [f"## {title}", "", text, "", *measure(), ""]
    if set(parts) == set(sections):
        (HERE / "results.md").write_text("\n".join(lines))
        print(f"written: {HERE / 'results.md'}")
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
