"""What is said of a run: at its start, at its end, and where memory does not suffice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from lab.config.quoting import path_typed
from lab.runs.logger import RunLogger
from lab.runs.progress import Progress
from utils import OutOfMemory, here, hint, write_file


def introduction(cfg: DictConfig, directory: Path, *, data: Any, learner: Any, progress: Progress) -> str:
    """What a run is about: its data, network, device and directory, a line each."""
    spec, world = data.spec, learner.world
    shape, kind = "x".join(map(str, spec.input_shape)), f"{spec.output_size} outputs"
    if spec.classes:
        kind = f"{spec.output_size} classes"
    num_parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    sizes = f"{data.train.num_examples:,} training and {data.val.num_examples:,} validation examples"
    processes = f"{world.size} processes, each " * (world.size > 1)
    sharing = ", each with a part of every weight" * world.is_sharded
    computing = learner.computing
    threads = f"{computing.num_threads} thread{'s' * (computing.num_threads > 1)}"
    precision = computing.precision + ", compiled" * computing.compiled
    where = f", going on after epoch {progress.epoch}, step {progress.step}" * (progress.step > 0)
    notes = "".join(f"\n        {note}" for note in data.notes)
    return (
        f"data    {cfg.data._target_.split('.')[-1]}: {sizes}, {shape}, {kind}{notes}\n"
        f"model   {cfg.model._target_.split('.')[-1]}: {num_parameters:,} parameters\n"
        f"device  {processes}{world.device}{sharing}, {threads}, {precision}, seed {cfg.seed}\n"
        f"run     {here(directory)}{where}"
    )


def farewell(cfg: DictConfig, directory: Path, progress: Progress) -> str:
    """The result, the directory, and the commands to go on with."""
    experiment = Path(cfg.experiments_dir, cfg.name)
    folder = experiment if directory.absolute().is_relative_to(experiment.absolute()) else directory.parent
    values = "  ".join(f"{name} {value:.4f}" for name, value in progress.best.items() if name.startswith("val/"))
    return (
        f"best    epoch {progress.best_epoch}: {values}\n"
        f"run     {here(directory)}\n"
        f"next    {hint('evaluate.py')} {path_typed('run', directory)}\n"
        f"        tensorboard --logdir {here(folder)}"
    )


@contextlib.contextmanager
def memory_explained(cfg: DictConfig) -> Iterator[None]:
    """Says what to turn down where the memory of the device or the machine does not suffice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in text:
            raise
        raise OutOfMemory(
            f"out of memory ({text[:150]}); turn down data.batch_size (it is {cfg.data.batch_size}), "
            f"data.eval_batch_size ({cfg.data.eval_batch_size}) or the size of the model, or set trainer.precision=bf16"
        ) from error


@contextlib.contextmanager
def profiled(directory: Path, logger: RunLogger) -> Iterator[None]:
    """Profiles what runs inside: trace.json (for chrome://tracing or ui.perfetto.dev) and a table, profile.txt."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        yield
    profiler.export_chrome_trace(str(directory / "trace.json"))
    table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20)
    write_file(directory / "profile.txt", table.encode())
    logger.say(f"{table}\nwritten: {here(directory / 'trace.json')} and profile.txt")
