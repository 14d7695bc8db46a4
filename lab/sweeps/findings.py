"""What a search has found: the best trial as a command and a preset, what mattered, pictures, warnings."""

from __future__ import annotations

import shlex
import statistics
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from lab.config.command import CONF
from lab.runs.reading import printable
from lab.sweeps.trials import Search, compose
from utils import Unmet, here, hint, write_file

if TYPE_CHECKING:  # Optuna takes a second to import; --help and mistakes do without
    import optuna

PRESETS = CONF / "experiment"


def conclude(study: optuna.Study, cfg: DictConfig, search: Search, confirmed: Mapping[int, Sequence[float]]) -> None:
    """Says and writes what the search found: the best trial as a command and a preset, importances, pictures, warnings.

    confirmed: the values of trials on fresh seeds, by number; where there are some, the best of their means is the best.
    """
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
    if confirmed:
        higher = study.direction.name == "MAXIMIZE"
        number = (max if higher else min)(confirmed, key=lambda one: statistics.fmean(confirmed[one]))
        best, fresh = study.trials[number], confirmed[number]
        value = f"{search.monitor} {statistics.fmean(fresh):.4f} on average of {len(fresh)} fresh seeds"
    directory = search.directory_of(best.number)
    own = search.overrides_of(best)
    common = [override for override in search.fixed if not override.startswith(("name=", "experiments_dir="))]
    overrides = common + own
    preset = PRESETS / f"{cfg.name}_best.yaml"
    text = best_preset(cfg.name, overrides, compose(overrides), value)
    for path in (preset, search.folder / "best.yaml"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode())
    print(f"best    trial {best.number}: {value}  ({' '.join(own) or 'the configuration as it is'})")
    elsewhere = f"{directory.name} on {printable(str(best.user_attrs.get('owner', {}).get('host')))}"
    print(f"        {here(directory) if directory.is_dir() else elsewhere}")
    print(f"again   {hint('train.py')} {' '.join(map(shlex.quote, overrides))}")
    print(f"        {hint('train.py')} {as_preset(cfg.name, overrides)}")
    for dimension in search.space:
        if dimension.key in best.params and (end := dimension.nears_edge(best.params[dimension.key])):
            print(
                f"warning {dimension.key}={best.params[dimension.key]:.4g} lies on the {end} end of its range "
                f"({dimension.low:g} to {dimension.high:g}); a wider range may hold a better value"
            )
    ranked = importances(study)
    if ranked:
        print("weight  " + ", ".join(f"{key} {share:.2f}" for key, share in ranked.items()))
    if any(trial.params for trial in study.trials if trial.value is not None):
        draw(study, search, ranked)


def best_preset(name: str, overrides: Sequence[str], cfg: DictConfig, value: str) -> str:
    """The best trial as a file of conf/experiment/: its groups as defaults, its keys as values.

    What was left out with `~` no file can leave out: it stays in the command.
    """
    typed = [override.lstrip("+").partition("=") for override in overrides if not override.startswith("~")]
    groups = [(key, option) for key, _, option in typed if OmegaConf.is_dict(OmegaConf.select(cfg, key))]
    keys = ["".join(one) for one in typed if one[0] not in dict(groups) and one[0] not in ("name", "seed")]
    values = OmegaConf.from_dotlist([f"name={name}_best", *keys])
    defaults = "".join(f"  - override /{group}: {option}\n" for group, option in groups)
    return (
        f"# @package _global_\n# python train.py {as_preset(name, overrides)}\n"
        f"# Expect: {value}, as the best trial of the search {name}.\n"
        + ("defaults:\n" + defaults) * bool(groups)
        + f"\n{OmegaConf.to_yaml(values)}"
    )


def as_preset(name: str, overrides: Sequence[str]) -> str:
    """What to type for the best trial of a search by that name."""
    return " ".join([f"experiment={name}_best", *(shlex.quote(one) for one in overrides if one.startswith("~"))])


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
    """slices.png: the result against each hyperparameter; history.png: by trial; importances.png: what mattered."""
    import optuna

    from lab.plots.figures import save_png
    from lab.plots.searches import Slice, draw_history, draw_importances, draw_slices

    done = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    higher = study.direction == optuna.study.StudyDirection.MAXIMIZE
    by_key = {dimension.key: dimension for dimension in search.space}
    slices = {}
    for key in list(ranked) or list(by_key):
        tried, one = [trial for trial in done if key in trial.params], by_key[key]
        ends = {} if one.choices else {"low": float(one.low), "high": float(one.high)}
        if tried:
            values, results = [trial.params[key] for trial in tried], [result_of(trial) for trial in tried]
            slices[key] = Slice(values, results, log=one.log, choices=one.choices, **ends)
    results_by_number = [trial.value if trial in done else None for trial in study.get_trials(deepcopy=False)]
    figures = {"history.png": draw_history(results_by_number, search.monitor, higher=higher)}
    if slices:
        figures["slices.png"] = draw_slices(slices, search.monitor, higher=higher)
    if ranked:
        figures["importances.png"] = draw_importances(ranked, search.monitor)
    for name, figure in figures.items():
        save_png(figure, search.folder / name)
    print(f"written {', '.join(figures)} and best.yaml in {here(search.folder)}")
