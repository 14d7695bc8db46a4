"""A run directory while its run writes it: checkpoints, metrics and status after each epoch, and what is said of the run.

Whoever makes a run (one command, a sweep, a search) writes it through `open_run`, so nobody can tell who did.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf

from lab.devices.distributed import explained
from lab.devices.signals import StopSignals
from lab.plots import pictures
from lab.runs.directory import check_continuation, fixed_part, has_checkpoint, here, hint
from lab.runs.logger import NoLogger, RunLogger, recorded_status, write_status
from lab.runs.progress import Measured, PerProcess, Progress
from lab.runs.provenance import provenance
from lab.runs.sharding import FOLDER, Shards, Whole, find_damage, next_number, read_number, remove_others, weights_of
from utils import (
    Checkpoint,
    Damaged,
    RandomState,
    Stateful,
    UserError,
    locked,
    read_json,
    read_whole,
    remove_leftovers,
    write_file,
    write_json,
    writing,
)

if TYPE_CHECKING:
    from train import Setup


class Run:
    """A run directory while its run writes it: what is to be done after each step, and after each epoch."""

    def __init__(
        self,
        directory: Path,
        cfg: DictConfig,
        setup: Setup,
        progress: Progress,
        measured: Measured,
        *,
        logger: RunLogger,
        stops: StopSignals,
    ) -> None:
        self.directory, self.setup, self.progress, self.measured = directory, setup, progress, measured
        self.logger, self.stops = logger, stops
        self.checkpoint_every = cfg.trainer.checkpoint_every or math.inf
        self.world, learner = setup.world, setup.learner
        self.own = PerProcess({"measured": measured, "random": RandomState()}, setup.world)
        self.whole = Whole(learner.model, setup.world)
        self.shards = {
            "model": Shards("model", learner.model, learner.model.state_dict, directory),
            "optimizer": Shards("optimizer", learner.optimizer, partial(weights_of, learner.optimizer), directory),
        }
        self.number = 0  # of the folder of the latest checkpoint's pieces, where it has some
        rest: dict[str, Stateful] = {
            "progress": progress,
            "schedule": learner.schedule,
            "scaler": learner.scaler,
            "processes": self.own,
            "snapshots": setup.snapshots,
            "log": logger,
        }
        notes = {"spec": asdict(setup.spec), "configuration": fixed_part(cfg)}
        self.best = Checkpoint({"model": self.whole, "progress": progress}, **notes)
        self.last = Checkpoint(self.shards | rest, **notes)
        self.draw_samples: Callable[[int], None] = lambda epoch: None

    def restore(self) -> None:
        """Goes back to the latest whole checkpoint; where the directory holds none, removes what was logged without one."""
        path = self.choose_checkpoint()
        if path is None:
            self.logger.load_state_dict({})
            return
        self.last.restore(path)  # on the CPU, where random states live; each part moves its own
        self.number = read_number(path) if (self.directory / FOLDER).exists() else 0
        size, num_saved, was_sharded = self.world.size, self.own.num_saved, self.number > 0
        changes = [f"trainer.devices={size} where it was {num_saved}"] * (size != num_saved)
        if min(size, num_saved) > 1 and self.world.is_sharded != was_sharded:
            changes.append(f"trainer.parallel={self.world.parallel} where it was {'fsdp' if was_sharded else 'ddp'}")
        if changes:
            self.logger.warn(
                f"going on with {' and '.join(changes)}: the same batches, but "
                f"neither dropout nor the last digits will be those of the run that was not stopped"
            )
        self.check_best()

    def choose_checkpoint(self) -> Path | None:
        """The latest whole one, with a warning if that is not last.pt; Damaged where there are some but none is whole.

        All processes must call it: they read the pieces in turn.
        """
        last, before = self.directory / "last.pt", self.directory / "before.pt"
        if not self.world.share(has_checkpoint(self.directory)):
            return None
        if (error := find_damage(last, self.world)) is None:
            return last
        has_other = self.world.share(before.exists())
        other = find_damage(before, self.world) if has_other else error
        if other is not None:
            what = f"{error}; and {other}" if has_other else f"{error}"
            raise Damaged(f"{what}; start a new run, or rerun=true") from other
        if self.world.is_main:
            self.logger.warn(f"{error}; going back to the checkpoint before it")
            before.replace(last)  # else the next checkpoint would keep the damaged one as the one before
        self.world.share(None)  # nobody opens it before it is there
        return last

    def check_best(self) -> None:
        """Warns where the best weights were damaged since they were written; nothing can bring them back."""
        try:
            if self.progress.best_epoch:
                read_whole(self.directory / "best.pt")
        except UserError as error:
            self.logger.warn(
                f"{error}; it is written anew only by an epoch better than epoch {self.progress.best_epoch}"
            )

    def after_step(self) -> None:
        """Writes a checkpoint where one is due, or where a process was asked to stop: then it also stops."""
        asked = self.world.latest_max(self.stops.noted or 0)
        if asked or self.progress.step % self.checkpoint_every == 0:
            self.save()
            self.stop_if(asked)

    def after_epoch(self) -> None:
        """Records the epoch that has ended: pictures, metrics.json, the checkpoints."""
        progress, setup = self.progress, self.setup
        setup.snapshots.take(setup.learner.model, epoch=progress.epoch, step=progress.step)
        setup.learner.check_weights(progress)
        is_best = progress.best_epoch == progress.epoch
        if is_best:
            self.whole.collect()
        if self.world.is_main:
            self.draw_samples(progress.epoch)
            write_json(self.directory / "metrics.json", summary(setup, progress))
            if is_best:
                self.best.save(self.directory / "best.pt")
        self.save()
        self.stop_if(self.world.latest_max(self.stops.noted or 0))

    def save(self) -> None:
        """Writes last.pt, unless it would hold a number that is not finite."""
        self.measured.check(self.progress)
        self.setup.learner.check_weights(self.progress)
        self.own.collect()
        number = self.world.share(next_number(self.directory))
        for part in self.shards.values():
            part.collect(number)
        if self.world.is_main:
            self.last.save(self.directory / "last.pt", keep=self.directory / "before.pt")
            remove_others(self.directory, keep={number, self.number})
            write_status(self.directory, "running", epoch=self.progress.epoch, step=self.progress.step)
        self.number = number

    def stop_if(self, signum: int) -> None:
        """Ends the run, all of whose state is on the disk, if a signal has asked a process to stop."""
        if not signum:
            return  # one that was noted during the checkpoint is for after the next step
        if self.world.is_main:
            write_status(self.directory, "interrupted", epoch=self.progress.epoch, step=self.progress.step)
        self.stops.noted = signum
        self.stops.check()

    def stop_broken(self) -> None:
        """Ends a run that was asked to stop, and cannot finish its step since what it waits for has stopped already."""
        if self.stops.noted is not None and self.world.size == 1:
            self.save()
            self.stop_if(self.stops.noted)

    def say_how_to_go_on(self) -> None:
        place = f"epoch {self.progress.epoch}" + f", step {self.progress.step}" * (self.progress.batch > 0)
        self.logger.say(f"interrupted after {place}; go on with: {hint('train.py')} resume={here(self.directory)}")


@contextlib.contextmanager
def open_run(
    directory: Path,
    cfg: DictConfig,
    overrides: Sequence[str],
    setup: Setup,
    progress: Progress,
    measured: Measured,
    *,
    anew: bool,
) -> Iterator[Run]:
    """The run directory while a run writes it: the main process does, the others only take part.

    Restores what its checkpoint holds, if there is one; `anew` removes everything first. Keeps status.json true; says at
    the start what the run is about, and at the end what came out.
    """
    with contextlib.ExitStack() as stack:
        logger: RunLogger = NoLogger()
        is_new = True
        if setup.world.is_main:
            stack.enter_context(locked(directory))
            logger = stack.enter_context(contextlib.closing(RunLogger(directory)))
            if anew:
                clear(directory)
            remove_leftovers(directory)
            is_new = not has_checkpoint(directory)
            check_continuation(directory, cfg, setup.data_sha256, is_new=is_new)
        stops = stack.enter_context(StopSignals())
        run = Run(directory, cfg, setup, progress, measured, logger=logger, stops=stops)
        run.restore()
        if progress.step == 0:
            setup.snapshots.take(setup.learner.model, epoch=0, step=0)
        leading = lead(run, cfg, overrides, is_new=is_new) if setup.world.is_main else contextlib.nullcontext()
        with leading, explained():
            try:
                yield run
            except RuntimeError:  # such as: the signal has also reached the processes that load the data
                run.stop_broken()
                raise


def clear(directory: Path) -> None:
    """Empties a run directory that this process holds."""
    for name in ("status.json", "last.pt", "before.pt"):  # first: nothing half empty may pass for a run
        (directory / name).unlink(missing_ok=True)
    for path in directory.iterdir():
        if path.name == "train.log":
            os.truncate(path, 0)  # whoever writes it goes on writing it
        elif path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith(".lock"):
            path.unlink()


@contextlib.contextmanager
def lead(run: Run, cfg: DictConfig, overrides: Sequence[str], *, is_new: bool) -> Iterator[None]:
    """What the main process does around the training: the record, the status, the pictures, the words."""
    directory, setup, logger, progress = run.directory, run.setup, run.logger, run.progress
    write_record(directory, cfg, overrides, setup, is_new=is_new)
    if cfg.trainer.images and not setup.world.is_sharded:
        run.draw_samples = pictures.sample_pictures(
            setup.learner.model, setup.spec, setup.val_loader, logger, last_epoch=cfg.trainer.epochs
        )
    try:
        with recorded_status(directory, progress):
            introduce(logger, cfg, directory, setup, progress)
            with profiled(directory, logger) if cfg.trainer.profile else contextlib.nullcontext():
                yield
            if cfg.trainer.images:
                with writing(directory / "learning_curves.png"):
                    network = None if setup.world.is_sharded else setup.learner.model
                    pictures.draw_run(directory, network, logger, best_epoch=progress.best_epoch)
                    pictures.draw_animation(setup.snapshots.state_dict(), setup.spec.classes, directory)
    except (KeyboardInterrupt, SystemExit):
        run.say_how_to_go_on()
        raise
    logger.end_session()
    logger.say(farewell(cfg, directory, progress))


def summary(setup: Setup, progress: Progress) -> dict[str, Any]:
    """What metrics.json holds."""
    return {
        "monitor": setup.monitor,
        "best": {"epoch": progress.best_epoch, **progress.best},
        "final": {"epoch": progress.epoch, **progress.final},
    }


def write_record(directory: Path, cfg: DictConfig, overrides: Sequence[str], setup: Setup, *, is_new: bool) -> None:
    """config.yaml, overrides.yaml, provenance.json and the patch: of the start, with each resumption noted."""
    write_file(directory / "config.yaml", OmegaConf.to_yaml(cfg).encode())
    record, patch = provenance(setup.learner.device, setup.data_sha256)
    if is_new:
        write_file(directory / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(list(overrides))).encode())
        (directory / "uncommitted.patch").unlink(missing_ok=True)
        if patch:
            write_file(directory / "uncommitted.patch", patch.encode())
    else:
        first = read_json(directory / "provenance.json", data_sha256=str)
        again = {key: record[key] for key in ("command", "started", "git_commit", "git_patch_sha256", "device")}
        before = first["resumed"] if isinstance(first.get("resumed"), list) else []
        record = first | {"resumed": [*before, again | {"overrides": list(overrides)}]}
    write_json(directory / "provenance.json", record)


def introduce(logger: RunLogger, cfg: DictConfig, directory: Path, setup: Setup, progress: Progress) -> None:
    """Says what the run is about, on the console and in TensorBoard."""
    learner, spec, world = setup.learner, setup.spec, setup.world
    shape, kind = "x".join(map(str, spec.input_shape)), f"{spec.output_size} outputs"
    if spec.task == "classification":
        kind = f"{spec.output_size} classes"
    num_parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    sizes = f"{setup.train_loader.num_examples:,} training and {setup.val_loader.num_examples:,} validation examples"
    logger.say(f"data    {cfg.data._target_.split('.')[-1]}: {sizes}, {shape}, {kind}")
    logger.say(f"model   {cfg.model._target_.split('.')[-1]}: {num_parameters:,} parameters")
    processes = f"{world.size} processes, each " * (world.size > 1)
    sharing = ", each with a part of every weight" * world.is_sharded
    threads = f"{learner.num_threads} thread{'s' * (learner.num_threads > 1)}"
    precision = learner.precision + ", compiled" * learner.is_compiled
    logger.say(f"device  {processes}{learner.device}{sharing}, {threads}, {precision}, seed {cfg.seed}")
    logger.say(
        f"run     {here(directory)}"
        + f", going on after epoch {progress.epoch}, step {progress.step}" * (progress.step > 0)
    )
    logger.start_session(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
    if progress.step == 0:
        logger.writer.add_text("config", "```yaml\n" + OmegaConf.to_yaml(cfg) + "```")
        if not world.is_sharded:
            logger.graph(learner.model, next(iter(setup.val_loader))[0][:1])


def farewell(cfg: DictConfig, directory: Path, progress: Progress) -> str:
    """The result, the directory, and the commands to go on with."""
    experiment = Path(cfg.experiments_dir, cfg.name)
    folder = experiment if directory.absolute().is_relative_to(experiment.absolute()) else directory.parent
    values = "  ".join(f"{name} {value:.4f}" for name, value in progress.best.items() if name.startswith("val/"))
    return (
        f"best    epoch {progress.best_epoch}: {values}\n"
        f"run     {here(directory)}\n"
        f"next    {hint('evaluate.py')} run={here(directory)}\n"
        f"        tensorboard --logdir {here(folder)}"
    )


@contextlib.contextmanager
def profiled(directory: Path, logger: RunLogger) -> Iterator[None]:
    """Profiles what runs inside: trace.json (for chrome://tracing or ui.perfetto.dev) and a table, profile.txt."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        yield
    profiler.export_chrome_trace(str(directory / "trace.json"))
    table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20)
    write_file(directory / "profile.txt", table.encode())
    logger.say(f"{table}\nwritten: {here(directory / 'trace.json')} and profile.txt")
