"""What every script needs and no field owns: errors, seeds, files, checkpoints and locks."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import platform
import random
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout

PROJECT = Path(__file__).resolve().parent


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


def nothing(*_: Any) -> None:
    """The neutral element where something may be done: does nothing."""


# ---------------------------------------------------------------------------------------------------------------- seeds


def seed_everything(seed: int) -> None:
    """Seeds every random number generator that a network or a dataset may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


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
    write_file(path, (json.dumps(for_json(value), indent=2) + "\n").encode())


def for_json(value: Any) -> Any:
    """Plain data as JSON takes it: a number that is not finite becomes text, such as "nan"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(item) for item in value]
    return value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain data as {dotted key: number, text or boolean}; what is neither becomes text."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
    return flat


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


# ---------------------------------------------------------------------------------------------------------- checkpoints


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

    notes: plain data saved beside the parts, for those who load the file without them. A file whose notes differ is not
    restored; a key that only one of the two has (of an option that is newer than the file) makes no difference.
    """

    def __init__(self, parts: Mapping[str, Stateful], **notes: Mapping[str, Any]) -> None:
        self.parts, self.notes = parts, notes

    def save(self, path: Path, *, keep: Path | None = None) -> None:
        """Writes the parts as they are; keep: where the checkpoint from before stays."""
        state = {"format": FORMAT} | self.notes | {name: part.state_dict() for name, part in self.parts.items()}
        save_tensors(path, state, keep=keep)

    def restore(self, path: Path, device: torch.device | str = "cpu") -> None:
        """Loads every part; Damaged where a bit has changed, UserError where the file is made from other parts."""
        state = load_tensors(path, device)
        for name, note in self.notes.items():
            saved = state.get(name, note)
            if not isinstance(saved, dict) or (
                other := [k for k in note if k in saved and repr(saved[k]) != repr(note[k])]
            ):
                keys = f" ({', '.join(other)})" if isinstance(saved, dict) else ""
                raise UserError(f"{path} does not belong to this run: it was saved with another {name}{keys}")
        for name, part in self.parts.items():
            if name not in state:
                raise UserError(f"{path} holds no {name}: it was made by another version of this project")
            load_part(name, part, state[name], path)


def load_part(name: str, part: Stateful, state: dict[str, Any], path: Path) -> None:
    """part.load_state_dict(state), with a UserError that names the part and the file where they do not fit."""
    try:
        part.load_state_dict(state)
    except Damaged:
        raise
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


# ---------------------------------------------------------------------------------------------------------------- locks


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
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unwritable(f"{directory} cannot be made ({error.strerror}); choose another experiments_dir") from error
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
