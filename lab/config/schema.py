"""What a configuration may hold: the keys and their types, checked before anything is built or written.

Every key has a type here or, below a `_target_`, in the signature of what it names (targets.py); a key that has none is a
mistake.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from lab.config.values import Count, DirectoryName, FolderName, Fraction, Positive, Range, Seed, allowed, fits, shown
from utils import UserError


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
    mixup: Annotated[float, Range(0)]
    cutmix: Annotated[float, Range(0)]
    transform: dict[str, Any] | list[dict[str, Any]] | None
    augment: dict[str, Any] | list[dict[str, Any]] | None
    passes: Count
    mean: list[float] | None
    std: list[Positive] | None
    standardize: bool
    limit: Count | None
    limit_val: Count | None
    limit_test: Count | None
    max_batches: Count | None


@dataclass
class ModelOptions:
    """`model.*`, apart from the keys of the network itself."""

    init: str
    init_from: FolderName | None
    freeze: str | list[str] | None


@dataclass
class OptimizerOptions:
    """`optimizer.*`, apart from the keys of the optimiser itself."""

    groups: dict[str, Any] | None
    no_decay: bool


@dataclass
class MetricOptions:
    """`metrics.NAME.*`, apart from the keys of the metric itself."""

    higher_is_better: bool


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
    threads: Count | Literal["auto"]
    ema: Fraction | None
    monitor: str | None
    patience: Count | None
    max_grad_norm: Annotated[float, Range(0, open_low=True, infinite=True)]
    log_every: Count
    checkpoint_every: Count | None
    images: bool
    histograms: bool
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
    loss: dict[str, Any]
    metrics: dict[str, Any]
    learner: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    trainer: TrainerOptions


@dataclass
class TrainRequest(TrainConfig):
    """What `train.py` is asked for: a run's configuration, and what to do about it, which no run records."""

    like: str | None
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

    run: str | list[str]
    checkpoint: Literal["best", "last"]
    split: Literal["test", "val", "train"]
    device: str | None
    export: Literal["onnx", "torch_export", "safetensors"] | None
    data: DataRoot


@dataclass
class SynthesizeConfig:
    """What `synthesize_results.py` is asked for."""

    root: str | None
    metric: str | None
    group_by: list[str] | None
    pivot: list[str] | None
    higher_is_better: bool | None
    seeds_for_choosing: list[int] | None
    plan: Positive | None
    sequential: bool
    tensorboard: bool
    diff: list[str] | None


# ------------------------------------------------------------------------------------------------------- the checks


# ------------------------------------------------------------------------------------------------------- the checks


class UnknownKey(UserError):
    """A key that no part of the configuration has; its message is the dotted key alone."""


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
            raise UserError(f"{where}{key} is missing; it takes {allowed(hint)}")


def check_value(value: Any, hint: Any, *, where: str) -> None:
    """Checks one value against a type hint."""
    if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {value!r}; it takes keys: {', '.join(f.name for f in fields(hint))}")
        check_keys(value, typing.get_type_hints(hint, include_extras=True), where=f"{where}.")
    elif not fits(value, hint):
        raise UserError(f"{where} is {shown(value)}; it takes {allowed(hint)}")


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` is most likely a typing mistake for, or None."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return close[0] if close else None
