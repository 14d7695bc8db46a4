"""The best trials of a search once more, on seeds that took no part in choosing them: the best of many flatters itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lab.runs.directory import finished_result
from lab.sweeps.trials import Search, compose
from utils import UserError

if TYPE_CHECKING:  # Optuna takes a second to import; --help and mistakes do without
    import optuna

    from lab.sweeps.pool import Job


def read_confirm(text: str | int | None) -> tuple[int, int]:
    """(how many trials, on how many seeds each) of "3x5"; (0, 0) for none."""
    if text is None:
        return 0, 0
    if not (found := re.fullmatch(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})", str(text))):
        raise UserError(f"search.confirm is {text}; it takes null, or as 3x5: the best 3 trials, each on 5 fresh seeds")
    return int(found[1]), int(found[2])


def confirm(search: Search, *, n_jobs: int, gpus: Sequence[str], preload: Sequence[str]) -> dict[int, list[float]]:
    """Trains what `search.confirm` asks for, as far as it has not been -> {number of a trial: its values on fresh seeds}.

    A sweep below <name>_confirmed, with its table. Nothing before all trials have ended, or of a trial that failed there.
    """
    from lab.sweeps.sweep import run_sweep

    num_trials, num_seeds = read_confirm(search.cfg.search.confirm)
    if not num_trials or any(trial.state.name == "RUNNING" for trial in search.study.get_trials(deepcopy=False)):
        return {}
    seeds = range(search.cfg.seed + 1, search.cfg.seed + 1 + num_seeds)
    jobs = {(trial.number, seed): job_of(search, trial, seed) for trial in best(search, num_trials) for seed in seeds}
    ended = run_sweep(list(jobs.values()), n_jobs=n_jobs, gpus=gpus, preload=preload)
    found = {job.directory: job.best for job in jobs.values()} | {one.job.directory: one.best for one in ended}
    values: dict[int, list[float]] = {}
    for (number, _), job in jobs.items():
        if (metrics := found[job.directory]) is not None:
            values.setdefault(number, []).append(metrics[search.monitor])
    return {number: of_seeds for number, of_seeds in values.items() if len(of_seeds) == num_seeds}


def best(search: Search, num: int) -> list[optuna.trial.FrozenTrial]:
    """The best trials that were completed, the best first, none with the same values as one before it."""
    from optuna.study import StudyDirection

    done = [trial for trial in search.study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    is_higher_better = search.study.direction == StudyDirection.MAXIMIZE
    done.sort(key=lambda trial: trial.value or 0.0, reverse=is_higher_better)
    distinct = {" ".join(search.overrides_of(trial)): trial for trial in reversed(done)}
    return [trial for trial in done if distinct[" ".join(search.overrides_of(trial))] is trial][:num]


def job_of(search: Search, trial: optuna.trial.FrozenTrial, seed: int) -> Job:
    """The run of a trial on another seed."""
    from lab.sweeps.pool import Job

    name = f"{search.cfg.name}_confirmed"
    overrides = [*search.fixed, *search.overrides_of(trial), f"name={name}", f"seed={seed}"]
    directory = Path(search.cfg.experiments_dir).absolute() / name / f"trial-{trial.number:04d}" / f"seed-{seed}"
    cfg = compose(overrides)
    train = partial(search.train, cfg, directory, overrides)
    label = f"trial {trial.number} seed={seed}"
    return Job(cfg, directory, overrides, train, label=label, best=finished_result(cfg, directory))
