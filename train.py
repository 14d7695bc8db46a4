"""The training loop, and the command that trains.

python train.py model=cnn data=mnist optimizer.lr=3e-3
"""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    gc.disable()  # until all is imported: looking for garbage among modules takes a quarter of the time to import them

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from evaluate import build_model, load_examples, make_eval_loader, measure, precision_of, predict
from lab.config.command import command, typed_overrides
from lab.config.schedule import Schedule, build_schedule
from lab.config.schema import TrainRequest
from lab.config.targets import build, resolve_target
from lab.devices.device import (
    autocast,
    choose_compile,
    choose_device,
    choose_threads,
    full_precision,
    keep_freed_memory,
    spare_the_compiler,
    threads,
)
from lab.devices.distributed import World, joined
from lab.devices.launch import Lost, agreed_directory, num_launched, run_in_processes
from lab.plots import pictures
from lab.runs.directory import finished_result, here, hint, is_of_other_code, plan, what_is_left
from lab.runs.progress import CALMER, Measured, Progress, check_outcome, choose_monitor, is_over
from lab.runs.provenance import code_state
from lab.runs.run import Run, open_run
from lab.runs.sharding import local
from model.data_loader import Loader, check_batch_size, make_loader
from model.examples import Examples, Folder
from model.net import DataSpec, Loss, Metric, choose_loss, metrics_for, output_of
from model.splits import describe
from utils import Diverged, OutOfMemory, UserError, nothing, seed_everything

# ----------------------------------------------------------------------------------------------------------- one step


class Learner:
    """The network and all that a training step changes."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        world: World,
        precision: str = "fp32",
        num_threads: int = 1,
        max_grad_norm: float = math.inf,
        accumulate: int = 1,
        compiled: bool = False,
    ) -> None:
        self.model, self.loss, self.optimizer, self.schedule = model, loss, optimizer, schedule
        self.world, self.device, self.num_threads = world, world.device, num_threads
        self.precision, self.accumulate = precision, accumulate
        self.weight = float(world.size)  # of each example's loss: gradients are averaged over the processes
        self.is_compiled = compiled
        # Checkpoints hold the bare model, not what it is wrapped in.
        self.forward: Any = world.wrap(torch.compile(model) if compiled else model)
        self.autocast = autocast(world.device, precision)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=precision == "fp16")
        self.parameters = list(model.parameters())
        self.learning_rate = optimizer.param_groups[0]["lr"]  # of the latest step
        self.clip: Callable[[Any], Any] = nothing
        if max_grad_norm < math.inf:
            self.clip = partial(nn.utils.clip_grad_norm_, max_norm=max_grad_norm)

    def step(self, inputs: Tensor, targets: Tensor, *, batch_size: int | None = None) -> tuple[Tensor, Tensor]:
        """One gradient step -> (loss values [batch], outputs [batch, ...]) from before it.

        batch_size: of the whole batch, where this process has a part of it.
        """
        batch_size = batch_size or len(targets)
        weight = self.weight / batch_size if self.loss.averaged else self.weight
        if self.accumulate == 1:
            losses, outputs = self.add_gradient(inputs, targets, weight)
        else:
            num_parts = min(self.accumulate, batch_size // self.world.size)  # as many in each process
            losses, outputs = self.add_gradient_in_parts(inputs, targets, weight, num_parts)
        self.scaler.unscale_(self.optimizer)  # so that clipping sees the true gradients
        self.clip(self.parameters)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for parameter in self.parameters:  # what optimizer.zero_grad() does, in a tenth of the time
            parameter.grad = None
        self.learning_rate = self.optimizer.param_groups[0]["lr"]  # the schedule may change it now
        self.schedule.after_step()
        return losses, outputs

    def add_gradient(self, inputs: Tensor, targets: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """Adds the gradient of the examples' weighted losses to the parameters' -> (losses [n], outputs [n, ...])."""
        with self.autocast:
            outputs = full_precision(self.forward(inputs))
        losses = self.loss.values(outputs, targets)
        self.scaler.scale(losses).backward(torch.full_like(losses, weight))
        return losses.detach(), outputs.detach()

    def add_gradient_in_parts(
        self, inputs: Tensor, targets: Tensor, weight: float, num_parts: int
    ) -> tuple[Tensor, Tensor]:
        """The same in so many parts one after the other, which need less memory."""
        parts = list(zip(inputs.tensor_split(num_parts), targets.tensor_split(num_parts), strict=True))
        results = []
        for number, part in enumerate(parts, start=1):
            self.forward.require_backward_grad_sync = number == len(parts)  # exchanged once, when they are whole
            results.append(self.add_gradient(*part, weight))
        losses, outputs = (torch.cat(tensors) for tensors in zip(*results, strict=True))
        return losses, outputs

    def check_weights(self, progress: Progress) -> None:
        """Raises Diverged where a weight is not finite, which a loss from before the step does not show yet."""
        tensors = [local(tensor) for tensor in self.model.state_dict().values() if tensor.is_floating_point()]
        if tensors and self.world.sum(torch.stack([~tensor.isfinite().all() for tensor in tensors]).sum()) > 0:
            raise Diverged(
                f"a weight is not finite at {progress.place(progress.step)}, after a gradient that was not; {CALMER}"
            )


# ---------------------------------------------------------------------------------------------------------- one epoch


def train_epoch(
    learner: Learner, loader: Loader, measured: Measured, progress: Progress, run: Run, *, log_every: int
) -> dict[str, float]:
    """One pass over the training data, or the rest of it: {"loss": ..., and each metric by name}.

    Each value is from before its example's step.
    """
    learner.model.train()
    loader.set_epoch(progress.epoch + 1, start=progress.batch)
    title = f"epoch {progress.epoch + 1}"
    bar = run.logger.bar(loader.num_examples, title, initial=progress.batch * loader.batch_size)
    with bar, threads(learner.num_threads):
        for inputs, targets in loader:
            batch_size = min(loader.batch_size, loader.num_examples - progress.batch * loader.batch_size)
            losses, outputs = learner.step(inputs, targets, batch_size=batch_size)
            del inputs  # the next batch takes their memory, which is in the processor's cache
            measured.add(losses, outputs, targets, batch_size=batch_size)
            progress.step, progress.batch = progress.step + 1, progress.batch + 1
            progress.learning_rate = learner.learning_rate
            bar.update(batch_size)
            if progress.step % log_every == 0:  # only here, and at checkpoints, does the host wait for the device
                values = {"step/loss": measured.recent_loss(progress), "step/lr": progress.learning_rate}
                run.logger.step(values, progress.step, bar)
            run.after_step()
    return measured.result(progress)


# ------------------------------------------------------------------------------------------------------------ one run


@dataclass
class Setup:
    """What a configuration builds, before anything is written."""

    learner: Learner
    train_loader: Loader
    val_loader: Loader
    spec: DataSpec
    metrics: dict[str, Metric]
    monitor: str
    snapshots: pictures.Snapshots
    data_sha256: str
    world: World

    def close(self) -> None:
        """Lets go of what loads the data."""
        self.train_loader.close()
        self.val_loader.close()


def set_up(cfg: DictConfig, world: World | None = None) -> Setup:
    """Builds data, network, optimiser and schedule; whatever is wrong with them is a UserError, DataError or TaskError."""
    world = world or World(choose_device(cfg.trainer.device))
    device = world.device
    if world.is_sharded and cfg.trainer.animate:
        raise UserError(
            "trainer.animate=true looks into a whole network, and trainer.parallel=fsdp has none; set but one"
        )
    seed_everything(cfg.seed)
    data = cfg.data
    training, validation = (load_examples(cfg, split) for split in ("train", "val"))
    check_batch_size(data.batch_size, len(training))  # before a folder is decoded
    spec = describe(training, data.mean, data.std)
    model = build_model(cfg, spec)
    loss = choose_loss(cfg.trainer.loss, spec, output_of(model))
    metrics = metrics_for(spec.task)
    monitor = choose_monitor(cfg.trainer.monitor, metrics)
    train_loader = make_train_loader(cfg, training, spec, world)
    val_loader = make_eval_loader(cfg, validation, spec, device, world.part)
    check_shares(world, train_loader, val_loader, accumulate=cfg.trainer.accumulate)
    check_smallest_part(model, spec, smallest_part(world, train_loader, accumulate=cfg.trainer.accumulate))
    model = world.place(model, sync_batchnorm=cfg.trainer.sync_batchnorm)
    compiled = choose_compile(cfg.trainer.compile, device, num_steps=cfg.trainer.epochs * len(train_loader))
    if not compiled:
        spare_the_compiler(resolve_target("optimizer", cfg.optimizer))
    optimizer = build("optimizer", cfg.optimizer, model.parameters())
    learner = Learner(
        model,
        loss,
        optimizer,
        build_schedule(cfg, optimizer, num_steps_per_epoch=len(train_loader), monitor=monitor),
        world=world,
        precision=precision_of(cfg, device, model, spec),
        num_threads=choose_threads(device, model, batch_size=data.batch_size),
        compiled=compiled,
        **{key: cfg.trainer[key] for key in ("max_grad_norm", "accumulate")},
    )
    seed_everything((cfg.seed + 1_000_003 * world.rank) % 2**32 if world.rank else cfg.seed)  # dropout of its own
    snapshots = pictures.Snapshots()
    if cfg.trainer.animate:
        snapshots = pictures.snapshots_for(spec, training, val_loader, device)
    return Setup(learner, train_loader, val_loader, spec, metrics, monitor, snapshots, training.fingerprint(), world)


def make_train_loader(cfg: DictConfig, examples: Examples | Folder, spec: DataSpec, world: World) -> Loader:
    """The loader of the training split, or of this process's part of it."""
    keys = ("batch_size", "drop_last", "crop_padding", "flip", "passes", "num_workers", "max_batches")
    options = {key: cfg.data[key] for key in keys}
    return make_loader(examples, spec, shuffle=True, seed=cfg.seed, device=world.device, part=world.part, **options)


def check_shares(world: World, train_loader: Loader, val_loader: Loader, *, accumulate: int) -> None:
    """UserError where a process would have nothing to do in some step, or in some part of it, or in the validation."""
    share = max(1, train_loader.batch_size // world.size)
    if accumulate > share:
        raise UserError(
            f"trainer.accumulate is {accumulate}, but a batch has {share} examples"
            + f" in each of {world.size} processes" * (world.size > 1)
            + f"; choose at most {share}, or a larger data.batch_size (it is {train_loader.batch_size})"
        )
    smallest = train_loader.num_examples % train_loader.batch_size or train_loader.batch_size
    if smallest < world.size:
        raise UserError(
            f"trainer.devices is {world.size}, but the smallest batch has {smallest} examples; "
            f"set data.drop_last=true, or another data.batch_size (it is {train_loader.batch_size})"
        )
    if val_loader.num_examples < world.size:
        raise UserError(f"trainer.devices is {world.size}, but there are {val_loader.num_examples} validation examples")


def smallest_part(world: World, loader: Loader, *, accumulate: int) -> int:
    """How few examples go through the network at once, in any process."""
    share = (loader.num_examples % loader.batch_size or loader.batch_size) // world.size
    return share // min(accumulate, share)


def check_smallest_part(model: nn.Module, spec: DataSpec, size: int) -> None:
    """UserError where one example alone is too few for the network's batch normalisation, which tells only by trying."""
    if size > 1 or not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            copy.deepcopy(model).train()(torch.zeros(1, *spec.input_shape))
    except ValueError as error:
        raise UserError(
            "the smallest batch, or part of one, has one example, too few for this network's batch normalisation; "
            "set data.drop_last=true, or another data.batch_size or trainer.accumulate"
        ) from error


def train(cfg: DictConfig, directory: Path, overrides: Sequence[str] = (), *, anew: bool = False) -> dict[str, float]:
    """Trains as `cfg` says in `directory`, from where a run there stopped (or `anew`); the metrics of its best epoch.

    Raises UserError for what cannot be built (before anything is written), Diverged for a loss that is not finite, Unmet
    where the training loss ends above `trainer.fail_above`.
    """
    keep_freed_memory()
    with joined(cfg.trainer.device, cfg.trainer.parallel) as world, memory_explained(cfg):
        return train_in(world, cfg, directory, overrides, anew=anew)


def train_in(
    world: World, cfg: DictConfig, directory: Path, overrides: Sequence[str], *, anew: bool
) -> dict[str, float]:
    """The same as one of several processes; what it has built is gone when it returns."""
    with contextlib.closing(set_up(cfg, world)) as setup:
        progress, learner, trainer = Progress(), setup.learner, cfg.trainer
        measured = Measured(learner.loss, setup.metrics, world)
        # Inside of the run too, so that its status says what to turn down.
        with open_run(directory, cfg, overrides, setup, progress, measured, anew=anew) as run, memory_explained(cfg):
            while not is_over(progress, epochs=trainer.epochs, patience=trainer.patience):
                started, num_before = time.perf_counter(), progress.batch * setup.train_loader.batch_size
                trained = train_epoch(learner, setup.train_loader, measured, progress, run, log_every=trainer.log_every)
                seconds = time.perf_counter() - started
                metrics = {f"train/{name}": value for name, value in trained.items()} | validate(setup, progress)
                learner.schedule.after_epoch(metrics[setup.monitor])
                progress.end_epoch(metrics, setup.monitor)
                timing = {
                    "seconds": round(time.perf_counter() - started, 4),
                    "examples_per_second": round((setup.train_loader.num_examples - num_before) / seconds, 1),
                }
                position = {"epoch": progress.epoch, "step": progress.step}
                record = position | timing | {"lr": progress.learning_rate} | metrics
                run.logger.epoch(record, num_epochs=trainer.epochs)
                run.after_epoch()
            check_outcome(progress, trainer.fail_above)
    return progress.best


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


def validate(setup: Setup, progress: Progress) -> dict[str, float]:
    """The validation metrics, by full name; Diverged where the loss is not finite."""
    learner = setup.learner
    setup.world.share_buffers(learner.model)
    predictions = predict(learner.model, setup.val_loader, learner.precision)
    values = measure(predictions, learner.loss, setup.metrics, setup.world)
    if not math.isfinite(values["loss"]):
        raise Diverged(f"the validation loss is {values['loss']} after {progress.place(progress.step)}; {CALMER}")
    return {f"val/{name}": value for name, value in values.items()}


# -------------------------------------------------------------------------------------------------------- the command


def start(cfg: DictConfig, directory: Path, overrides: Sequence[str] = (), *, anew: bool = False) -> dict[str, float]:
    """Trains in this process, or in `trainer.devices` new ones: the metrics of the best epoch."""
    if cfg.trainer.devices == 1 or num_launched() is not None:
        return train(cfg, directory, overrides, anew=anew)
    try:
        return run_in_processes(partial(train, anew=anew), cfg, directory, overrides, num_processes=cfg.trainer.devices)
    except Lost as error:
        if not directory.exists():
            raise
        raise Lost(f"{error}; go on with: {hint('train.py')} resume={here(directory)}") from error


@command("train", TrainRequest)
def main(ask: DictConfig) -> dict[str, float] | None:
    """Trains a run, or goes on with one; the metrics of its best epoch."""
    overrides = typed_overrides()
    cfg, directory = plan(ask, overrides)
    best = finished_result(cfg, directory)
    if best is not None and not ask.rerun:
        print(f"{here(directory)} has finished already; for more epochs: resume={here(directory)} trainer.epochs=...")
        if is_of_other_code(directory, code_state()[0]):
            print("  it was made with other code than there is now; rerun=true starts it anew")
    elif ask.dry_run:
        print(f"{here(directory)} {'starts anew' if ask.rerun else what_is_left(directory)}")
    else:
        best = start(cfg, agreed_directory(directory), overrides, anew=ask.rerun)
    return best


if __name__ == "__main__":  # one copy of this file has a name: who subclasses Learner imports that one
    import train as this

    this.main()
