"""A run directory while its run writes it: locked, logged, checkpointed, and its status kept true.

Whoever makes a run (one command, a sweep, a search) writes it through `Run`, so nobody can tell who did.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from lab.config.quoting import path_typed
from lab.devices.distributed import World, gradient_norm, local
from lab.devices.launch import Lost
from lab.devices.signals import StopSignals
from lab.runs.checkpoint import Checkpoint, Damaged, load_tensors, read_whole
from lab.runs.directory import has_checkpoint
from lab.runs.loading import begin_from, fixed_part
from lab.runs.lock import locked
from lab.runs.logger import NoLogger, RunLogger, write_status
from lab.runs.lost import explain_lost, record_lost
from lab.runs.progress import CALMER, Progress
from lab.runs.reading import LEDGER
from lab.runs.record import Record
from lab.runs.words import farewell, introduction, memory_explained, profiled
from utils import Diverged, Unwritable, UserError, here, hint, remove_leftovers, write_json

__all__ = ["Record", "Run", "begin_from", "explain_lost", "memory_explained"]


class Run:
    """A run directory, a checkpoint made of named parts, a logger and the signals that ask the run to stop.

    Every process that trains makes one and calls the same methods; the main one writes. anew: whatever the directory holds
    is removed first. Raises UserError where it holds a run that cannot go on as asked.
    """

    def __init__(self, directory: Path, record: Record, world: World, *, anew: bool = False) -> None:
        self.directory, self.record, self.world, self.anew = directory, record, world, anew
        self.checkpoint_every = record.cfg.trainer.checkpoint_every or math.inf
        self.logger: RunLogger = NoLogger()
        self.is_new, self.has_begun = True, False

    # ------------------------------------------------------------------------------------------- opening and closing

    def __enter__(self) -> Run:
        with contextlib.ExitStack() as stack:
            if self.world.is_main:
                stack.enter_context(locked(self.directory))
                self.place = self.directory.stat()
                self.logger = stack.enter_context(contextlib.closing(RunLogger(self.directory)))
                if self.anew:
                    clear(self.directory)
                remove_leftovers(self.directory)
                self.is_new = not has_checkpoint(self.directory)
                self.record.check(self.directory, is_new=self.is_new)
            self.stops = stack.enter_context(StopSignals())
            self.opened = stack.pop_all()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, where: TracebackType | None) -> None:
        with self.opened:
            try:
                # Such as: the signal has also reached the processes that load the data.
                if isinstance(error, RuntimeError) and self.stops.noted is not None and self.world.size == 1:
                    self.save()
                    self.stop_if(self.stops.noted)
            except BaseException as stopped:
                error = stopped
                raise
            finally:
                self.end(error)

    def begin(self, data: Any, learner: Any) -> None:
        """Records that the run runs, and says what it is about; its end lets go of what loads the data."""
        self.opened.callback(data.close)
        if not self.world.is_main:
            return
        self.record.write(self.directory, self.world.device, data.notes, is_new=self.is_new)
        self.write_status("running")
        self.has_begun = True
        if self.record.cfg.trainer.profile:
            self.opened.enter_context(profiled(self.directory, self.logger))
        self.logger.say(
            introduction(self.record.cfg, self.directory, data=data, learner=learner, progress=self.progress)
        )
        self.logger.start_session(self.record.values, is_new=self.progress.step == 0)

    def end(self, error: BaseException | None) -> None:
        """Records how a run that had begun has ended."""
        if not self.has_begun:
            if isinstance(error, Lost) and not self.world.is_main:
                record_lost(self.directory, error)  # where it was the main one that ended
            return
        if not self.is_in_place():  # nothing is said of this run in the place of another, or of none
            if error is None:
                self.check_place()
            return
        with contextlib.suppress(Unwritable):  # what it would say of is on its way to the user
            if error is None:
                self.write_status("finished")
                self.logger.end_session()
                self.logger.say(farewell(self.record.cfg, self.directory, self.progress))
            elif isinstance(error, (KeyboardInterrupt, SystemExit)):
                self.write_status("interrupted")
                place = f"epoch {self.progress.epoch}" + f", step {self.progress.step}" * (self.progress.batch > 0)
                command = f"{hint('train.py')} {path_typed('resume', self.directory)}"
                self.logger.say(f"interrupted after {place}; go on with: {command}")
            elif isinstance(error, Diverged):
                self.write_status("diverged", str(error))
            else:
                self.write_status("failed", f"{type(error).__name__}: {error}")

    def is_in_place(self) -> bool:
        """Whether its directory is still the one that the run was begun in, and says which run it is."""
        try:
            is_same = os.path.samestat(self.directory.stat(), self.place)
        except OSError:
            return False
        return is_same and (self.directory / "config.yaml").is_file()

    def check_place(self) -> None:
        """Raises Unwritable where the run has lost its directory."""
        if self.world.is_main and not self.is_in_place():
            raise Unwritable(
                f"{here(self.directory)} was moved, removed or emptied while its run trained; "
                f"where its last.pt is now, the run can go on from there: resume=..."
            )

    def write_status(self, state: str, error: str | None = None) -> None:
        write_status(self.directory, state, epoch=self.progress.epoch, step=self.progress.step, error=error)

    # ------------------------------------------------------------------------------------------------- checkpoints

    def restore(
        self,
        parts: Mapping[str, Any],
        *,
        best: Mapping[str, Any],
        **notes: Mapping[str, Any],
    ) -> None:
        """Goes back to the latest whole checkpoint; where there is none, what was logged without one is removed.

        parts: what last.pt is made of, "model", "meter" and "progress" among them; best: what best.pt is; notes: plain data
        that both hold, beside the configuration.
        """
        self.progress: Progress = parts["progress"]
        self.model, self.meter = parts["model"], parts["meter"]
        notes = {**notes, "configuration": fixed_part(self.record.cfg)}
        self.last = Checkpoint({**parts, "log": self.logger}, self.world, **notes)
        self.best = Checkpoint(best, self.world, **notes)
        path, state = self.load_latest()
        if state is None:
            self.logger.load_state_dict({})
            return
        num_saved = self.last.restore(state, path)
        if num_saved != self.world.size:
            self.logger.warn(
                f"going on with trainer.devices={self.world.size} where it was {num_saved}: the same batches, but neither "
                f"dropout nor the last digits will be those of the run that was not stopped"
                + ", and what this epoch has measured so far is left out of its means"
                * (self.progress.batch > 0)
            )
        self.check_best()

    def load_latest(self) -> tuple[Path, dict[str, Any] | None]:
        """(last.pt, what it holds), or what before.pt holds, with a warning; None if there is neither.

        All processes read the same file. Damaged where there are some but none is whole.
        """
        last, before = self.directory / "last.pt", self.directory / "before.pt"
        if not self.world.broadcast(has_checkpoint(self.directory)):
            return last, None
        try:
            state, error = load_tensors(last), None
        except Damaged as found:  # what is whole, but of a newer version, is no reason to go back
            state, error = None, found
        if (damage := next((one for one in self.world.gather(error) if one), None)) is None:
            return last, state
        if not self.world.broadcast(before.exists()):
            raise Damaged(f"{damage}; start a new run, or rerun=true") from damage
        try:
            state = load_tensors(before)
        except Damaged as found:
            raise Damaged(f"{damage}; and {found}; start a new run, or rerun=true") from found
        self.world.gather(None)  # all have read it before it gets another name
        if self.world.is_main:
            self.logger.warn(f"{damage}; going back to the checkpoint before it")
            before.replace(last)  # else the next checkpoint would keep the damaged one as the one before
        return last, state

    def check_best(self) -> None:
        """Warns where the best weights were damaged since they were written; nothing can bring them back."""
        try:
            if self.progress.best_epoch and self.world.is_main:
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

    @contextlib.contextmanager
    def epoch_under_way(self, loader: Any) -> Iterator[Any]:
        """A progress bar over the examples of the epoch under way, or of the rest of it, which takes the time of it."""
        num_before = self.progress.batch * loader.batch_size
        self.epoch_started = time.perf_counter()
        with self.logger.bar(loader.num_examples, f"epoch {self.progress.epoch + 1}", initial=num_before) as bar:
            yield bar
        self.rate = (loader.num_examples - num_before) / (time.perf_counter() - self.epoch_started)

    def log_step(self, loss: float, learner: Any, bar: Any) -> None:
        """The line of a step: the mean loss of the recent ones, the learning rate, the norm of the gradient."""
        known = getattr(learner, "norm", None)  # where it is clipped
        norm = gradient_norm(learner.weights) if known is None else float(known)
        values = {"step/loss": loss, "step/lr": self.progress.learning_rate, "step/gradient_norm": norm}
        self.logger.step(values, self.progress.step, bar)

    def after_epoch(self) -> None:
        """Writes what an epoch that has ended leaves: its line, metrics.json, the checkpoints."""
        self.check_place()
        progress = self.progress
        timing = {
            "seconds": round(time.perf_counter() - self.epoch_started, 4),
            "examples_per_second": round(self.rate, 1),
        }
        position = {"epoch": progress.epoch, "step": progress.step}
        record = position | timing | {"lr": progress.learning_rate} | progress.final
        self.logger.epoch(record, num_epochs=self.record.cfg.trainer.epochs)
        # The best so far, in the group of the metric that tells it: what HPARAMS shows is a tag's latest value.
        self.logger.scalars(
            {progress.monitor.replace("val/", "best/", 1): progress.best[progress.monitor]}, progress.step
        )
        if self.record.cfg.trainer.histograms:
            self.logger.histograms(self.model, progress.step)
        if progress.num_skipped:
            self.logger.say(f"skipped {progress.num_skipped} steps so far, whose fp16 gradient was not finite")
        self.check()
        if self.world.is_main:
            write_json(self.directory / "metrics.json", progress.summary())
        if self.progress.best_epoch == self.progress.epoch:
            self.best.save(self.directory / "best.pt")
        self.save()
        self.stop_if(self.world.latest_max(self.stops.noted or 0))

    def save(self) -> None:
        """Writes last.pt, unless it would hold a number that is not finite, or the directory is another one."""
        self.check()
        self.check_place()
        self.last.save(self.directory / "last.pt", keep=self.directory / "before.pt")
        if self.world.is_main:
            self.write_status("running")

    def check(self) -> None:
        """Raises Diverged where the loss of a step, or a weight, is not finite: the loss is from before the step."""
        self.meter.check(self.progress)
        tensors = [local(tensor) for tensor in self.model.state_dict().values() if tensor.is_floating_point()]
        if tensors and self.world.sum(torch.stack([~tensor.isfinite().all() for tensor in tensors]).sum()) > 0:
            place = self.progress.place(self.progress.step)
            raise Diverged(f"a weight is not finite at {place}, after a gradient that was not; {CALMER}")

    def stop_if(self, signum: int) -> None:
        """Ends the run, all of whose state is on the disk, if a signal has asked a process to stop."""
        if not signum:
            return  # one that was noted during the checkpoint is for after the next step
        if self.world.is_main:
            self.write_status("interrupted")
        self.stops.noted = signum
        self.stops.check()


def clear(directory: Path) -> None:
    """Empties a run directory that this process holds."""
    for name in ("status.json", "last.pt", "before.pt"):  # first: nothing half empty may pass for a run
        (directory / name).unlink(missing_ok=True)
    for path in directory.iterdir():
        if path.name == "train.log":
            os.truncate(path, 0)  # whoever writes it goes on writing it
        elif path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith(".lock") and path.name != LEDGER:  # what was looked at stays looked at
            path.unlink()
