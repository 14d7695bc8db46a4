"""Hyperparameter search with Optuna; each trial is an ordinary run directory.

python search_hyperparams.py search=mlp name=mlp_search search.n_trials=40

Optuna proposes, the processes of pool.py train, and what came out is read from the run directories: trials.py. Here is the
command, and what it says and writes of what was found.
"""

from __future__ import annotations

import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from lab.config.command import CONF, command, typed_overrides
from lab.config.schema import SearchConfig
from lab.runs.directory import here, hint
from lab.sweeps.space import as_overrides, first_values, read_space
from lab.sweeps.study import explained, open_study, without_password
from lab.sweeps.trials import Search, compose
from model.net import higher_is_better
from train import set_up, start
from utils import Unmet, write_file

if TYPE_CHECKING:  # Optuna takes a second to import; --help and mistakes do without
    import optuna

    from lab.sweeps.pool import Ended, Running

PRESETS = CONF / "experiment"
FREE = ("trainer.device=", "trainer.images=", "data.root=", "data.num_workers=")  # what processes may differ in


@command("search_hyperparams", SearchConfig)
def main(cfg: DictConfig) -> None:
    """Searches, and says what was found."""
    from lab.sweeps.pool import num_cpus, visible_gpus

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
        search = Search(study, take_turn, cfg, fixed, monitor, train=start)
        gpus = visible_gpus() if cfg.trainer.device in ("auto", "cuda") else []
        num_at_once = max(1, (len(gpus) or num_cpus()) // cfg.trainer.devices)
        run_trials(search, n_jobs=cfg.search.n_jobs or num_at_once, gpus=gpus)
        conclude(study, cfg, search)


def run_trials(search: Search, *, n_jobs: int, gpus: Sequence[str]) -> None:
    """Trains what is left of a study to train, and shows how it is doing."""
    from lab.sweeps.pool import run_pool
    from lab.sweeps.sweep import Overview

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
    run_pool(
        search, n_jobs=n_jobs, gpus=gpus, preload=[start.__module__], on_start=overview.start, on_end=end, on_wait=watch
    )
    overview.erase()
    for line in search.refused:
        print(f"failed  {line}")


def monitor_of(overrides: Sequence[str]) -> str:
    """The metric that runs of these overrides are judged by; whatever is wrong with them comes out before any trial."""
    return set_up(compose(overrides)).monitor


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


def result_of(trial: optuna.trial.FrozenTrial) -> float:
    """The value of a trial that was completed."""
    assert trial.value is not None
    return trial.value


def draw(study: optuna.Study, search: Search, ranked: Mapping[str, float]) -> None:
    """slices.png: the result against each hyperparameter; contour.png: against the two most important numbers."""
    import optuna

    from lab.plots.comparisons import draw_contour, draw_slices
    from lab.plots.figures import save_png

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
