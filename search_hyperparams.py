"""Hyperparameter search with Optuna; each trial is an ordinary run directory.

python search_hyperparams.py search=mlp name=mlp_search search.n_trials=40

Optuna proposes, the pool of sweep.py trains, and what came out is read from the run directories. A trial belongs to the
process that asked for it; when that process is gone, whoever comes next goes on with it where it stopped.
"""

from __future__ import annotations

import contextlib
import platform
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig, OmegaConf

from conf.command import CONF, checked, command, typed_overrides
from conf.schema import SearchConfig, TrainRequest
from evaluate import load_config
from model.net import higher_is_better
from run_directory import here, hint, recorded_part
from study import as_overrides, first_values, open_study, read_space, suggest
from train import set_up
from utils import Unmet, UserError, locked, read_json, read_records, write_file

if TYPE_CHECKING:  # Optuna takes a second to import; --help and mistakes do without
    import optuna

    from sweep import Ended, Job, Running

PRESETS = CONF / "experiment"
SECONDS_ALIVE = 120  # a trial whose process has not said so for so long is taken over


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
    """How much of the results' variance each hyperparameter explains (fANOVA), highest first; {} for too few trials."""
    import optuna

    try:
        return optuna.importance.get_param_importances(study)
    except (ValueError, RuntimeError):  # too few trials, or none that differ
        return {}


class Search:
    """One process's part in a study: proposes trials as jobs for the pool, and tells Optuna what came out of them."""

    def __init__(self, study: optuna.Study, cfg: DictConfig, fixed: Sequence[str], monitor: str) -> None:
        self.study, self.cfg, self.fixed, self.monitor = study, cfg, list(fixed), monitor
        self.space = read_space(OmegaConf.to_container(cfg.search.space))  # type: ignore[arg-type]
        self.folder = Path(cfg.experiments_dir).absolute() / cfg.name
        self.trials: dict[Path, optuna.trial.Trial] = {}  # those under way here, by directory
        self.num_reported: dict[Path, int] = {}
        self.again: list[Job] = []  # killed ones, to be gone on with
        self.pruned: set[Path] = set()
        self.said_alive = 0.0

    def jobs(self) -> Iterator[Job]:
        """The trials that are left to do; the next is proposed when it is asked for, knowing what came out before."""
        from optuna.samplers import GridSampler
        from optuna.trial import Trial, TrialState

        for frozen in self.study.get_trials(states=[TrialState.RUNNING]):
            if self.is_abandoned(frozen):
                yield self.job_of(Trial(self.study, frozen._trial_id))
        sampler = self.study.sampler
        while True:
            num_asked = len(self.study.get_trials(deepcopy=False))
            is_exhausted = isinstance(sampler, GridSampler) and sampler.is_exhausted(self.study)
            if self.again:
                yield self.again.pop()
            elif num_asked >= self.cfg.search.n_trials or is_exhausted:
                return
            else:
                trial = self.study.ask()
                overrides = as_overrides(suggest(trial, self.space))
                trial.set_user_attr("overrides", overrides)
                yield self.job_of(trial)

    def is_abandoned(self, frozen: optuna.trial.FrozenTrial) -> bool:
        """Whether nobody trains a trial that is recorded as running: its process, here or elsewhere, is gone."""
        if "overrides" not in frozen.user_attrs:
            return False
        if frozen.user_attrs.get("host") != platform.node():
            return time.time() - frozen.user_attrs.get("alive", 0) > SECONDS_ALIVE
        try:
            with locked(self.directory_of(frozen.number)):
                return True
        except UserError:
            return False

    def directory_of(self, number: int) -> Path:
        return self.folder / f"trial-{number:04d}"

    def job_of(self, trial: optuna.trial.Trial) -> Job:
        """The run of a trial, composed and checked."""
        from sweep import Job

        overrides = [*self.fixed, *trial.user_attrs["overrides"]]
        directory = self.directory_of(trial.number)
        cfg = compose(overrides)
        trial.set_user_attr("host", platform.node())
        trial.set_user_attr("alive", time.time())
        self.trials[directory] = trial
        label = f"trial {trial.number}: {' '.join(trial.user_attrs['overrides'])}"
        return Job(cfg, directory, overrides, label=label)

    def watch(self, running: list[Running]) -> None:
        """Reports each new epoch of the trials under way, and stops those that the pruner gives up."""
        for one in running:
            directory = one.job.directory
            if self.report(directory) and directory not in self.pruned and self.trials[directory].should_prune():
                self.pruned.add(directory)
                one.stop()
        if time.time() - self.said_alive > SECONDS_ALIVE / 4:
            self.said_alive = time.time()
            for one in running:
                self.trials[one.job.directory].set_user_attr("alive", time.time())

    def report(self, directory: Path) -> bool:
        """Tells Optuna of the epochs of a trial that it does not know of; whether there were any."""
        records = read_records(directory)
        new = records[self.num_reported.get(directory, 0) :]
        for record in new:
            self.trials[directory].report(float(record[self.monitor]), int(record["epoch"]))
        self.num_reported[directory] = len(records)
        return bool(new)

    def end(self, one: Ended) -> None:
        """Tells Optuna what came out of a trial; one that was killed goes on, one that was interrupted stays open."""
        from optuna.trial import TrialState

        directory = one.job.directory
        trial = self.trials[directory]
        self.report(directory)
        status = read_json(directory / "status.json") if (directory / "status.json").exists() else {}
        if one.best is not None:
            self.tell(trial, float(one.best[self.monitor]))
        elif directory in self.pruned:
            self.tell(trial, state=TrialState.PRUNED)
        elif "SIGKILL" in str(one.error) and trial.user_attrs.get("kills", 0) < 3:
            trial.set_user_attr("kills", trial.user_attrs.get("kills", 0) + 1)
            self.again.append(one.job)
        elif status.get("state") != "interrupted":
            self.tell(trial, state=TrialState.FAIL)

    def tell(
        self, trial: optuna.trial.Trial, value: float | None = None, state: optuna.trial.TrialState | None = None
    ) -> None:
        """Ends a trial in the study."""
        with contextlib.suppress(RuntimeError):  # a grid ends by stopping a study that runs by itself
            self.study.tell(trial, value, state=state)


@command("search_hyperparams", SearchConfig)
def main(cfg: DictConfig) -> None:
    """Searches, and says what was found."""
    import sweep

    space = read_space(OmegaConf.to_container(cfg.search.space))  # type: ignore[arg-type]
    mine = ("search=", "search.", "name=", "experiments_dir=")
    fixed = [override for override in typed_overrides() if not override.lstrip("+").startswith(mine)]
    fixed += [f"name={cfg.name}", f"experiments_dir={cfg.experiments_dir}"]
    monitor = monitor_of([*fixed, *as_overrides(first_values(space))])
    direction = "maximize" if higher_is_better(monitor) else "minimize"
    study = open_study(cfg.search, cfg.name, Path(cfg.experiments_dir) / cfg.name, direction, space)
    search = Search(study, cfg, fixed, monitor)
    num_done = len([trial for trial in study.trials if trial.state.is_finished()])
    overview = sweep.Overview(total=max(cfg.search.n_trials, num_done), num_finished=num_done)

    def watch(running: list[Running]) -> None:
        search.watch(running)
        overview.draw(running)

    def end(one: Ended) -> None:
        search.end(one)
        overview.end(one)

    gpus = sweep.visible_gpus() if cfg.trainer.device in ("auto", "cuda") else []
    n_jobs = cfg.search.n_jobs or len(gpus) or sweep.num_cpus()
    sweep.run_pool(search.jobs(), n_jobs=n_jobs, gpus=gpus, on_start=overview.start, on_end=end, on_wait=watch)
    overview.erase()
    conclude(study, cfg, search)


def monitor_of(overrides: Sequence[str]) -> str:
    """The metric that runs of these overrides are judged by; whatever is wrong with them comes out before any trial."""
    return set_up(compose(overrides)).monitor


def compose(overrides: Sequence[str]) -> DictConfig:
    """The checked configuration of a run with these overrides; UserError for what is wrong with them."""
    return recorded_part(checked(hydra.compose("train", list(overrides)), TrainRequest))


def conclude(study: optuna.Study, cfg: DictConfig, search: Search) -> None:
    """Says and writes what the search found: the best trial as a command and a preset, importances, pictures, warnings."""
    import optuna

    states = [trial.state for trial in study.trials]
    counts = {state.name.lower(): states.count(state) for state in optuna.trial.TrialState if state in states}
    print("trials  " + ", ".join(f"{number} {name}" for name, number in counts.items()))
    if not counts.get("complete"):
        raise Unmet(f"no trial of {cfg.name} was completed; why is in {here(search.folder)}/trial-*/train.log")
    best = study.best_trial
    value = f"{search.monitor} {best.value:.4f}"
    directory = search.directory_of(best.number)
    overrides = [o for o in search.fixed if not o.startswith(("name=", "experiments_dir="))] + best.user_attrs[
        "overrides"
    ]
    preset = PRESETS / f"{cfg.name}_best.yaml"
    text = best_preset(cfg.name, overrides, load_config(directory), value)
    for path in (preset, search.folder / "best.yaml"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode())
    print(f"best    trial {best.number}: {value}  ({' '.join(best.user_attrs['overrides'])})")
    print(f"        {here(directory)}")
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

    import plots

    done = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    by_key = {dimension.key: dimension for dimension in search.space}
    keys = list(ranked) or list(by_key)
    tried = {key: [trial for trial in done if key in trial.params] for key in keys}
    slices = {key: ([t.params[key] for t in trials], [result_of(t) for t in trials]) for key, trials in tried.items()}
    log = {key for key in keys if by_key[key].log}
    figure = plots.draw_slices({key: pair for key, pair in slices.items() if pair[0]}, search.monitor, log=log)
    plots.save_png(figure, search.folder / "slices.png")
    pictures = ["slices.png"]
    numbers = [key for key in keys if not by_key[key].choices][:2]
    both = [trial for trial in done if all(key in trial.params for key in numbers)]
    if len(numbers) == 2 and len(both) >= 4:
        x, y = ([trial.params[key] for trial in both] for key in numbers)
        figure = plots.draw_contour(
            x, y, [result_of(trial) for trial in both], names=numbers, metric=search.monitor, log=log
        )
        plots.save_png(figure, search.folder / "contour.png")
        pictures.append("contour.png")
    print(f"written {', '.join(pictures)} and best.yaml in {here(search.folder)}")


if __name__ == "__main__":
    main()
