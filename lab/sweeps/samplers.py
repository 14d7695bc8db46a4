"""What proposes the trials of a search, and what stops them early: Optuna's samplers and pruners, and even first points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from lab.sweeps.space import Dimension
from utils import UserError

if TYPE_CHECKING:  # Optuna takes a second to import; --help and mistakes do without
    import optuna

NUM_EVEN = 8  # trials after the first that fill the space evenly; a power of 2, as Sobol's points ask for


def make_sampler(options: DictConfig, space: Sequence[Dimension], *, seed: int) -> optuna.samplers.BaseSampler:
    """What proposes the next trial."""
    import optuna.samplers as samplers

    if options.sampler == "grid":
        if any(dimension.when for dimension in space):
            raise UserError("search.sampler=grid tries every combination, and so takes no conditional keys (`when`)")
        # One order for all processes, which know a point of the grid by its place in it.
        return samplers.GridSampler({dimension.key: dimension.grid() for dimension in space}, seed=0)
    if options.sampler == "random":
        return samplers.RandomSampler(seed=seed)
    if options.sampler == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=1 + NUM_EVEN)
    if options.sampler == "cmaes":
        return replayed_cmaes(seed=seed)
    # Trials that run at the same time must not be proposed alike, hence constant_liar.
    return samplers.TPESampler(
        seed=seed, n_startup_trials=1 + NUM_EVEN, multivariate=True, group=True, constant_liar=True
    )


def replayed_cmaes(*, seed: int) -> optuna.samplers.CmaEsSampler:
    """CMA-ES whose state is computed from the results of the trials: Optuna's unpickles it, whoever wrote the study."""
    from optuna._transform import _SearchSpaceTransform
    from optuna.samplers import CmaEsSampler
    from optuna.study import StudyDirection

    class Replayed(CmaEsSampler):
        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            self.searched = study, search_space
            return super().sample_relative(study, trial, search_space)

        def _restore_optimizer(self, completed_trials: list[Any]) -> Any:
            study, search_space = self.searched
            transform = _SearchSpaceTransform(search_space, transform_step=True, transform_0_1=True)
            sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
            optimizer = self._init_optimizer(transform, study.direction)
            while True:  # one generation after the other, each of so many trials as it asks for
                of_generation = self._get_solution_trials(completed_trials, optimizer.generation)
                told = of_generation[: optimizer.population_size]
                if len(told) < optimizer.population_size:
                    return optimizer
                optimizer.tell([(transform.transform(trial.params), sign * (trial.value or 0.0)) for trial in told])

    return Replayed(seed=seed, n_startup_trials=1 + NUM_EVEN)


def make_pruner(options: DictConfig) -> optuna.pruners.BasePruner:
    """What stops a trial that does worse than others did at the same epoch."""
    import optuna.pruners as pruners

    if options.pruner == "median":
        return pruners.MedianPruner()
    return pruners.HyperbandPruner() if options.pruner == "hyperband" else pruners.NopPruner()


def even_values(space: Sequence[Dimension], index: int, *, seed: int) -> dict[str, Any]:
    """The values of one of Sobol's points (Owen-scrambled), which fill a space evenly, however few there are."""
    from scipy.stats import qmc

    points = qmc.Sobol(len(space), scramble=True, rng=seed).random_base2(NUM_EVEN.bit_length() - 1)
    return {dimension.key: dimension.at(share) for dimension, share in zip(space, points[index].tolist(), strict=True)}
