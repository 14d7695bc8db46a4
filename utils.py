"""What every script needs and no field owns: seeds, devices, checkpoints, run records and logging."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import io
import json
import logging
import math
import os
import platform
import random
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent
# Parameters times batch size, from which a CPU gains: measured on mlp and lstm (benchmarks/results.md).
PRODUCTS_FOR_BF16 = 2**24
PRODUCTS_FOR_THREADS = 2**23
STEPS_TO_COMPILE = 2000  # compiling takes the time of about so many


class UserError(Exception):
    """A mistake of the user's, told in one line: what was given, what is allowed, what to do."""

    for_user = True
    exit_code = 2


class Diverged(UserError):
    """A loss that is not finite: the run cannot go on."""

    exit_code = 1


class OutOfMemory(UserError):
    """More memory was asked for than there is."""

    exit_code = 1


class Unmet(UserError):
    """A run that ended, but not as it should have."""

    exit_code = 1


# -------------------------------------------------------------------------------------------------- seeds and devices


def seed_everything(seed: int) -> None:
    """Seeds every random number generator that a network or a dataset may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def choose_device(name: str) -> torch.device:
    """The torch.device for "auto", "cpu", "cuda", "cuda:1" or "mps"; UserError where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = name.partition(":")
    there = ["cpu", *["cuda"] * torch.cuda.is_available(), *["mps"] * torch.backends.mps.is_available()]
    there += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if name not in there and not (kind == "cuda" and number.isdigit() and int(number) < torch.cuda.device_count()):
        raise UserError(f"trainer.device is {name!r}; there is auto, {', '.join(there)} on this machine")
    return torch.device(name)


def keep_freed_memory() -> None:
    """Keeps the memory of freed tensors in this process, for the tensors of the next step; with glibc alone.

    It gives every block above 32 MiB back to the system and asks for it anew, which comes in pages of zeros: an eighth
    of the time of a training step on a CPU whose activations are that large.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if adjust is not None:
        adjust(-3, 2**30)  # M_MMAP_THRESHOLD: the size from which a block is the system's
        adjust(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: how much may lie unused


def choose_precision(
    name: str, device: torch.device, model: torch.nn.Module, *, task: str, batch_size: int | None
) -> str:
    """ "fp32", "bf16" or "fp16"; for "auto" the fastest that is safe: bf16 where the device gains by it, else fp32.

    A rule and no measurement, so that the same run computes the same numbers the next time. A regression stays in fp32,
    for its error may become smaller than bf16 can tell. On a CPU convolutions gain, and products large enough to pay for
    the conversions (benchmarks/results.md). batch_size: of training; None: all examples in one batch.
    """
    if name != "auto":
        return name
    if task == "regression":
        return "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has_native_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    if device.type != "cpu" or not has_native_bf16():
        return "fp32"
    return "bf16" if num_products(model, batch_size) >= PRODUCTS_FOR_BF16 else "fp32"


def choose_threads(device: torch.device, model: torch.nn.Module, *, batch_size: int | None) -> int:
    """How many threads a training step is to use: one where sharing the work would take longer than the work."""
    is_small = device.type == "cpu" and num_products(model, batch_size) < PRODUCTS_FOR_THREADS
    return 1 if is_small else torch.get_num_threads()


def num_products(model: torch.nn.Module, batch_size: int | None) -> float:
    """The multiplications of a forward pass, where each weight is used once for each example; else infinity."""
    if any(isinstance(module, torch.nn.modules.conv._ConvNd) for module in model.modules()):
        return math.inf
    return sum(parameter.numel() for parameter in model.parameters()) * (batch_size or math.inf)


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Inside, operations on the CPU share so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_compile(name: str | bool, device: torch.device, *, num_steps: int) -> bool:
    """Whether to compile the network; for "auto": on a GPU that Triton serves, in a run long enough to gain by it."""
    if name != "auto":
        return bool(name)
    has_triton = importlib.util.find_spec("triton") is not None
    return device.type == "cuda" and has_triton and num_steps >= STEPS_TO_COMPILE


def spare_the_compiler(kind: Any) -> None:
    """Lets a class of optimisers do without PyTorch's compiler, whose import takes nearly as long as PyTorch's own.

    Those of PyTorch import it when they are made and at their steps, only to tell it where it is to stay out. Where
    nothing is compiled there is nothing to tell. What is not as in PyTorch 2.15 stays as it is.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        if undecorated := getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None):
            vars(undecorated).setdefault("__dynamo_disable", undecorated)  # where PyTorch itself notes that it has told
    step = getattr(kind, "step", None)
    if step is None or getattr(getattr(step, "__code__", None), "co_name", "") != "_use_grad":  # PyTorch's decorator
        return
    plain = step.__wrapped__

    @functools.wraps(plain)
    def plain_step(self: torch.optim.Optimizer, *arguments: Any, **keys: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return plain(self, *arguments, **keys)

    kind.step = plain_step


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context in which a network computes in "fp32" (that is: as it is), "bf16" or "fp16"; may be entered again."""
    if precision == "fp32":
        return contextlib.nullcontext()  # an autocast that is off does the same, in the time of some operations
    return torch.autocast(device.type, torch.float16 if precision == "fp16" else torch.bfloat16)


def full_precision(values: torch.Tensor) -> torch.Tensor:
    """Half-precision outputs as float32, in which losses are computed; others as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


class RandomState:
    """The state of the global random number generators, as a part of a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        numpy_state = np.random.get_state(legacy=False)
        numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype("int64"))
        return {
            "python": random.getstate(),
            "numpy": numpy_state,
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        numpy_state = state["numpy"] | {"state": dict(state["numpy"]["state"])}
        numpy_state["state"]["key"] = numpy_state["state"]["key"].numpy().astype("uint32")
        np.random.set_state(numpy_state)
        torch.set_rng_state(state["torch"])
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])


# -------------------------------------------------------------------------------------------------------------- files


class Unwritable(UserError):
    """A file that cannot be written: what was written before it stands."""

    exit_code = 1


def unwritable(path: Path, error: OSError) -> Unwritable:
    """The error for the user: the cause, and the space that is left where the file should go."""
    reason = error.strerror or str(error)
    if not path.parent.is_dir():
        return Unwritable(f"{path} cannot be written: the folder {path.parent} is gone ({reason})")
    free = shutil.disk_usage(path.parent).free
    return Unwritable(
        f"{path} cannot be written ({reason}; {free / 2**20:,.0f} MiB are free there); "
        f"what was written before it stands, and the run can go on from there"
    )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises Unwritable for what goes wrong while a file is written."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def write_file(path: Path, content: bytes, *, keep: Path | None = None) -> None:
    """Replaces a file whole or not at all: written beside it, synced, renamed, the folder synced.

    keep: where the file's content from before stays. Raises Unwritable.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with writing(path):
            temporary.unlink(missing_ok=True)  # it may be a link, through which a file elsewhere would be written
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                _link(path, keep)
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Sees to it that the names in a folder are on the disk, where its file system can do that."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _link(path: Path, other: Path) -> None:
    """Makes `other` a second name of a file (a copy where links cannot be made), replacing it whole or not at all."""
    temporary = other.with_name(f".{other.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, temporary)
    temporary.replace(other)
    temporary.unlink(missing_ok=True)  # where both were names of one file already, renaming has done nothing


def remove_leftovers(directory: Path) -> None:
    """Removes what a process that was killed while it wrote a file has left."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes plain data, whole or not at all; what is not finite becomes text ("nan"): JSON has no such number."""
    write_file(path, (json.dumps(_finite(value), indent=2) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def read_json(path: Path, **fields: type) -> Any:
    """The content of a JSON file; UserError where it is missing or damaged, or has not these fields of these types."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error})") from error
    for name, kind in fields.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), kind):
            raise UserError(f"{path} is damaged (it holds no {name}, or not as it was written)")
    return content


class Stateful(Protocol):
    """What a checkpoint is made of."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


MARK = b"sha256:"
FORMAT = 1  # of checkpoints; one more when an older version of the project could not go on from a newer one's


class Damaged(UserError):
    """A file that is not what was written."""


def save_tensors(path: Path, state: dict[str, Any], *, keep: Path | None = None) -> None:
    """Writes tensors and plain types as torch.save does, with the file's SHA-256 as the comment of the zip archive.

    Any reader of PyTorch files reads it; `load_tensors` also sees a changed bit, which torch.load does not. keep: where
    the file from before stays. Raises Unwritable.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    assert content.endswith(b"\0\0"), "a zip archive without a comment ends with the comment's length, 0"
    content = content[:-2] + (len(MARK) + 64).to_bytes(2, "little")
    write_file(path, content + MARK + hashlib.sha256(content).hexdigest().encode(), keep=keep)


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `save_tensors` wrote; Damaged where one bit has changed, UserError where the file is missing or holds else."""
    content = read_whole(path)
    try:
        if not content.startswith(b"PK"):
            raise ValueError("not the zip archive that torch.save writes")  # PyTorch has readers of older formats, too
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except Exception as error:  # a whole file, but not one that `save_tensors` wrote
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} holds more than tensors and plain types, and is not read: {reason}") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, and no checkpoint of this project")
    if not isinstance(state.get("format", FORMAT), int) or state.get("format", FORMAT) > FORMAT:
        raise UserError(
            f"{path} has the format {state['format']}, of a newer version of this project; this one reads up to {FORMAT}"
        )
    return state


def read_whole(path: Path) -> bytes:
    """The bytes that `save_tensors` wrote; Damaged where one bit of them has changed, UserError where there are none."""
    if path.exists() and not path.is_file():  # a device may have no end
        raise UserError(f"{path} cannot be read (it is no file)")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    body, mark, digest = content[: -64 - len(MARK)], content[-64 - len(MARK) : -64], content[-64:]
    if mark != MARK or hashlib.sha256(body).hexdigest().encode() != digest:
        raise Damaged(f"{path} is damaged or no checkpoint of this project: its SHA-256 does not match its content")
    return content


class Checkpoint:
    """Saves and restores named parts of a run, each with a state_dict, as one file.

    notes: plain data saved beside the parts, for those who load the file without them; a file with others is not restored.
    """

    def __init__(self, parts: Mapping[str, Stateful], **notes: Any) -> None:
        self.parts, self.notes = parts, notes

    def save(self, path: Path, *, keep: Path | None = None) -> None:
        """Writes the parts as they are; keep: where the checkpoint from before stays."""
        state = {"format": FORMAT} | self.notes | {name: part.state_dict() for name, part in self.parts.items()}
        save_tensors(path, state, keep=keep)

    def restore(self, path: Path, device: torch.device | str = "cpu") -> None:
        """Loads every part; Damaged where a bit has changed, UserError where the file is made from other parts."""
        state = load_tensors(path, device)
        for name, note in self.notes.items():
            if state.get(name, note) != note:
                raise UserError(f"{path} does not belong to this run: it was saved with another {name}")
        for name, part in self.parts.items():
            if name not in state:
                raise UserError(f"{path} holds no {name}: it was made by another version of this project")
            load_part(name, part, state[name], path)


def load_part(name: str, part: Stateful, state: dict[str, Any], path: Path) -> None:
    """part.load_state_dict(state), with a UserError that names the part and the file where they do not fit."""
    try:
        part.load_state_dict(state)
    except (
        UserError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        OSError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(
            f"{path} does not fit this configuration: {name}: {' '.join(str(error).split())[:300]}"
        ) from error


# --------------------------------------------------------------------------------------------------------- run records


def refuse_links(directory: Path) -> None:
    """UserError where a run directory that is to be written holds a link: what is written would land where that points."""
    for folder, subfolders, files in os.walk(directory):
        for path in (Path(folder, name) for name in (*subfolders, *files)):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise UserError(
                    f"{path} is no file but a link or a device, and what is written into {directory} could land elsewhere; "
                    f"put a copy of the file in its place, or remove it"
                )


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Makes a run directory and holds it; UserError where another process does. The lock of a dead one does not count."""
    directory.mkdir(parents=True, exist_ok=True)
    refuse_links(directory)
    lock = FileLock(directory / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        holder = (directory / ".lock.owner").read_text() if (directory / ".lock.owner").exists() else "another process"
        raise UserError(f"{directory} is being written by {holder}; wait for it, or stop it first") from None
    try:
        (directory / ".lock.owner").write_text(f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        with contextlib.suppress(OSError):  # a folder that can no longer be written is told of elsewhere
            (directory / ".lock.owner").unlink(missing_ok=True)
        lock.release()


def write_status(
    directory: Path, state: str, *, epoch: int, step: int, error: str | None = None, pid: int | None = None
) -> None:
    """Replaces status.json; pid: of the process that it is about, if that is not this one."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    record = {"state": state, "epoch": epoch, "step": step, "time": now, "pid": pid or os.getpid(), "error": error}
    write_json(directory / "status.json", record)


@contextlib.contextmanager
def recorded_status(directory: Path, progress: Any) -> Iterator[None]:
    """Keeps status.json true while a run runs: running, then finished, interrupted, diverged or failed.

    progress: has the `epoch` and the `step` that the run has come to.
    """

    def write(state: str, error: str | None = None) -> None:
        with contextlib.suppress(Unwritable):  # what it would say of is on its way to the user
            write_status(directory, state, epoch=progress.epoch, step=progress.step, error=error)

    try:
        write_status(directory, "running", epoch=progress.epoch, step=progress.step)
        yield
    except (KeyboardInterrupt, SystemExit):
        write("interrupted")
        raise
    except Diverged as error:
        write("diverged", str(error))
        raise
    except BaseException as error:
        write("failed", f"{type(error).__name__}: {error}")
        raise
    write("finished")


def read_records(directory: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, one an epoch; a line that is not whole (yet) does not count, nor what follows it."""
    records: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):
        for line in (directory / "metrics.jsonl").read_text().splitlines():
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


class EventFile:
    """A new file of TensorBoard's events, each of which is on its way to the disk when `add_event` returns.

    TensorBoard's own writes from another thread: what cannot be written ends there, in a traceback. Its name sorts after
    those of the files that are there, for TensorBoard reads them in that order. Raises Unwritable.
    """

    def __init__(self, directory: Path, suffix: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        seconds = [path.name.split(".")[3] for path in directory.glob("events.out.tfevents.*")]
        second = max([int(time.time()), *(int(text) + 1 for text in seconds if text.isdigit())])
        self.path = directory / f"events.out.tfevents.{second:010}.{platform.node()}.{os.getpid()}{suffix}"
        with writing(self.path):
            directory.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("ab")
        self.records = RecordWriter(self.file)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add_event(self, event: Any) -> None:
        with writing(self.path):
            self.records.write(event.SerializeToString())
            self.file.flush()

    def get_logdir(self) -> str:
        return str(self.path.parent)

    def flush(self) -> None:
        """Nothing waits to be written."""

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of what could not be written, as was told
            self.file.close()


def open_events(directory: Path, *, suffix: str = "") -> Any:
    """A SummaryWriter of a new file of events in a directory; suffix: of the file's name."""
    from torch.utils.tensorboard import FileWriter, SummaryWriter

    class Writer(SummaryWriter):
        def _get_file_writer(self) -> Any:
            if self.file_writer is None:
                opened: Any = FileWriter.__new__(FileWriter)  # its own __init__ starts TensorBoard's thread
                opened.event_writer = EventFile(directory, suffix)
                self.file_writer, self.all_writers = opened, {str(directory): opened}  # type: ignore[assignment]
            return self.file_writer

    return Writer(str(directory))


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
        for handler in (console, complaints, logging.FileHandler(directory / "train.log")):
            handler.setFormatter(logging.Formatter("%(message)s"))
            self.log.addHandler(handler)

    @functools.cached_property
    def writer(self) -> Any:
        """TensorBoard's writer; made when first used, so that it does not exist yet when a checkpoint is restored."""
        return open_events(self.directory)

    def say(self, message: str) -> None:
        """A line for the console and train.log."""
        self.log.info(message)

    def warn(self, message: str) -> None:
        """A line for standard error and train.log."""
        self.log.warning("WARNING %s", message)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers for TensorBoard."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def epoch(self, record: Mapping[str, float], *, num_epochs: int) -> None:
        """The line of one epoch: metrics.jsonl, TensorBoard and the console."""
        with writing(self.metrics_file), self.metrics_file.open("a") as file:
            file.write(json.dumps(_finite(record)) + "\n")
        metrics = {name: value for name, value in record.items() if "/" in name}
        rates = {name: record[name] for name in ("lr", "examples_per_second")}
        self.scalars(metrics | rates, int(record["step"]))
        self.validated = {name: f"{value:.4f}" for name, value in metrics.items() if name.startswith("val/")}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.say(f"epoch {record['epoch']:>3}/{num_epochs}  {shown}  ({record['seconds']:.1f} s)")

    def step(self, values: Mapping[str, float], step: int, bar: tqdm[Any]) -> None:
        """The line of one moment within an epoch: TensorBoard, train.log, and the console or the progress bar."""
        self.scalars(values, step)
        shown = {name.split("/")[-1]: f"{value:.4g}" for name, value in values.items()}
        bar.set_postfix(shown | self.validated, refresh=False)  # drawn when the bar is, ten times a second
        self.log.debug("step %6d  %s", step, "  ".join(f"{name} {value}" for name, value in shown.items()))

    def bar(self, total: int, title: str, *, initial: int = 0) -> tqdm[Any]:
        """A progress bar over `total` examples, with the latest validation metrics; on a terminal only."""
        hidden = not sys.stderr.isatty()
        bar = tqdm(total=total, initial=initial, desc=title, unit="ex", unit_scale=True, leave=False, disable=hidden)
        bar.set_postfix(self.validated)
        return bar

    def graph(self, model: torch.nn.Module, inputs: torch.Tensor) -> None:
        """The network's graph for TensorBoard, where it can be traced; the random state and the mode stay as they were."""
        was_training = model.training
        with warnings.catch_warnings(), torch.random.fork_rng(), contextlib.suppress(RuntimeError):
            warnings.simplefilter("ignore")
            # Traced here, where tracing can be told not to check itself: that imports the tensors of many machines.
            self.writer.add_graph(torch.jit.trace(model.eval(), inputs, check_trace=False), inputs)
        model.train(was_training)

    def start_session(self, values: Mapping[str, Any]) -> None:
        """Opens this run's line in TensorBoard's HPARAMS.

        No experiment summary is written: TensorBoard then takes the columns from all runs together, where it would
        otherwise take them from whichever run it reads first. The metrics are the ordinary scalars.
        """
        from torch.utils.tensorboard.summary import hparams

        _, start, self._session_end = hparams(flatten(values), {})
        self.writer.file_writer.add_summary(start)

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
        for file in self._files():
            if file.name in sizes:
                os.truncate(file, min(sizes[file.name], file.stat().st_size))
            else:
                file.unlink()

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
    def step(self, values: Mapping[str, float], step: int, bar: tqdm[Any]) -> None: ...
    def load_state_dict(self, sizes: Mapping[str, int]) -> None: ...

    def bar(self, total: int, title: str, *, initial: int = 0) -> tqdm[Any]:
        return tqdm(disable=True)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain data as {dotted key: number, text or boolean}; what is neither becomes text."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
    return flat
