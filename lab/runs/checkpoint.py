"""Checkpoints: named parts of a run as one file of tensors and plain types, which a SHA-256 guards."""

from __future__ import annotations

import copy
import hashlib
import io
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lab.devices.distributed import ALONE, World, is_sharded, share_out
from utils import UserError, write_file


class Stateful(Protocol):
    """What a checkpoint is made of. `differs_by_rank`: each of several processes has its own."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


MARK = b"sha256:"
FORMAT = 2  # one more when an older version of the project could not go on from a newer one's


class Damaged(UserError):
    """A file that is not what was written, or not there."""


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
    """What `save_tensors` wrote; Damaged where it is not what was written, UserError where it holds something else."""
    content = read_whole(path)
    try:
        if not content.startswith(b"PK"):
            raise ValueError("not the zip archive that torch.save writes")  # PyTorch has readers of older formats, too
        check_unpacked(content)
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


def check_unpacked(content: bytes) -> None:
    """ValueError for a zip archive that would take more memory than it has bytes: torch.save packs nothing."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        num_bytes = sum(entry.file_size for entry in archive.infolist())
    if num_bytes > len(content):
        raise ValueError(f"its {len(content):,} bytes would unpack to {num_bytes:,}")


def read_whole(path: Path) -> bytes:
    """The bytes that `save_tensors` wrote; Damaged where one bit of them has changed, or where there are none."""
    if path.exists() and not path.is_file():  # a device may have no end
        raise Damaged(f"{path} cannot be read (it is no file)")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror})") from error
    body, mark, digest = content[: -64 - len(MARK)], content[-64 - len(MARK) : -64], content[-64:]
    if mark != MARK or hashlib.sha256(body).hexdigest().encode() != digest:
        raise Damaged(f"{path} is damaged or no checkpoint of this project: its SHA-256 does not match its content")
    return content


class Checkpoint:
    """Saves and restores named parts of a run, each with a state_dict, as one file, whether one process trains or many.

    The main process writes what they have together; of a part that `differs_by_rank` the state of each. notes: plain data
    saved beside the parts, for those who load the file without them. A file whose notes differ is not restored; a key that
    only one of the two has (of an option that is newer than the file) makes no difference.
    """

    def __init__(self, parts: Mapping[str, Stateful], world: World = ALONE, **notes: Mapping[str, Any]) -> None:
        self.common = {name: part for name, part in parts.items() if not getattr(part, "differs_by_rank", False)}
        self.own = {name: part for name, part in parts.items() if name not in self.common}
        self.world, self.notes = world, notes

    def save(self, path: Path, *, keep: Path | None = None) -> None:
        """Writes the parts as they are; all processes must call it. keep: where the checkpoint from before stays."""
        common = {name: put_together(part.state_dict(), self.world) for name, part in self.common.items()}
        ranks = self.world.gather({name: part.state_dict() for name, part in self.own.items()}) if self.own else []
        if self.world.is_main:
            save_tensors(path, {"format": FORMAT, **self.notes, **common, "ranks": ranks}, keep=keep)

    def restore(self, state: dict[str, Any], path: Path) -> int:
        """Gives each part its state of a loaded file; how many processes saved it. UserError where it has other parts.

        Where another number of processes goes on, the parts that differ by rank stay as they are.
        """
        for name, note in self.notes.items():
            check_note(name, state.get(name, note), note, path)
        for name, part in self.common.items():
            if name not in state:
                raise UserError(f"{path} holds no {name}: it was made by another version of this project")
            load_part(name, part, state[name], path)
        ranks = state.get("ranks")
        if not isinstance(ranks, list) or not all(isinstance(own, dict) for own in ranks):
            raise UserError(f"{path} holds no states of its processes: it was made by another version of this project")
        if len(ranks) == self.world.size:
            for name, part in self.own.items():
                load_part(name, part, ranks[self.world.rank].get(name), path)
        return len(ranks)


def check_note(name: str, saved: Any, note: Mapping[str, Any], path: Path) -> None:
    """UserError where a file's note says another thing than it would say now."""
    if isinstance(saved, dict) and not (other := [k for k in note if k in saved and repr(saved[k]) != repr(note[k])]):
        return
    keys = f" ({', '.join(other)})" if isinstance(saved, dict) else ""
    raise UserError(f"{path} does not belong to this run: it was saved with another {name}{keys}")


def load_part(name: str, part: Stateful, state: Any, path: Path) -> None:
    """part.load_state_dict(state), with a UserError that names the part and the file where they do not fit."""
    try:
        owners = owners_of(part)
        if isinstance(part, torch.optim.Optimizer):
            check_state(state, part, owners)
        part.load_state_dict(with_each(state, lambda keys, value: share_out(value, like=owner_of(keys, owners))))
    except Damaged:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        OSError,
        TypeError,
        ValueError,
        UserError,
    ) as error:
        raise UserError(
            f"{path} does not fit this configuration: {name}: {' '.join(str(error).split())[:300]}"
        ) from error


# ------------------------------------------------------------------------------------------------- states as trees of dicts


def with_each(state: Any, change: Callable[[tuple[Any, ...], Any], Any], keys: tuple[Any, ...] = ()) -> Any:
    """A copy of nested dicts, with change(keys, value) in place of each value that is no dict."""
    if not isinstance(state, dict):
        return change(keys, state)
    copied = state.copy()  # which keeps its class and attributes, such as the metadata of a network's state
    for key, value in state.items():
        copied[key] = with_each(value, change, (*keys, key))
    return copied


def put_together(state: Any, world: World) -> Any:
    """A state with whole tensors where processes hold parts of them; in the main process's memory, tensor by tensor."""

    def gather(_: tuple[Any, ...], value: Any) -> Any:
        if not is_sharded(value):
            return value
        whole = value.full_tensor()
        return whole.cpu() if world.is_main else None

    return with_each(state, gather)


def owners_of(part: Any) -> Mapping[Any, Tensor]:
    """The weights by the keys (names; numbers in an optimiser) under which a part's state has them, or what is theirs."""
    if isinstance(part, torch.optim.Optimizer):
        return dict(enumerate(weight for group in part.param_groups for weight in group["params"]))
    return part.state_dict() if isinstance(part, nn.Module) else {}


def owner_of(keys: tuple[Any, ...], owners: Mapping[Any, Tensor]) -> Tensor | None:
    """The weight that a value of a state is, or belongs to, if to any."""
    return next((owners[key] for key in keys if key in owners), None)


def check_state(state: Any, optimizer: torch.optim.Optimizer, weights: Mapping[int, Tensor]) -> None:
    """ValueError where an optimiser's state is not what it would hold for its weights: fused kernels use it unchecked."""
    if not isinstance(state, dict) or not isinstance(state.get("state"), dict):
        raise ValueError("it holds no state")
    for number, values in state["state"].items():
        if number not in weights or not isinstance(values, dict):
            raise ValueError(f"it holds a state of weight {number}, of which there are {len(weights)}")
        due = state_after_a_step(optimizer, weights[number])
        if values.keys() != due.keys():
            raise ValueError(f"weight {number} has {', '.join(map(str, values))}, where {', '.join(due)} are due")
        for key, value in values.items():
            given, wanted = (describe(one) for one in (value, due[key]))
            if given != wanted:
                raise ValueError(f"{key} of weight {number} is {given}, not {wanted}")


def state_after_a_step(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Any]:
    """What an optimiser holds for a weight of that shape once it has made a step, found out on one of zeros."""
    (group,) = [one for one in optimizer.param_groups if any(weight is own for own in one["params"])]
    zeros = nn.Parameter(torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device))
    zeros.grad = torch.zeros_like(zeros)
    probe = copy.copy(optimizer)
    probe.state, probe.param_groups = defaultdict(dict), [group | {"params": [zeros]}]
    probe.step()
    return probe.state[zeros]


def describe(value: Any) -> str:
    """What kind of value a state holds, in words."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{value.layout}, {'real' if value.is_floating_point() else value.dtype}, of shape {list(value.shape)}"
