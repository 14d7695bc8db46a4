"""What every script needs and no field owns: errors, seeds, whole files."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

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

    differs_by_rank = True

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


# ------------------------------------------------------------------------------------------------------ what is typed


def nearest(path: Path) -> str:
    """A path from the current directory, or in full where it lies elsewhere."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def here(path: Path) -> str:
    """A path as one types it in a shell, from the current directory."""
    return shlex.quote(nearest(path))


def hint(script: str) -> str:
    """The start of a command that runs one of the project's scripts from the current directory."""
    return f"python {here(PROJECT / script)}"
