"""What a search chooses from: ranges and choices of hyperparameters, as a trial proposes and a user types them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

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

    def at(self, share: float) -> Any:
        """The value at that share, from 0 to 1, of the range on its own scale, or of the choices."""
        if self.choices:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        if self.is_integer and not self.log:
            return min(int(self.low + share * (self.high - self.low + 1)), int(self.high))
        ends = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = ends[0] + share * (ends[1] - ends[0])
        value = min(max(math.exp(value) if self.log else value, self.low), self.high)
        return round(value) if self.is_integer else value

    def holds(self, value: Any) -> bool:
        """Whether a value is one that this hyperparameter may take."""
        if self.choices:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        is_number = isinstance(value, int if self.is_integer else (int, float)) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high

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
        try:
            value = suggest_one(trial, dimension)
        except ValueError as error:  # of a trial that somebody began with another range
            raise UserError(
                f"{dimension.key} was not taken from this space ({' '.join(str(error).split())})"
            ) from error
        if not dimension.holds(value):
            raise UserError(f"{dimension.key}={value!r} is not of this space")
        values[dimension.key] = value
    return values


def suggest_one(trial: optuna.trial.Trial, dimension: Dimension) -> Any:
    """One value that a trial proposes; of a trial that has it already, that one."""
    key, low, high, log = dimension.key, dimension.low, dimension.high, dimension.log
    if dimension.choices:
        return trial.suggest_categorical(key, dimension.choices)
    if dimension.is_integer:
        return trial.suggest_int(key, int(low), int(high), log=log)
    return trial.suggest_float(key, low, high, log=log)


def first_values(space: Sequence[Dimension]) -> dict[str, Any]:
    """Values of the space with which to try whether its keys exist."""
    values: dict[str, Any] = {}
    for dimension in space:
        if all(values.get(key) == value for key, value in dimension.when.items()):
            values[dimension.key] = dimension.choices[0] if dimension.choices else dimension.low
    return values


def default_values(space: Sequence[Dimension], cfg: DictConfig, groups: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration, by key, as far as they are of the space; groups: the options that it is made of."""
    values: dict[str, Any] = {}
    for dimension in space:
        value = groups.get(dimension.key) or OmegaConf.select(cfg, dimension.key)
        if OmegaConf.is_config(value):
            value = "[" + ",".join(map(as_typed, value)) + "]" if OmegaConf.is_list(value) else None
        if dimension.choices:
            value = next((one for one in dimension.choices if as_typed(one).replace(" ", "") == as_typed(value)), None)
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and not dimension.is_integer
            and not dimension.choices
        ):
            value = float(value)
        if dimension.holds(value):
            values[dimension.key] = value
    return values


def values_of(params: Mapping[str, Any], space: Sequence[Dimension]) -> dict[str, Any]:
    """The values that a trial was given, by key; UserError where one is not of the space, whoever wrote it."""
    values = {dimension.key: params[dimension.key] for dimension in space if dimension.key in params}
    for dimension in space:
        if dimension.key in values and not dimension.holds(values[dimension.key]):
            raise UserError(f"{dimension.key}={values[dimension.key]!r} is not of this space")
    return values


def described(space: Sequence[Dimension]) -> str:
    """A space as JSON, in the words in which its file has it."""
    entries = {}
    for dimension in space:
        own: dict[str, Any] = {"choices": list(dimension.choices)} if dimension.choices else {}
        if not dimension.choices:
            own = {"low": dimension.low, "high": dimension.high, "log": dimension.log, "points": dimension.points}
        entries[dimension.key] = {
            key: value
            for key, value in {**own, "when": dict(dimension.when)}.items()
            if value or key in ("low", "high")
        }
    return json.dumps(entries)


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """Values as one would type them; choices of groups first, since keys below them may only be there with them."""
    typed = [f"{key}={as_typed(value)}" for key, value in values.items()]
    return sorted(typed, key=lambda override: "." in override.partition("=")[0])


def as_typed(value: Any) -> str:
    """A value as one would type it on the command line."""
    return json.dumps(value) if isinstance(value, (bool, type(None))) else str(value)
