"""Types and ranges: whether a value is of a type hint, and what a hint allows, in words."""

from __future__ import annotations

import enum
import inspect
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `open_low`, `open_high`: the end itself is out; infinities only with `infinite`."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    infinite: bool = False

    def __contains__(self, value: float) -> bool:
        if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and not self.infinite)):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:.10g}" if self.low > -math.inf else ""
        high = f"{'below' if self.open_high else 'at most'} {self.high:.10g}" if self.high < math.inf else ""
        return " and ".join(part for part in (low, high) if part) or "finite"


class DirectoryName:
    """Names that are safe as a folder's: letters, digits, '.', '_' and '-', not '.' first, at most 120 of them."""

    def __contains__(self, value: str) -> bool:
        return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}", value) is not None

    def __str__(self) -> str:
        return "of letters, digits, '.', '_' and '-' (no '.' first, at most 120)"


class NotEmpty:
    """Text that says something, as an environment variable that is set to nothing does not."""

    def __contains__(self, value: str) -> bool:
        return bool(value.strip())

    def __str__(self) -> str:
        return "that is not empty"


Seed = Annotated[int, Range(0, 2**32 - 1)]
Count = Annotated[int, Range(1)]
Positive = Annotated[float, Range(0, open_low=True)]
Fraction = Annotated[float, Range(0, 1, open_low=True, open_high=True)]
FolderName = Annotated[str, NotEmpty()]


@dataclass(frozen=True)
class Later:
    """Stands, in a check, for an object that is yet to be built."""

    text: str

    def __str__(self) -> str:
        return self.text


def fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        infinite = getattr(arguments[1], "infinite", False) and isinstance(value, float)
        return (infinite or fits(value, arguments[0])) and value in arguments[1]
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
    if hint is str:
        return isinstance(value, str)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        items = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == len(arguments)
        return items and all(fits(item, option) for item, option in zip(value, arguments, strict=True))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        items = isinstance(value, Sequence) and not isinstance(value, str)
        return items and (not arguments or all(fits(item, arguments[0]) for item in value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if hint in (dict, list, tuple):
        return isinstance(value, Mapping if hint is dict else Sequence) and not isinstance(value, str)
    if isinstance(hint, enum.EnumMeta):
        return isinstance(value, str) and value in hint.__members__
    return hint in (Any, inspect.Parameter.empty) or isinstance(value, Later) or not _is_opaque(hint)


def _is_opaque(hint: Any) -> bool:
    """Whether a hint is a class such as Tensor, of which no configuration can hold a value."""
    is_class = isinstance(hint, type) and get_origin(hint) is None
    return is_class and not isinstance(hint, enum.EnumMeta) and hint not in (bool, int, float, str, type(None))


def allowed(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{allowed(arguments[0])} {arguments[1]}"
    if origin in (Union, types.UnionType):
        plain = [option for option in arguments if not _is_opaque(option)]
        return " or ".join(dict.fromkeys(allowed(option) for option in plain))
    if origin is Literal or isinstance(hint, enum.EnumMeta):
        return " or ".join(str(option) for option in arguments or hint.__members__)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list, each {allowed(arguments[0])}" if arguments else "a list"
    if hasattr(hint, "__dataclass_fields__") or origin is dict:
        return "keys of its own"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def shown(value: Any) -> str:
    """A value as a configuration file has it, cut where it is long."""
    text = repr(value) if isinstance(value, str) else str(value)
    return {"None": "null", "True": "true", "False": "false"}.get(text, text[:80])
