"""From a checked configuration to what a run is made of. Below the builders nothing knows of configurations."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from lab.config.slots import own_keys, resolve_target
from lab.config.targets import build, is_share, made
from model.data_loader import Loader, check_batch_size, make_loader, whole
from model.ema import MovingAverage
from model.layers import initialize
from model.losses import Loss, check_loss, default_loss
from model.metrics import Accumulated, Metric, default_metrics, in_units, mean_of
from model.net import DataSpec, is_image
from model.schedule import Schedule
from model.splits import Dataset, Split, dataset_of, describe, load_split
from utils import UserError

TRAIN_LOADER = (
    "batch_size",
    "drop_last",
    "crop_padding",
    "flip",
    "mixup",
    "cutmix",
    "passes",
    "num_workers",
    "max_batches",
)

# ---------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Data:
    """What a run learns from and is validated on: two loaders, what a network must know of them, and whose data it is."""

    train: Loader
    val: Loader
    spec: DataSpec
    examples: Split  # of training
    fingerprint: str
    notes: list[str]  # what of the dataset is not in it

    def close(self) -> None:
        """Lets go of what loads the data."""
        self.train.close()
        self.val.close()


def build_dataset(cfg: DictConfig) -> Dataset:
    """The dataset of a configuration, with its keys filled in: it takes a split's name."""
    return dataset_of(resolve_target("data", cfg.data), cfg.data.root, **made(own_keys("data", cfg.data), "data", None))


def load_examples(cfg: DictConfig, split: str) -> Split:
    """One split of the dataset of a configuration; DataError where there is none."""
    options = {key: cfg.data[key] for key in ("val_fraction", "split_seed")}
    limit = cfg.data["limit" if split == "train" else f"limit_{split}"]
    return load_split(build_dataset(cfg), split, limit=limit, **options)


def build_transforms(cfg: DictConfig, *names: str) -> list[Any]:
    """What is done to each example or batch, in that order."""
    built = [build(f"data.{name}", cfg.data[name]) for name in names]
    return [one for some in built for one in (some if isinstance(some, list) else [some]) if one is not None]


def load_data(
    cfg: DictConfig, device: torch.device, *, part: Callable[[int], slice] = whole, num_processes: int = 1
) -> Data:
    """The loaders of a run, or of one of so many processes' part of them; UserError or DataError for what is not right."""
    training, validation = (load_examples(cfg, split) for split in ("train", "val"))
    check_batch_size(cfg.data.batch_size, len(training))  # before a folder is decoded
    spec = describe(
        training,
        cfg.data.mean,
        cfg.data.std,
        standardize=cfg.data.standardize,
        transform=build_transforms(cfg, "transform"),
    )
    options = {key: cfg.data[key] for key in TRAIN_LOADER} | {
        "transform": build_transforms(cfg, "augment", "transform")
    }
    train = make_loader(training, spec, shuffle=True, seed=cfg.seed, device=device, part=part, **options)
    evaluated = make_eval_loader(cfg, validation, spec, device, part)
    notes = list(dict.fromkeys([*training.notes, *validation.notes]))
    data = Data(train, evaluated, spec, training, training.fingerprint(), notes)
    check_shares(data, num_processes, accumulate=cfg.trainer.accumulate)
    return data


def make_eval_loader(
    cfg: DictConfig,
    examples: Split,
    spec: DataSpec,
    device: torch.device,
    part: Callable[[int], slice] = whole,
) -> Loader:
    """The loader that measures: training's validation and the command's evaluation go through the same batches."""
    options = {key: cfg.data[key] for key in ("num_workers", "max_batches")} | {"part": part}
    options["transform"] = build_transforms(cfg, "transform")
    return make_loader(examples, spec, batch_size=cfg.data.eval_batch_size, device=device, **options)


def check_shares(data: Data, num_processes: int, *, accumulate: int) -> None:
    """UserError where a process would have nothing to do in some step, or in some part of it, or in the validation."""
    batch_size = data.train.batch_size
    share = max(1, batch_size // num_processes)
    if accumulate > share:
        raise UserError(
            f"trainer.accumulate is {accumulate}, but a batch has {share} examples"
            + f" in each of {num_processes} processes" * (num_processes > 1)
            + f"; choose at most {share}, or a larger data.batch_size (it is {batch_size})"
        )
    smallest = smallest_batch(data)
    if smallest < num_processes:
        raise UserError(
            f"trainer.devices is {num_processes}, but the smallest batch has {smallest} examples; "
            f"set data.drop_last=true, or another data.batch_size (it is {batch_size})"
        )
    if (num_validating := data.val.num_examples) < num_processes:
        raise UserError(f"trainer.devices is {num_processes}, but there are {num_validating} validation examples")


def smallest_batch(data: Data) -> int:
    """How many examples the smallest training batch has, in all processes together."""
    return data.train.num_examples % data.train.batch_size or data.train.batch_size


# --------------------------------------------------------------------------------------------- network, loss, metrics


def build_model(cfg: DictConfig, spec: DataSpec) -> nn.Module:
    """The network of a configuration, for data of that spec, with its initial weights."""
    model = build("model", cfg.model, spec)
    initialize(model, cfg.model.init)
    # Convolutions are faster with the channels last in memory, also on a CPU; the numbers and their order stay the same.
    return model.to(memory_format=torch.channels_last) if is_image(spec) else model


def check_smallest_part(model: nn.Module, data: Data, num_processes: int, *, accumulate: int) -> None:
    """UserError where one example alone is too few for the network's batch normalisation, which tells only by trying."""
    share = smallest_batch(data) // num_processes
    has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if share // min(accumulate, share) > 1 or not has_batch_norm or not data.spec.input_shape:
        return
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            copy.deepcopy(model).train()(torch.zeros(1, *data.spec.input_shape))
    except ValueError as error:
        raise UserError(
            "the smallest batch, or part of one, has one example, too few for this network's batch normalisation; "
            "set data.drop_last=true, or another data.batch_size or trainer.accumulate"
        ) from error


def build_loss(cfg: DictConfig, spec: DataSpec, model: nn.Module) -> Loss | None:
    """The loss of a configuration, None for the network's own; TaskError where it does not go with data and network."""
    loss = build("loss", cfg.loss, spec=spec)
    if loss == "auto":
        return default_loss(spec, model)
    if loss == "own":
        return None
    check_loss(loss, spec, model)
    return loss


def build_metrics(cfg: DictConfig, spec: DataSpec) -> dict[str, Any]:
    """The metrics of a configuration by name, or those of the task where it names none."""
    if not cfg.metrics:
        return default_metrics(spec)
    built = build("metrics", cfg.metrics, spec=spec)
    known = {name: as_metric(name, one, cfg.metrics[name].get("higher_is_better")) for name, one in built.items()}
    return {name: in_units(one, spec) for name, one in known.items()}


def as_metric(name: str, built: Any, higher_is_better: bool | None) -> Any:
    """What a node of metrics gives, with its direction; a plain function is the metric of its mean."""
    known = getattr(built, "higher_is_better", None) if higher_is_better is None else higher_is_better
    if known is None:
        raise UserError(
            f"metrics.{name} does not say what is better; add metrics.{name}.higher_is_better=true or false"
        )
    if isinstance(built, Metric):
        return replace(built, higher_is_better=known)
    if not hasattr(built, "update"):
        return mean_of(built, higher_is_better=known)
    return Accumulated(built, higher_is_better=known)


def computing_options(cfg: DictConfig, data: Data) -> dict[str, Any]:
    """What the device has to know to choose how a run computes."""
    options = {key: cfg.trainer[key] for key in ("precision", "compile", "threads")}
    num_steps = cfg.trainer.epochs * len(data.train)
    options["optimizer"] = resolve_target("optimizer", cfg.optimizer)
    return options | {"task": data.spec.task, "batch_size": cfg.data.batch_size, "num_steps": num_steps}


# ------------------------------------------------------------------------------------------ optimiser, schedule, learner


def build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a configuration, for the weights of a network that `model.freeze` does not hold still."""
    return build("optimizer", cfg.optimizer, group_weights(cfg, model))


def group_weights(cfg: DictConfig, model: nn.Module) -> list[Any]:
    """The weights to train, in groups: those of each pattern of `optimizer.groups` with its keys, and the rest.

    A weight belongs to the first pattern that its name matches. With `no_decay`, whatever has but one dimension (biases,
    norms) has no weight decay. UserError for a pattern that no name matches.
    """
    named, frozen = dict(model.named_parameters()), matching(cfg.model.freeze, model, key="model.freeze")
    for name in frozen:
        named.pop(name).requires_grad_(False)
    if not named:
        raise UserError(f"model.freeze is {cfg.model.freeze}, which leaves no weight to train")
    left, groups = dict(named), []
    for pattern, keys in (cfg.optimizer.groups or {}).items():
        chosen = [name for name in matching(pattern, model, key="optimizer.groups") if name in left]
        groups.append({"params": [left.pop(name) for name in chosen], **keys})
    if not groups and not cfg.optimizer.no_decay:
        return list(named.values())
    groups = [{"params": list(left.values())}, *groups]
    if cfg.optimizer.no_decay:
        groups = [half for group in groups for half in without_decay(group)]
    return [group for group in groups if group["params"]]


def without_decay(group: dict[str, Any]) -> list[dict[str, Any]]:
    """A group of weights in two: matrices and filters as they were, vectors without weight decay."""
    vectors = [weight for weight in group["params"] if weight.dim() < 2]
    others = [weight for weight in group["params"] if weight.dim() >= 2]
    return [group | {"params": others}, group | {"params": vectors, "weight_decay": 0.0}]


def matching(patterns: Any, model: nn.Module, *, key: str) -> list[str]:
    """The names of a network's weights that one of some patterns matches, such as "stem.*"; UserError where none does."""
    names = [name for name, _ in model.named_parameters()]
    found = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns or []:
        some = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not some:
            raise UserError(
                f"{key} has the pattern {pattern}, which matches no weight; there are {', '.join(names[:12])}"
            )
        found += some
    return list(dict.fromkeys(found))


def build_schedule(
    cfg: DictConfig, optimizer: torch.optim.Optimizer, *, num_steps_per_epoch: int, higher: bool
) -> Schedule:
    """The schedule of a configuration; a length such as "100%" is that share of the whole run, in the interval's unit.

    higher: whether a higher value of the monitored metric is better, which a plateau needs to know.
    """
    node = dict(cfg.scheduler)
    total = cfg.trainer.epochs * (num_steps_per_epoch if node["interval"] == "step" else 1)
    for key, value in node.items():
        if is_share(value):
            node[key] = max(1, round(float(value[:-1]) / 100 * total)) if float(value[:-1]) > 0 else 0
        if key in ("T_max", "step_size", "total_steps") and node[key] < 1:
            raise UserError(f"scheduler.{key} is {value}; it takes a whole number at least 1, or a share such as 100%")
        if key == "total_steps" and node[key] < total:
            raise UserError(
                f"scheduler.total_steps is {value}, less than the run's {total} {node['interval']}s; take 100%"
            )
    if node["_target_"].endswith("ReduceLROnPlateau"):
        node.setdefault("mode", "max" if higher else "min")
        if node["interval"] == "step":
            raise UserError(
                "scheduler.interval is step; a plateau is one of trainer.monitor, which is measured once an epoch"
            )
    return Schedule(build("scheduler", node, optimizer), node["interval"])


def build_learner(cfg: DictConfig, model: nn.Module, loss: Loss | None, data: Data, progress: Any, **given: Any) -> Any:
    """The learner of a configuration (`train.Learner`, or a subclass of it): the network and all that a step changes.

    It makes its optimisers and schedules by itself, of what it is given to make them with. progress: says whether a higher
    value of the monitored metric is better. given: further arguments.
    """
    higher = progress.seeks_higher
    make_schedule = partial(build_schedule, cfg, num_steps_per_epoch=len(data.train), higher=higher)
    options = {key: cfg.trainer[key] for key in ("max_grad_norm", "accumulate")}
    options["average"] = MovingAverage(model, cfg.trainer.ema)
    return build("learner", cfg.learner, model, loss, partial(build_optimizer, cfg), make_schedule, **options, **given)
