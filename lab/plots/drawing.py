"""What goes wrong in a drawing is one kind of error, which ends no run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
T = TypeVar("T")


class DrawingError(ValueError):
    """Something that cannot be drawn; whoever asked for the picture can go on without it."""


def drawing(function: Callable[P, T]) -> Callable[P, T]:
    """A function that draws: whatever goes wrong in it is a DrawingError, and numbers beyond all bounds are no warning."""

    @functools.wraps(function)
    def draw(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with np.errstate(all="ignore"):
                return function(*args, **kwargs)
        except DrawingError:
            raise
        except Exception as error:  # numbers of any kind come from runs of any kind
            raise DrawingError(f"{function.__name__}: {type(error).__name__}: {error}") from error

    return draw
