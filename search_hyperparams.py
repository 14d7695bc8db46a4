"""Hyperparameter search with Optuna; each trial is an ordinary run directory.

python search_hyperparams.py search=mlp name=mlp_search search.n_trials=40

Optuna proposes, the processes of pool.py train, and what came out is read from the run directories. A trial belongs to the
process that asked for it; when that process is gone, whoever comes next goes on with it where it stopped.
"""

from __future__ import annotations

import contextlib
import math
import platform
import shlex
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from filelock import FileLock, Timeout
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.command import CONF, checked, command, typed_overrides
from conf.schema import SearchConfig, TrainRequest
from model.net import higher_is_better
from run_directory import here, hint, recorded_part
from study import Turn, as_overrides, explained, first_values, open_study, read_space, suggest, without_password
from train import set_up
from utils import Unmet, UserError, read_json, read_records, write_file

if TYPE_CHECKING:  # Optuna takes a second to import; --help and mistakes do without
    import optuna

    from pool import Ended, Job, Running

PRESETS = CONF / "experiment"
FREE = ("trainer.device=", "trainer.images=", "data.root=", "data.num_workers=")  # what processes may differ in
HELD = ".lock.search"  # in a trial's directory; held by the process that asked for the trial, for as long as it has it
SECONDS_ALIVE = 120  # a trial whose process, on another machine, has not said so for so long is taken over


# -------------------------------------------------------------------------------------------------------- what came out


def best_preset(name: str, overrides: Sequence[str], cfg: DictConfig, value: str) -> str:
    """The best trial as a file of conf/experiment/: its groups as defaults, its keys as values."""
    typed = dict(override.split("=", 1) for override in overrides)
    groups = [(key, option) for key, option in typed.items() if OmegaConf.is_dict(OmegaConf.select(cfg, key))]
    keys = [o for o in overrides if o.partition("=")[0] not in dict(groups) and not o.startswith(("name=", "seed="))]
    values = OmegaConf.from_dotlist([f"name={name}_best", *keys])
    defaults = "".join(f"  - override /{group}: {option}\n" for group, option in groups)
    return (
        f"# @package _global_\n# python train.py experiment={name}_best\n# Expect: {value}, as the best trial of the "
        f"search {name}.\n" + ("defaults:\n" + defaults) * bool(groups) + "\n" + OmegaConf.to_yaml(values)
    )


def importances(study: optuna.Study) -> dict[str, float]:
    """How much each hyperparameter matters, as Optuna measures it, in shares of 1, highest first; {} for too few trials."""
    import optuna

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*too small")
            return optuna.importance.get_param_importances(study)
    except (ValueError, RuntimeError, UserWarning):  # too few trials, or none that differ
        return {}


@dataclass
class Taken:
    """A trial that this process has."""

    trial: optuna.trial.Trial
    held: FileLock  # says so to the other processes of this machine
    num_reported: int  # epochs
    is_pruned: bool = False
    is_lost: bool = False  # to another process, which took this one for dead


class Search:
    """One process's part in a study: gives the pool its jobs, and tells Optuna what came out of them."""

    def __init__(
        self, study: optuna.Study, take_turn: Turn, cfg: DictConfig, fixed: Sequence[str], monitor: str
    ) -> None:
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
            trial = Trial(self.study, left[0]._trial_id) if left else self.study.ask()
            directory = self.directory_of(trial.number)
            directory.mkdir(parents=True, exist_ok=True)
            held = FileLock(directory / HELD)
            held.acquire(timeout=10)
            self.taken[directory] = Taken(trial, held, len(left[0].intermediate_values) if left else 0)
            trial.set_user_attr("owner", owner(directory))
            if "overrides" not in trial.user_attrs:
                trial.set_user_attr("overrides", as_overrides(suggest(trial, self.space)))
            return trial

    def is_left(self, frozen: optuna.trial.FrozenTrial) -> bool:
        """Whether nobody trains a trial that is recorded as running: its process, here or elsewhere, is gone."""
        theirs = frozen.user_attrs.get("owner")
        if theirs is None:
            return True  # it ended in the very turn in which it asked
        directory = Path(theirs["directory"])
        if directory in self.taken:
            return False
        if directory.is_dir() and not (is_free(directory / HELD) and is_free(directory / ".lock", seconds=3)):
            return False  # the seconds: a job notices soon that the process that started it is gone
        is_here = directory.is_dir() and theirs["host"] == platform.node()
        is_gone = is_here or time.time() - theirs["alive"] > SECONDS_ALIVE
        return is_gone and self.recorded(frozen.number).state == frozen.state  # it may have ended since we read of it

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
        from pool import Job

        values = trial.user_attrs["overrides"]
        overrides = [*self.fixed, *values]
        label = f"trial {trial.number}: {' '.join(values)}"
        return Job(compose(overrides), self.directory_of(trial.number), overrides, label=label)

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
        recorded = self.recorded(taken.trial.number).user_attrs["owner"]
        taken.is_lost = any(recorded[key] != mine[key] for key in ("host", "directory"))
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

        None for one that has not: one that was killed goes on, one that was interrupted stays open.
        """
        directory = one.job.directory
        taken = self.taken[directory]
        if taken.is_lost:
            return None
        self.report(directory)
        status = read_json(directory / "status.json") if (directory / "status.json").exists() else {}
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
        return None if status.get("state") == "interrupted" else self.tell(directory, "FAIL")

    def tell(self, directory: Path, state: str, value: float | None = None) -> str:
        """Ends a trial in the study, in that state."""
        from optuna.trial import TrialState

        taken = self.taken.pop(directory)
        with contextlib.suppress(RuntimeError):  # a grid ends by stopping a study that runs by itself
            self.study.tell(taken.trial, value, state=TrialState[state], skip_if_finished=True)
        taken.held.release()
        self.num_told += 1
        return state


def owner(directory: Path) -> dict[str, Any]:
    """What says that this process trains in that directory now."""
    return {"host": platform.node(), "directory": str(directory), "alive": time.time()}


def is_free(file: Path, *, seconds: float = 0) -> bool:
    """Whether no process holds that lock, or lets go of it within so many seconds."""
    try:
        with FileLock(file, timeout=seconds):
            return True
    except Timeout:
        return False


@command("search_hyperparams", SearchConfig)
def main(cfg: DictConfig) -> None:
    """Searches, and says what was found."""
    from pool import num_cpus, visible_gpus

    space = read_space(OmegaConf.to_container(cfg.search.space))  # type: ignore[arg-type]
    mine = ("search=", "search.", "name=", "experiments_dir=")
    typed = [override for override in typed_overrides() if not override.lstrip("+").startswith(mine)]
    fixed = [*typed, f"name={cfg.name}", f"experiments_dir={cfg.experiments_dir}"]
    monitor = monitor_of([*fixed, *as_overrides(first_values(space))])
    direction = "maximize" if higher_is_better(monitor) else "minimize"
    folder = Path(cfg.experiments_dir) / cfg.name
    folder.mkdir(parents=True, exist_ok=True)
    url = cfg.search.storage or f"sqlite:///{folder / 'study.db'}"
    sys.argv = [argument.replace(url, without_password(url)) for argument in sys.argv]  # each run records the command
    same = {override.partition("=")[0]: override for override in typed if not override.lstrip("+").startswith(FREE)}
    study, take_turn = open_study(cfg.search, cfg.name, url, direction, space, [*same.values()])
    with explained(url, "the same command goes on from here", Unmet):
        search = Search(study, take_turn, cfg, fixed, monitor)
        gpus = visible_gpus() if cfg.trainer.device in ("auto", "cuda") else []
        num_at_once = max(1, (len(gpus) or num_cpus()) // cfg.trainer.devices)
        run_trials(search, n_jobs=cfg.search.n_jobs or num_at_once, gpus=gpus)
        conclude(study, cfg, search)


def run_trials(search: Search, *, n_jobs: int, gpus: Sequence[str]) -> None:
    """Trains what is left of a study to train, and shows how it is doing."""
    from pool import run_pool
    from sweep import Overview

    overview = Overview(total=search.cfg.search.n_trials, num_finished=0)

    def count() -> None:
        num_ended = sum(trial.state.is_finished() for trial in search.study.get_trials(deepcopy=False))
        overview.num_finished = num_ended - search.num_told  # earlier, or by other processes

    def watch(running: list[Running]) -> None:
        search.watch(running)
        overview.draw(running)

    def end(one: Ended) -> None:
        was_pruned = search.end(one) == "PRUNED"
        count()
        if was_pruned:
            overview.say(f"pruned  {one.job.label}")
        else:
            overview.end(one)

    count()
    run_pool(search, n_jobs=n_jobs, gpus=gpus, on_start=overview.start, on_end=end, on_wait=watch)
    overview.erase()
    for line in search.refused:
        print(f"failed  {line}")


def monitor_of(overrides: Sequence[str]) -> str:
    """The metric that runs of these overrides are judged by; whatever is wrong with them comes out before any trial."""
    return set_up(compose(overrides)).monitor


def compose(overrides: Sequence[str]) -> DictConfig:
    """The checked configuration of a run with these overrides; UserError for what is wrong with them."""
    return recorded_part(checked(hydra.compose("train", list(overrides)), TrainRequest))


def conclude(study: optuna.Study, cfg: DictConfig, search: Search) -> None:
    """Says and writes what the search found: the best trial as a command and a preset, importances, pictures, warnings."""
    states = [trial.state.name.lower().replace("running", "not ended") for trial in study.trials]
    print("trials  " + ", ".join(f"{number} {state}" for state, number in Counter(states).items()))
    if "complete" not in states and "not ended" in states:
        return
    if "complete" not in states:
        raise Unmet(
            f"no trial of {cfg.name} was completed; why is above, and in {here(search.folder)}/trial-*/train.log"
        )
    best = study.best_trial
    value = f"{search.monitor} {best.value:.4f}"
    directory = search.directory_of(best.number)
    common = [override for override in search.fixed if not override.startswith(("name=", "experiments_dir="))]
    overrides = common + best.user_attrs["overrides"]
    preset = PRESETS / f"{cfg.name}_best.yaml"
    text = best_preset(cfg.name, overrides, compose(overrides), value)
    for path in (preset, search.folder / "best.yaml"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode())
    print(f"best    trial {best.number}: {value}  ({' '.join(best.user_attrs['overrides'])})")
    elsewhere = f"{directory.name} on {best.user_attrs['owner']['host']}"
    print(f"        {here(directory) if directory.is_dir() else elsewhere}")
    print(f"again   {hint('train.py')} {' '.join(map(shlex.quote, overrides))}")
    print(f"        {hint('train.py')} experiment={cfg.name}_best")
    for dimension in search.space:
        if dimension.key in best.params and (end := dimension.nears_edge(best.params[dimension.key])):
            print(
                f"warning {dimension.key}={best.params[dimension.key]:.4g} lies on the {end} end of its range "
                f"({dimension.low:g} to {dimension.high:g}); a wider range may hold a better value"
            )
    ranked = importances(study)
    if ranked:
        print("weight  " + ", ".join(f"{key} {share:.2f}" for key, share in ranked.items()))
    draw(study, search, ranked)


def result_of(trial: optuna.trial.FrozenTrial) -> float:
    """The value of a trial that was completed."""
    assert trial.value is not None
    return trial.value


def draw(study: optuna.Study, search: Search, ranked: Mapping[str, float]) -> None:
    """slices.png: the result against each hyperparameter; contour.png: against the two most important numbers."""
    import optuna

    from plots.comparisons import draw_contour, draw_slices
    from plots.figures import save_png

    done = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    by_key = {dimension.key: dimension for dimension in search.space}
    keys = list(ranked) or list(by_key)
    tried = {key: [trial for trial in done if key in trial.params] for key in keys}
    slices = {key: ([t.params[key] for t in trials], [result_of(t) for t in trials]) for key, trials in tried.items()}
    log = {key for key in keys if by_key[key].log}
    figure = draw_slices({key: pair for key, pair in slices.items() if pair[0]}, search.monitor, log=log)
    save_png(figure, search.folder / "slices.png")
    pictures = ["slices.png"]
    numbers = [key for key in keys if not by_key[key].choices][:2]
    both = [trial for trial in done if all(key in trial.params for key in numbers)]
    if len(numbers) == 2 and len(both) >= 4:
        x, y = ([trial.params[key] for trial in both] for key in numbers)
        figure = draw_contour(x, y, [result_of(trial) for trial in both], names=numbers, metric=search.monitor, log=log)
        save_png(figure, search.folder / "contour.png")
        pictures.append("contour.png")
    print(f"written {', '.join(pictures)} and best.yaml in {here(search.folder)}")


if __name__ == "__main__":
    main()
