"""Hyperparameter search with Optuna; each trial is an ordinary run directory.

python search_hyperparams.py search=mlp name=mlp_search search.n_trials=40

Optuna proposes, the processes of lab/sweeps/pool.py train, and what came out is read from the run directories
(lab/sweeps/trials.py). What was found is said and written by lab/sweeps/findings.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lab.config.command import command, typed_overrides
from lab.config.schema import SearchConfig
from lab.sweeps.confirm import confirm, read_confirm
from lab.sweeps.findings import conclude
from lab.sweeps.space import as_overrides, default_values, first_values, read_space
from lab.sweeps.study import explained, open_study, without_password
from lab.sweeps.trials import Search, monitor_of
from train import train
from utils import Unmet

if TYPE_CHECKING:
    from lab.sweeps.pool import Ended, Running

FREE = ("trainer.device=", "trainer.images=", "data.root=", "data.num_workers=")  # what processes may differ in


@command("search_hyperparams", SearchConfig)
def main(cfg: DictConfig) -> None:
    """Searches, and says what was found."""
    from lab.sweeps.pool import num_cpus, visible_gpus

    read_confirm(cfg.search.confirm)  # a mistake is told now
    space = read_space(OmegaConf.to_container(cfg.search.space))  # type: ignore[arg-type]
    mine = ("search=", "search.", "name=", "experiments_dir=")
    typed = [override for override in typed_overrides() if not override.lstrip("+").startswith(mine)]
    fixed = [*typed, f"name={cfg.name}", f"experiments_dir={cfg.experiments_dir}"]
    monitor, higher = monitor_of([*fixed, *as_overrides(first_values(space))])
    direction = "maximize" if higher else "minimize"
    defaults = default_values(space, cfg, HydraConfig.get().runtime.choices)
    folder = Path(cfg.experiments_dir) / cfg.name
    folder.mkdir(parents=True, exist_ok=True)
    url = cfg.search.storage or f"sqlite:///{folder / 'study.db'}"
    sys.argv = [argument.replace(url, without_password(url)) for argument in sys.argv]  # each run records the command
    same = {override.partition("=")[0]: override for override in typed if not override.lstrip("+").startswith(FREE)}
    study, take_turn = open_study(cfg.search, cfg.name, url, direction, space, [*same.values()])
    with explained(url, "the same command goes on from here", Unmet):
        search = Search(study, take_turn, cfg, fixed, monitor, train=train, defaults=defaults)
        gpus = visible_gpus() if cfg.trainer.device in ("auto", "cuda") else []
        num_at_once = max(1, (len(gpus) or num_cpus()) // cfg.trainer.devices)
        n_jobs = cfg.search.n_jobs or num_at_once
        run_trials(search, n_jobs=n_jobs, gpus=gpus)
        confirmed = confirm(search, n_jobs=n_jobs, gpus=gpus, preload=[train.__module__])
        conclude(study, cfg, search, confirmed)


def run_trials(search: Search, *, n_jobs: int, gpus: Sequence[str]) -> None:
    """Trains what is left of a study to train, and shows how it is doing."""
    from lab.sweeps.overview import Overview
    from lab.sweeps.pool import run_pool

    def num_ended() -> int:
        return sum(trial.state.is_finished() for trial in search.study.get_trials(deepcopy=False))

    overview = Overview(total=search.cfg.search.n_trials, num_finished=num_ended(), n_jobs=n_jobs)
    overview.best = search.best()

    def watch(running: list[Running]) -> None:
        search.watch(running)
        overview.draw(running)

    def end(one: Ended) -> None:
        was_pruned = search.end(one) == "PRUNED"
        overview.num_finished = num_ended() - search.num_told  # earlier, or by other processes
        if was_pruned:
            overview.say(f"pruned  {one.job.label}")
        else:
            overview.end(one)

    run_pool(
        search, n_jobs=n_jobs, gpus=gpus, preload=[train.__module__], on_start=overview.start, on_end=end, on_wait=watch
    )
    overview.erase()
    for line in search.refused:
        print(f"failed  {line}")


if __name__ == "__main__":
    main()
