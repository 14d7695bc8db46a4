"""The part of a run's checkpoint that no process holds alone: each writes its own pieces of it, beside it.

last.pt                what fits, and where the pieces of each weight lie
shards/<n>/model-0.pt  the pieces of the first process, in a folder for each checkpoint
"""

from __future__ import annotations

import copy
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.devices.distributed import World
from utils import Damaged, Stateful, UserError, load_tensors, read_whole

FOLDER = "shards"
PIECES = ".pieces"  # a dict with this key, which is no parameter's name, stands for a tensor that lies in pieces
PIECE = re.compile(rf"{FOLDER}/(\d{{1,9}})/[a-z]{{1,20}}-\d{{1,4}}\.pt")


def is_sharded(value: Any) -> bool:
    """Whether this process holds a part of a tensor, a DTensor (not asked by its type, which takes long to import)."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")


def local(tensor: Any) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def part_of(whole: Tensor, like: Any) -> Tensor:
    """A whole tensor, shared out as another is; every process has all of it."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


class Shards:
    """A part of a checkpoint, of whose sharded tensors each process writes its pieces; one that has none is as it is.

    owners: gives the weights by the keys (names or numbers) under which the part's state has them, or what belongs to them.
    """

    def __init__(self, name: str, part: Stateful, owners: Callable[[], Mapping[Any, Tensor]], directory: Path) -> None:
        self.name, self.part, self.owners, self.directory = name, part, owners, directory
        self.collected: dict[str, Any] = {}

    def collect(self, number: int) -> None:
        """Writes the pieces into the folder of that number; all processes must call it, and all raise what one does."""
        state, sharded = self.part.state_dict(), {}
        owners = self.owners()

        def take(path: tuple[Any, ...], value: Any) -> Any:
            if not is_sharded(value):
                return value
            if value.shape != owner_of(path, owners).shape:
                raise UserError(
                    f"trainer.parallel=fsdp cannot save the {self.name}'s {dotted(path)}; set trainer.parallel=ddp"
                )
            sharded[dotted(path)] = value
            return {PIECES: dotted(path)}

        state = changed(state, take)
        if sharded:
            from lab.runs.pieces import write

            places = write(sharded, self.directory, f"{FOLDER}/{number}/{self.name}")
            state = changed(state, lambda _, value: {PIECES: places.get(value[PIECES])} if stands_in(value) else value)
        self.collected = state

    def state_dict(self) -> dict[str, Any]:
        return self.collected

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Gives each process its share, however many processes have written theirs; needs no other process."""
        owners, places, tensors = self.owners(), {}, {}

        def prepare(path: tuple[Any, ...], value: Any) -> Any:
            owner = owner_of(path, owners)
            if stands_in(value):
                places[dotted(path)] = check_places(value[PIECES], owner.shape)
                value = tensors[dotted(path)] = torch.empty_like(owner, dtype=value[PIECES]["dtype"])
            elif isinstance(value, Tensor) and is_sharded(owner) and value.shape == owner.shape:
                value = part_of(value, owner)
            return value

        state = changed(state, prepare)
        if tensors:
            from lab.runs.pieces import read

            read(tensors, self.directory, places)
        self.part.load_state_dict(state)


def weights_of(optimizer: torch.optim.Optimizer) -> dict[int, Tensor]:
    """The weights by the numbers under which an optimiser's state has what it remembers of them."""
    return dict(enumerate(weight for group in optimizer.param_groups for weight in group["params"]))


class Whole:
    """A network as a part of a checkpoint, put together in the memory of the main process."""

    def __init__(self, model: torch.nn.Module, world: World) -> None:
        self.model, self.world = model, world
        self.collected: dict[str, Any] = {}

    def collect(self) -> None:
        """Puts it together, weight by weight; all processes must call it."""

        def gather(_: tuple[Any, ...], value: Any) -> Any:
            if not is_sharded(value):
                return value
            whole = value.full_tensor()
            return whole.cpu() if self.world.is_main else None

        self.collected = changed(self.model.state_dict(), gather)

    def state_dict(self) -> dict[str, Any]:
        """What was collected, which then is let go of."""
        state, self.collected = self.collected, {}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state)


# ------------------------------------------------------------------------------------------------- states as trees of dicts


def changed(state: Any, change: Callable[[tuple[Any, ...], Any], Any], path: tuple[Any, ...] = ()) -> Any:
    """A copy of nested dicts, with change(path, value) in place of each value that is no such dict."""
    if not isinstance(state, dict) or stands_in(state):
        return change(path, state)
    copied = copy.copy(state)  # with what PyTorch attaches to a network's
    for key, value in state.items():
        copied[key] = changed(value, change, (*path, key))
    return copied


def stands_in(value: Any) -> bool:
    """Whether a value of a state stands for a tensor that lies in pieces."""
    return isinstance(value, dict) and PIECES in value


def dotted(path: Sequence[Any]) -> str:
    return ".".join(map(str, path))


def owner_of(path: Sequence[Any], owners: Mapping[Any, Tensor]) -> Tensor:
    """The weight that a value of a state is, or belongs to; a number where it belongs to none."""
    return next((owners[key] for key in path if key in owners), torch.tensor(0))


def files_of(state: Mapping[str, Any]) -> list[str]:
    """The files that a checkpoint is made of beside itself."""
    found: set[str] = set()

    def note(_: tuple[Any, ...], value: Any) -> None:
        if stands_in(value):
            found.update(file for _, _, file in check_places(value[PIECES])["pieces"])

    changed(dict(state), note)
    return sorted(found)


def check_places(places: Any, shape: Sequence[int] | None = None) -> dict[str, Any]:
    """What stands for a tensor: {"shape", "dtype", "pieces": [(offsets, sizes, file)]}; ValueError if not as written."""
    try:
        whole, pieces = [int(size) for size in places["shape"]], places["pieces"]
        if shape is not None and whole != list(shape):
            raise ValueError(f"its shape is {whole}, not {list(shape)}")
        for offsets, sizes, file in pieces:
            ends = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
            if not PIECE.fullmatch(file) or min([*offsets, *sizes]) < 0 or any(map(int.__gt__, ends, whole)):
                raise ValueError("a piece is not where it can be")
        if sum(math.prod(sizes) for _, sizes, _ in pieces) != math.prod(whole) or not places["dtype"].is_floating_point:
            raise ValueError("its pieces are not all of it")
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a sharded tensor is not as it was written ({error})") from error
    return dict(places)


# --------------------------------------------------------------------------------------------------------------- folders


def next_number(directory: Path) -> int:
    """Of the next folder of pieces."""
    return max(numbers(directory), default=0) + 1


def numbers(directory: Path) -> list[int]:
    return [int(path.name) for path in (directory / FOLDER).glob("*") if path.name.isdigit()]


def remove_others(directory: Path, keep: set[int]) -> None:
    """Removes the pieces of checkpoints that are no longer there, or never came to be."""
    for number in set(numbers(directory)) - keep:
        shutil.rmtree(directory / FOLDER / str(number), ignore_errors=True)


def read_number(path: Path) -> int:
    """Of the folder where the pieces of a checkpoint lie; 0 where it has none."""
    files = files_of(load_tensors(path))
    return int(PIECE.fullmatch(files[0])[1]) if files else 0  # type: ignore[index]


def find_damage(path: Path, world: World) -> UserError | None:
    """What is wrong with a checkpoint or one of its pieces, which the processes read in turn; all must call it."""
    files: list[str] = []
    error: UserError | None = None
    if world.is_main:
        try:
            read_whole(path)
            files = files_of(load_tensors(path)) if (path.parent / FOLDER).exists() else []
        except UserError as found:
            error = found
        except ValueError as found:
            error = Damaged(f"{path} is damaged: {found}")
    files, error = world.share((files, error))
    for file in files[world.rank :: world.size]:
        try:
            read_whole(path.parent / file)
        except UserError as found:
            error = error or found
    return next((found for found in world.gather(error) if found), None)
