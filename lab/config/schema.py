"""What a configuration may hold: types and ranges, checked before anything is built or written.

Every key has a type here or, below a `_target_`, in the signature of what it names (targets.py); a key that has none is a
mistake.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from utils import UserError


class UnknownKey(UserError):
    """A key that no part of the configuration has; its message is the dotted key alone."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `open_low`, `open_high`: the end itself is out; infinities only with `infinite`."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    infinite: bool = False

    def __contains__(self, value: float) -> bool:
        if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and not self.infinite)):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:.10g}" if self.low > -math.inf else ""
        high = f"{'below' if self.open_high else 'at most'} {self.high:.10g}" if self.high < math.inf else ""
        return " and ".join(part for part in (low, high) if part) or "finite"


class DirectoryName:
    """Names that are safe as a folder's: letters, digits, '.', '_' and '-', not '.' first, at most 120 of them."""

    def __contains__(self, value: str) -> bool:
        return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}", value) is not None

    def __str__(self) -> str:
        return "of letters, digits, '.', '_' and '-' (no '.' first, at most 120)"


class NotEmpty:
    """Text that says something, as an environment variable that is set to nothing does not."""

    def __contains__(self, value: str) -> bool:
        return bool(value.strip())

    def __str__(self) -> str:
        return "that is not empty"


Seed = Annotated[int, Range(0, 2**32 - 1)]
Count = Annotated[int, Range(1)]
Positive = Annotated[float, Range(0, open_low=True)]
Fraction = Annotated[float, Range(0, 1, open_low=True, open_high=True)]
FolderName = Annotated[str, NotEmpty()]


@dataclass
class DataOptions:
    """`data.*`, apart from the keys of the dataset itself."""

    root: FolderName
    batch_size: Count | None
    eval_batch_size: Count
    num_workers: Annotated[int, Range(0, 1024)]  # processes: many more would end the machine, not the run
    val_fraction: Fraction
    split_seed: Seed
    drop_last: bool
    crop_padding: Annotated[int, Range(0)]
    flip: bool | Literal["alternate"]
    passes: Count
    mean: list[float] | None
    std: list[Positive] | None
    limit: Count | None
    max_batches: Count | None


@dataclass
class ModelOptions:
    """`model.*`, apart from the keys of the network itself."""

    init: str


@dataclass
class SchedulerOptions:
    """`scheduler.*`, apart from the keys of the schedule itself."""

    interval: Literal["step", "epoch"]


@dataclass
class TrainerOptions:
    """`trainer.*`."""

    epochs: Count
    device: str
    devices: Count
    parallel: Literal["ddp", "fsdp"]
    sync_batchnorm: bool
    accumulate: Count
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    compile: bool | Literal["auto"]
    loss: str
    monitor: str | None
    patience: Count | None
    max_grad_norm: Annotated[float, Range(0, open_low=True, infinite=True)]
    log_every: Count
    checkpoint_every: Count | None
    images: bool
    animate: bool
    profile: bool
    fail_above: Annotated[float, Range(infinite=True)]


@dataclass
class TrainConfig:
    """The whole configuration of a run."""

    name: Annotated[str, DirectoryName()]
    seed: Seed
    resume: str | None
    experiments_dir: FolderName
    data: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    trainer: TrainerOptions


@dataclass
class TrainRequest(TrainConfig):
    """What `train.py` is asked for: a run's configuration, and what to do about it, which no run records."""

    rerun: bool
    dry_run: bool


@dataclass
class SearchOptions:
    """`search.*`."""

    space: dict[str, Any]
    sampler: Literal["tpe", "random", "grid", "gp", "cmaes"]
    pruner: Literal["none", "median", "hyperband"]
    n_trials: Count
    confirm: str | int | None  # such as 3x5; of a number alone is said what it takes
    n_jobs: Count | None
    storage: str | None
    seed: Seed


@dataclass
class SearchConfig(TrainRequest):
    """What `search_hyperparams.py` is asked for: a run's configuration, which holds for all trials, and the search."""

    search: SearchOptions


@dataclass
class DataRoot:
    """Where `evaluate.py` finds the data, if not where the run found it."""

    root: FolderName | None


@dataclass
class EvaluateConfig:
    """What `evaluate.py` is asked for."""

    run: str
    checkpoint: Literal["best", "last"]
    split: Literal["test", "val", "train"]
    device: str | None
    export: Literal["onnx", "torch_export", "safetensors"] | None
    data: DataRoot


@dataclass
class SynthesizeConfig:
    """What `synthesize_results.py` is asked for."""

    root: str
    metric: str | None
    group_by: list[str] | None
    pivot: list[str] | None
    tensorboard: bool


# ------------------------------------------------------------------------------------------------------- the checks


def check(config: Mapping[str, Any], schema: type) -> None:
    """Raises UserError, in one line that names the key, where plain `config` does not fit the dataclass `schema`."""
    hints = typing.get_type_hints(schema, include_extras=True)
    check_keys(config, hints, where="")


def check_keys(
    values: Mapping[str, Any], hints: Mapping[str, Any], *, where: str, required: Iterable[str] = ()
) -> None:
    """Checks that `values` has keys of `hints` only, each of its type, and all of `required`."""
    required = required or hints
    for key in values:
        if key not in hints:
            raise UnknownKey(f"{where}{key}")
    for key, hint in hints.items():
        if key in values:
            check_value(values[key], hint, where=f"{where}{key}")
        elif key in required:
            raise UserError(f"{where}{key} is missing; it takes {_allowed(hint)}")


def check_value(value: Any, hint: Any, *, where: str) -> None:
    """Checks one value against a type hint."""
    if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {value!r}; it takes keys: {', '.join(f.name for f in fields(hint))}")
        check_keys(value, typing.get_type_hints(hint, include_extras=True), where=f"{where}.")
    elif not _fits(value, hint):
        raise UserError(f"{where} is {shown(value)}; it takes {_allowed(hint)}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        infinite = getattr(arguments[1], "infinite", False) and isinstance(value, float)
        return (infinite or _fits(value, arguments[0])) and value in arguments[1]
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
    if hint is str:
        return isinstance(value, str)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        items = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == len(arguments)
        return items and all(_fits(item, option) for item, option in zip(value, arguments, strict=True))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        items = isinstance(value, Sequence) and not isinstance(value, str)
        return items and (not arguments or all(_fits(item, arguments[0]) for item in value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if hint in (dict, list, tuple):
        return isinstance(value, Mapping if hint is dict else Sequence) and not isinstance(value, str)
    return hint is Any or hint is inspect.Parameter.empty or not _is_opaque(hint)


def _is_opaque(hint: Any) -> bool:
    """Whether a hint is a class such as Tensor, of which no configuration can hold a value."""
    return isinstance(hint, type) and get_origin(hint) is None and hint not in (bool, int, float, str, type(None))


def _allowed(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{_allowed(arguments[0])} {arguments[1]}"
    if origin in (Union, types.UnionType):
        plain = [option for option in arguments if not _is_opaque(option)]
        return " or ".join(dict.fromkeys(_allowed(option) for option in plain))
    if origin is Literal:
        return " or ".join(str(option) for option in arguments)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list, each {_allowed(arguments[0])}" if arguments else "a list"
    if hasattr(hint, "__dataclass_fields__") or origin is dict:
        return "keys of its own"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def shown(value: Any) -> str:
    """A value as a configuration file has it, cut where it is long."""
    text = repr(value) if isinstance(value, str) else str(value)
    return {"None": "null", "True": "true", "False": "false"}.get(text, text[:80])


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` is most likely a typing mistake for, or None."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return close[0] if close else None
