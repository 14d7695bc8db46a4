"""The record of a run: its log, its metrics and TensorBoard's events, each epoch read again, and its status."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from datetime import datetime
from itertools import starmap
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml
from tqdm import tqdm

from lab.devices.distributed import local
from lab.runs.files import MOST_CURVE_BYTES, read_text
from utils import flatten, for_json, write_json, writing


def writes_into(stream: TextIO, path: Path) -> bool:
    """Whether what is written to a stream lands in that file, which there is."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except (OSError, ValueError):  # no file at all
        return False


def tag_of(name: str) -> str:
    """TensorBoard's tag of a number: it groups tags by their beginning, and opens the first groups by the alphabet.

    What is compared stands in one group, such as loss/train beside loss/val; how fast and by what rate come after it.
    """
    split, _, metric = name.rpartition("/")
    return f"{metric}/{split}" if split and metric not in ("lr", "gradient_norm") else f"rate/{metric}"


def shorten(key: str, value: Any) -> tuple[str, Any]:
    """A key of a configuration and its value as HPARAMS shows them: "model" and "MLP" for model._target_ and its path."""
    if key.endswith("._target_"):
        return key.removesuffix("._target_"), str(value).rpartition(".")[2]
    return key, value


class RunLogger:
    """Gives the same numbers to TensorBoard, metrics.jsonl, train.log, the console and the progress bar.

    As a part of a checkpoint it remembers how much it had written, and going on from there cuts off what came after:
    an epoch that is run again is not there twice.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.metrics_file = directory / "metrics.jsonl"
        self.validated: dict[str, str] = {}  # the latest validation metrics, for the progress bar
        self.log = logging.getLogger("run")
        logging.raiseExceptions = False  # a reader of our output that left, as in `... | head`, does not end a run
        self.log.setLevel(logging.DEBUG)
        self.log.propagate = False
        console = logging.StreamHandler(sys.stdout)
        console.setLevel(logging.INFO if sys.stderr.isatty() else logging.DEBUG)  # a terminal has the progress bar
        console.addFilter(lambda record: record.levelno < logging.WARNING)
        complaints = logging.StreamHandler(sys.stderr)
        complaints.setLevel(logging.WARNING)
        handlers: list[logging.Handler] = [console, logging.FileHandler(directory / "train.log")]
        if not writes_into(sys.stderr, directory / "train.log"):  # as that of a sweep's job does
            handlers.append(complaints)
        for handler in handlers:
            handler.setFormatter(logging.Formatter("%(message)s"))
            self.log.addHandler(handler)

    @functools.cached_property
    def writer(self) -> Any:
        """TensorBoard's writer; made when first used, so that it does not exist yet when a checkpoint is restored."""
        from lab.runs.events import EventWriter

        return EventWriter(self.directory)

    def say(self, message: str) -> None:
        """A line for the console and train.log."""
        self.log.info(message)

    def warn(self, message: str) -> None:
        """A line for standard error and train.log."""
        self.log.warning("WARNING %s", message)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers for TensorBoard."""
        for name, value in values.items():
            self.writer.add_scalar(tag_of(name), value, step)

    def epoch(self, record: Mapping[str, float], *, num_epochs: int) -> None:
        """The line of one epoch: metrics.jsonl, TensorBoard and the console."""
        with writing(self.metrics_file), self.metrics_file.open("a") as file:
            file.write(json.dumps(for_json(record)) + "\n")
        metrics = {name: value for name, value in record.items() if "/" in name}
        self.scalars(metrics | {"examples_per_second": record["examples_per_second"]}, int(record["step"]))
        self.validated = {name: f"{value:.4f}" for name, value in metrics.items() if name.startswith("val/")}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.say(f"epoch {record['epoch']:>3}/{num_epochs}  {shown}  ({record['seconds']:.1f} s)")

    def step(self, values: Mapping[str, float], step: int, bar: tqdm[Any]) -> None:
        """The line of one moment within an epoch: TensorBoard, train.log, and the console or the progress bar."""
        self.scalars(values, step)
        shown = {name.split("/")[-1]: f"{value:.4g}" for name, value in values.items() if "norm" not in name}
        bar.set_postfix(shown | self.validated, refresh=False)  # drawn when the bar is, ten times a second
        self.log.debug("step %6d  %s", step, "  ".join(f"{name} {value}" for name, value in shown.items()))

    def bar(self, total: int, title: str, *, initial: int = 0) -> tqdm[Any]:
        """A progress bar over `total` examples, with the latest validation metrics; on a terminal only."""
        hidden = not sys.stderr.isatty()
        bar = tqdm(total=total, initial=initial, desc=title, unit="ex", unit_scale=True, leave=False, disable=hidden)
        bar.set_postfix(self.validated)
        return bar

    def histograms(self, model: torch.nn.Module, step: int) -> None:
        """How the weights of each tensor of a network are distributed, for TensorBoard."""
        for name, weight in model.named_parameters():
            if weight.numel():
                self.writer.add_histogram(f"weights/{name}", local(weight.detach()).float().cpu(), step)

    def graph(self, model: torch.nn.Module, inputs: torch.Tensor) -> None:
        """The network's graph for TensorBoard, where it can be traced; the random state and the mode stay as they were."""
        was_training = model.training
        with warnings.catch_warnings(), torch.random.fork_rng(), contextlib.suppress(RuntimeError):
            warnings.simplefilter("ignore")
            # Traced here, where tracing can be told not to check itself: that imports the tensors of many machines.
            self.writer.add_graph(torch.jit.trace(model.eval(), inputs, check_trace=False), inputs)
        model.train(was_training)

    def start_session(self, values: Mapping[str, Any], *, is_new: bool) -> None:
        """Opens this run's line in TensorBoard's HPARAMS; of a new run the configuration as text, too.

        No experiment summary is written: TensorBoard then takes the columns from all runs together, where it would
        otherwise take them from whichever run it reads first. The metrics are the ordinary scalars, by their tags' order.
        """
        from torch.utils.tensorboard.summary import hparams

        _, start, self._session_end = hparams(dict(starmap(shorten, flatten(values).items())), {})
        self.writer.file_writer.add_summary(start)
        if is_new:
            text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
            self.writer.add_text("config", f"```yaml\n{text}```")

    def end_session(self) -> None:
        """Marks this run as finished in HPARAMS."""
        self.writer.file_writer.add_summary(self._session_end)

    def close(self) -> None:
        if "writer" in self.__dict__:
            self.writer.close()
        for handler in list(self.log.handlers):
            handler.close()
            self.log.removeHandler(handler)

    def state_dict(self) -> dict[str, int]:
        """The size of each file of this run's record, which is on the disk before it is counted on."""
        self.writer.flush()
        for file in self._files():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        return {file.name: file.stat().st_size for file in self._files()}

    def load_state_dict(self, sizes: Mapping[str, int]) -> None:
        there = {file.name: file for file in self._files()}
        for name, file in there.items():
            if name in sizes:
                os.truncate(file, min(sizes[name], file.stat().st_size))
            else:
                file.unlink()
        short = [name for name, size in sizes.items() if name not in there or there[name].stat().st_size < size]
        if short:
            self.warn(f"{', '.join(short)} in {self.directory} lost what was written before, which nothing brings back")

    def _files(self) -> list[Path]:
        """What this logger writes, as far as it is there; not what evaluations wrote beside it."""
        files = [self.metrics_file, *self.directory.glob("events.out.tfevents.*")]
        return [file for file in files if file.exists() and ".evaluation" not in file.name]


class NoLogger(RunLogger):
    """A logger without sinks: of a process that leaves the writing to another."""

    def __init__(self) -> None:
        """Opens nothing."""

    def say(self, message: str) -> None: ...
    def warn(self, message: str) -> None: ...
    def epoch(self, record: Mapping[str, float], *, num_epochs: int) -> None: ...
    def scalars(self, values: Mapping[str, float], step: int) -> None: ...
    def histograms(self, model: torch.nn.Module, step: int) -> None: ...
    def step(self, values: Mapping[str, float], step: int, bar: tqdm[Any]) -> None: ...
    def load_state_dict(self, sizes: Mapping[str, int]) -> None: ...

    def state_dict(self) -> dict[str, int]:
        return {}

    def bar(self, total: int, title: str, *, initial: int = 0) -> tqdm[Any]:
        return tqdm(disable=True)


def read_records(directory: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, one an epoch; a line that is not whole (yet) does not count, nor what follows it."""
    records: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):
        for line in read_text(directory / "metrics.jsonl", most=MOST_CURVE_BYTES).splitlines():
            record = json.loads(line)
            if not _is_record(record):
                break
            records.append(record)
    return records


def _is_record(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("epoch"), int):
        return False
    return all((isinstance(x, (int, float)) and abs(x) < 1e300) or x in ("nan", "inf", "-inf") for x in value.values())


def last_record(directory: Path) -> dict[str, Any]:
    """The record of the latest epoch in metrics.jsonl, or {}."""
    return (read_records(directory) or [{}])[-1]


def write_status(
    directory: Path, state: str, *, epoch: int, step: int, error: str | None = None, pid: int | None = None
) -> None:
    """Replaces status.json; pid: of the process that it is about, if that is not this one."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    record = {"state": state, "epoch": epoch, "step": step, "time": now, "pid": pid or os.getpid(), "error": error}
    write_json(directory / "status.json", record)
