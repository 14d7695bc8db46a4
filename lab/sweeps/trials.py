"""The trials of a search as jobs of the pool: which one comes next, what is told to Optuna, and whose each of them is.

A trial belongs to the process that asked for it; when that process is gone, whoever comes next goes on with it where it
stopped.
"""

from __future__ import annotations

import contextlib
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from filelock import FileLock
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lab.config import builders
from lab.config.command import checked
from lab.config.schema import TrainRequest
from lab.devices.device import choose_device
from lab.runs.directory import recorded_part
from lab.runs.logger import read_records
from lab.runs.progress import Progress
from lab.sweeps.owners import is_free, owner, owner_of
from lab.sweeps.samplers import NUM_EVEN, even_values
from lab.sweeps.space import as_overrides, read_space, suggest, values_of
from lab.sweeps.study import Turn
from utils import UserError

if TYPE_CHECKING:  # Optuna takes a second to import; --help and mistakes do without
    import optuna

    from lab.sweeps.pool import Ended, Job, Running

HELD = ".lock.search"  # in a trial's directory; held by the process that asked for the trial, for as long as it has it
SECONDS_ALIVE = 120  # a trial whose process, on another machine, has not said so for so long is taken over


@dataclass
class Taken:
    """A trial that this process has."""

    trial: optuna.trial.Trial
    held: FileLock  # says so to the other processes of this machine
    num_reported: int  # epochs
    overrides: Sequence[str] = ()
    problem: UserError | None = None  # with what it was to be trained with
    is_pruned: bool = False
    is_lost: bool = False  # to another process, which took this one for dead


class Search:
    """One process's part in a study: gives the pool its jobs, and tells Optuna what came out of them."""

    def __init__(
        self,
        study: optuna.Study,
        take_turn: Turn,
        cfg: DictConfig,
        fixed: Sequence[str],
        monitor: str,
        *,
        train: Callable[..., dict[str, float]],
        defaults: Mapping[str, Any],
    ) -> None:
        """train: is called with the configuration, directory and overrides of a trial, in a process of its own.

        defaults: the values that the configuration has without a search, as far as they are of its space.
        """
        self.train, self.defaults = train, dict(defaults)
        self.study, self.take_turn, self.cfg, self.fixed, self.monitor = study, take_turn, cfg, list(fixed), monitor
        self.space = read_space(OmegaConf.to_container(cfg.search.space))  # type: ignore[arg-type]
        self.folder = Path(cfg.experiments_dir).absolute() / cfg.name
        self.taken: dict[Path, Taken] = {}  # by directory, until it is told what came out
        self.again: list[Job] = []  # killed ones, to be gone on with
        self.refused: list[str] = []  # trials whose values do not go together, and why
        self.num_told = 0
        self.said_alive = time.time()

    def __iter__(self) -> Iterator[Job]:
        return self

    def __next__(self) -> Job:
        """The trial to start or to go on with now; none, for the time being, where all are ended or under way."""
        if self.again:
            return self.again.pop()
        while (trial := self.take()) is not None:
            try:
                return self.job_of(trial)
            except (HydraException, OmegaConfBaseException, UserError) as error:
                self.refused.append(f"trial {trial.number}: {' '.join(str(error).split())}")
                self.tell(self.directory_of(trial.number), "FAIL")
        raise StopIteration

    def take(self) -> optuna.trial.Trial | None:
        """A trial that another process left, else the next one, proposed in the light of what came out before, or None.

        All in one turn: no trial is taken twice, and there are never more than were asked for.
        """
        from optuna.trial import Trial, TrialState

        with self.take_turn():
            trials = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
            left = [one for one in trials if one.state == TrialState.RUNNING and self.is_left(one)]
            if not left and (len(trials) >= self.cfg.search.n_trials or self.is_whole_grid(trials)):
                return None
            trial = Trial(self.study, left[0]._trial_id) if left else self.ask(len(trials))
            directory = self.directory_of(trial.number)
            directory.mkdir(parents=True, exist_ok=True)
            held = FileLock(directory / HELD)
            held.acquire(timeout=10)
            num_reported = len(left[0].intermediate_values) if left else 0
            taken = self.taken[directory] = Taken(trial, held, num_reported)
            trial.set_user_attr("owner", owner(directory))
            try:
                taken.overrides = self.propose(trial)
                trial.set_user_attr("overrides", taken.overrides)
            except UserError as error:
                taken.problem = error
            return trial

    def ask(self, number: int) -> optuna.trial.Trial:
        """A new trial: the configuration as it is, then some that fill the space evenly, then what the sampler says."""
        sampler = self.cfg.search.sampler
        if any(trial.state.name == "WAITING" for trial in self.study.get_trials(deepcopy=False)):
            return self.study.ask()  # what a process that is gone has put there
        if number == 0 and sampler != "grid":
            self.study.enqueue_trial(self.defaults, user_attrs={"is_default": True})
        elif number <= NUM_EVEN and sampler in ("tpe", "gp", "cmaes"):
            self.study.enqueue_trial(even_values(self.space, number - 1, seed=self.cfg.search.seed))
        return self.study.ask()

    def propose(self, trial: optuna.trial.Trial) -> list[str]:
        """The overrides of a trial, of the space whatever the study holds; none for the configuration as it is."""
        is_default = trial.user_attrs.get("is_default") is True
        space = [one for one in self.space if one.key in self.defaults] if is_default else self.space
        values = suggest(trial, space)
        return [] if is_default else as_overrides(values)

    def overrides_of(self, trial: optuna.trial.FrozenTrial) -> list[str]:
        """What was typed for a trial of the study; UserError where that is not of its space."""
        if trial.user_attrs.get("is_default") is True:
            return []
        try:
            return as_overrides(values_of(trial.params, self.space))
        except UserError as error:
            raise UserError(f"trial {trial.number} of the study: {error}") from error

    def is_left(self, frozen: optuna.trial.FrozenTrial) -> bool:
        """Whether nobody trains a trial that is recorded as running: its process, here or elsewhere, is gone."""
        theirs = owner_of(frozen)
        if theirs is None:
            return True  # it ended in the very turn in which it asked
        directory = self.directory_of(frozen.number)
        if directory in self.taken:
            return False
        # Locks are looked for in our own folder alone: where else there are some, a study from elsewhere would decide.
        is_ours = theirs["directory"] == str(directory) and directory.is_dir()
        if is_ours and not (is_free(directory / HELD) and is_free(directory / ".lock", seconds=3)):
            return False  # the seconds: a job notices soon that the process that started it is gone
        is_here = is_ours and theirs["host"] == platform.node()
        is_gone = is_here or time.time() - theirs["alive"] > SECONDS_ALIVE
        return is_gone and self.recorded(frozen.number).state == frozen.state  # it may have ended since we read of it

    def best(self) -> tuple[str, float, str] | None:
        """(the monitored metric, its best value so far, the trial that has it), if one has been completed."""
        from optuna.trial import TrialState

        if not self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            return None
        best = self.study.best_trial
        return self.monitor, best.value or 0.0, f"trial {best.number}"

    def is_whole_grid(self, trials: Sequence[optuna.trial.FrozenTrial]) -> bool:
        """Whether a grid search has asked for every point of its grid."""
        size = math.prod(len(one.grid()) for one in self.space) if self.cfg.search.sampler == "grid" else math.inf
        return len({trial.system_attrs["grid_id"] for trial in trials if "grid_id" in trial.system_attrs}) >= size

    def recorded(self, number: int) -> optuna.trial.FrozenTrial:
        """A trial as it stands in the study now."""
        return self.study.get_trials(deepcopy=False)[number]

    def directory_of(self, number: int) -> Path:
        return self.folder / f"trial-{number:04d}"

    def job_of(self, trial: optuna.trial.Trial) -> Job:
        """The run of a trial, composed and checked."""
        from lab.sweeps.pool import Job

        directory = self.directory_of(trial.number)
        taken = self.taken[directory]
        if taken.problem is not None:
            raise taken.problem
        overrides, own = [*self.fixed, *taken.overrides], " ".join(taken.overrides) or "the configuration as it is"
        cfg, label = compose(overrides), f"trial {trial.number}: {own}"
        return Job(cfg, directory, overrides, partial(self.train, cfg, directory, overrides), label=label)

    def watch(self, running: list[Running]) -> None:
        """Reports each new epoch of the trials under way; stops those that the pruner gives up, or that are another's."""
        for one in running:
            taken = self.taken[one.job.directory]
            if self.report(one.job.directory) and not taken.is_pruned and taken.trial.should_prune():
                taken.is_pruned = True
                one.stop()
        if time.time() - self.said_alive > SECONDS_ALIVE / 4:
            self.said_alive = time.time()
            for one in running:
                if not self.say_alive(one.job.directory):
                    one.stop()

    def say_alive(self, directory: Path) -> bool:
        """Records that this process still trains a trial; False if another one does by now."""
        taken, mine = self.taken[directory], owner(directory)
        recorded = owner_of(self.recorded(taken.trial.number))
        taken.is_lost = recorded is None or any(recorded[key] != mine[key] for key in ("host", "directory"))
        if not taken.is_lost:
            taken.trial.set_user_attr("owner", mine)
        return not taken.is_lost

    def report(self, directory: Path) -> bool:
        """Tells Optuna of the epochs of a trial that it does not know of; whether there were any."""
        taken = self.taken[directory]
        new = read_records(directory)[taken.num_reported :]
        with contextlib.suppress(RuntimeError):  # where another process has ended it, which took this one for dead
            for record in new:
                taken.trial.report(float(record[self.monitor]), int(record["epoch"]))
        taken.num_reported += len(new)
        return bool(new)

    def end(self, one: Ended) -> str | None:
        """Tells Optuna what came out of a trial, and returns the state that it has ended in.

        None for one that has not: one that was killed goes on, one that a signal has ended stays open.
        """
        directory = one.job.directory
        taken = self.taken[directory]
        if taken.is_lost:
            return None
        self.report(directory)
        kills = taken.trial.user_attrs.get("kills", 0)
        value = math.nan if one.best is None else float(one.best[self.monitor])
        if math.isfinite(value):
            return self.tell(directory, "COMPLETE", value)
        if taken.is_pruned:
            return self.tell(directory, "PRUNED")
        if "SIGKILL" in str(one.error) and kills < 3:
            taken.trial.set_user_attr("kills", kills + 1)
            self.again.append(one.job)
            return None
        return None if one.was_asked else self.tell(directory, "FAIL")

    def tell(self, directory: Path, state: str, value: float | None = None) -> str:
        """Ends a trial in the study, in that state."""
        from optuna.trial import TrialState

        taken = self.taken.pop(directory)
        with contextlib.suppress(RuntimeError):  # a grid ends by stopping a study that runs by itself
            self.study.tell(taken.trial, value, state=TrialState[state], skip_if_finished=True)
        taken.held.release()
        self.num_told += 1
        return state


def compose(overrides: Sequence[str]) -> DictConfig:
    """The checked configuration of a run with these overrides; UserError for what is wrong with them."""
    return recorded_part(checked(hydra.compose("train", list(overrides)), TrainRequest))


def monitor_of(overrides: Sequence[str]) -> tuple[str, bool]:
    """(the metric that runs of these overrides are judged by, whether higher is better); their mistakes come out here."""
    cfg = compose(overrides)
    with contextlib.closing(builders.load_data(cfg, choose_device(cfg.trainer.device))) as data:
        model = builders.build_model(cfg, data.spec)
        builders.build_loss(cfg, data.spec, model)
        builders.build_optimizer(cfg, model)
        progress = Progress.judged_by(cfg.trainer.monitor, builders.build_metrics(cfg, data.spec))
    return progress.monitor, progress.seeks_higher
