"""What a search chooses from: ranges and choices of hyperparameters, as a trial proposes and a user types them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from utils import UserError

if TYPE_CHECKING:  # Optuna takes a second to import; --help and mistakes do without
    import optuna

KEYS_OF_A_RANGE = {"low", "high", "log", "points", "when"}
NEAR_EDGE = 0.02  # of a range's width: a best value closer to an end than this asks for a wider range


@dataclass(frozen=True)
class Dimension:
    """One hyperparameter: a range of numbers, or choices (each as one would type it); `when`: only with these values."""

    key: str
    low: float = 0
    high: float = 0
    log: bool = False
    points: int | None = None
    choices: tuple[Any, ...] = ()
    when: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_integer(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def grid(self) -> list[Any]:
        """All values that a grid search tries."""
        if self.choices:
            return list(self.choices)
        if self.points is None and self.is_integer and not self.log:
            return list(range(int(self.low), int(self.high) + 1))
        if self.points is None:
            raise UserError(f"search.space.{self.key} has no `points`: how many values a grid takes from its range")
        ends = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        steps = [ends[0] + (ends[1] - ends[0]) * i / max(1, self.points - 1) for i in range(self.points)]
        values = [float(f"{math.exp(step) if self.log else step:.6g}") for step in steps]
        return list(dict.fromkeys(round(value) for value in values)) if self.is_integer else values

    def nears_edge(self, value: Any) -> str | None:
        """Which end of the range a value lies on, "low" or "high", if on any."""
        if self.choices:
            return None
        scale = math.log if self.log else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return "low" if share <= NEAR_EDGE else "high" if share >= 1 - NEAR_EDGE else None


def read_space(space: Mapping[str, Any]) -> list[Dimension]:
    """The dimensions of a space, in the order in which they are proposed; UserError for one that cannot be read."""
    dimensions: list[Dimension] = []
    for key, entry in space.items():
        where = f"search.space.{key}"
        if not isinstance(entry, Mapping) or not ({"choices"} <= entry.keys() or {"low", "high"} <= entry.keys()):
            raise UserError(f"{where} is {entry}; it takes {{low: ..., high: ...}} or {{choices: [...]}}")
        allowed = {"choices", "when"} if "choices" in entry else KEYS_OF_A_RANGE
        if unknown := sorted(entry.keys() - allowed):
            raise UserError(f"{where} has the key {unknown[0]}; the keys there are {', '.join(sorted(allowed))}")
        dimension = Dimension(key, **{**entry, "choices": tuple(entry.get("choices", ()))})
        check_dimension(dimension, where, {other.key for other in dimensions})
        dimensions.append(dimension)
    if not dimensions:
        raise UserError("search.space is empty; it takes keys of the configuration, each with a range or choices")
    return dimensions


def check_dimension(dimension: Dimension, where: str, earlier: set[str]) -> None:
    """UserError where a range or a condition makes no sense; `earlier`: the keys proposed before this one."""
    numbers = (dimension.low, dimension.high)
    if any(not isinstance(number, (int, float)) or isinstance(number, bool) for number in numbers):
        raise UserError(f"{where} has low {dimension.low} and high {dimension.high}; they are numbers")
    if not dimension.choices and dimension.low == dimension.high == 0:
        raise UserError(f"{where} has no choices; it takes a list of values")
    if not dimension.choices and not -math.inf < dimension.low < dimension.high < math.inf:
        raise UserError(
            f"{where} goes from {dimension.low} to {dimension.high}; low must be below high, and both finite"
        )
    if dimension.log and dimension.low <= 0:
        raise UserError(f"{where} is logarithmic from {dimension.low}; low must be above 0")
    if any(isinstance(choice, (list, dict)) for choice in dimension.choices):
        raise UserError(f"{where} has a list among its choices; write it as one would type it: '[128,64]'")
    if late := sorted(set(dimension.when) - earlier):
        raise UserError(f"{where} depends on {late[0]}, which does not come before it in the space")


def suggest(trial: optuna.trial.Trial, space: Sequence[Dimension]) -> dict[str, Any]:
    """The values that a trial proposes, by key; those whose condition does not hold are left out."""
    values: dict[str, Any] = {}
    for dimension in space:
        if any(values.get(key) != value for key, value in dimension.when.items()):
            continue
        if dimension.choices:
            values[dimension.key] = trial.suggest_categorical(dimension.key, dimension.choices)
        elif dimension.is_integer:
            values[dimension.key] = trial.suggest_int(
                dimension.key, int(dimension.low), int(dimension.high), log=dimension.log
            )
        else:
            values[dimension.key] = trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.log)
    return values


def first_values(space: Sequence[Dimension]) -> dict[str, Any]:
    """Values of the space with which to try whether its keys exist."""
    values: dict[str, Any] = {}
    for dimension in space:
        if all(values.get(key) == value for key, value in dimension.when.items()):
            values[dimension.key] = dimension.choices[0] if dimension.choices else dimension.low
    return values


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """Values as one would type them; choices of groups first, since keys below them may only be there with them."""
    typed = [f"{key}={as_typed(value)}" for key, value in values.items()]
    return sorted(typed, key=lambda override: "." in override.partition("=")[0])


def as_typed(value: Any) -> str:
    """A value as one would type it on the command line."""
    return json.dumps(value) if isinstance(value, (bool, type(None))) else str(value)
