"""What a table is made of: numbers with their intervals, words, and the rows that hold them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Estimate:
    """A mean of n values and the half-width of its interval, which is None where there can be none.

    digits: the format that both are written in; signed: with a sign before what is positive, too; note: what follows;
    identical: all n values are the same, which no half-width of zero should pass off as precision.
    """

    mean: float
    half: float | None
    n: int
    digits: str = ".4g"
    signed: bool = False
    bold: bool = False
    note: str = ""
    identical: bool = False

    def numbers(self) -> list[str]:
        """The mean, and the half-width where it is to be shown, as text."""
        mean = format(self.mean, "+" * self.signed + self.digits)
        return [mean] if self.half is None or self.identical else [mean, format(self.half, self.digits)]

    def remark(self) -> str:
        """What follows the numbers."""
        return " identical in all seeds" * self.identical + self.note

    def ends(self) -> tuple[float, float] | None:
        """The two ends of the interval, where there is one of any width."""
        return (self.mean - self.half, self.mean + self.half) if self.half else None


Cell = Estimate | str | int | None


@dataclass(frozen=True)
class Table:
    """A header, rows of as many cells, and for each row what it is made from, as (label, path) pairs.

    better: of columns whose better end is known, whether that is the higher one; standings: of the rows, as in Row.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    sources: Sequence[Sequence[tuple[str, str]]] = field(default_factory=list)
    better: dict[str, bool] = field(default_factory=dict)
    standings: Sequence[str] = ()

    def columns_of(self, *kinds: type) -> list[bool]:
        """For each column, whether a cell of it is of these kinds."""
        return [any(isinstance(row[index], kinds) for row in self.rows) for index in range(len(self.header))]


def digits_for(values: Iterable[float]) -> str:
    """The format for a column of numbers: four digits of the largest, or an exponent where small ones would vanish."""
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    if not sizes:
        return ".4f"
    decimals = max(0, 3 - math.floor(math.log10(max(sizes))))
    return f".{decimals}f" if decimals <= 6 and max(sizes) < 1e7 and min(sizes) >= 10.0 ** (1 - decimals) else ".3e"


def words(cell: Cell) -> str:
    """A cell as plain text."""
    if isinstance(cell, Estimate):
        return " ± ".join(cell.numbers()) + cell.remark()
    return "-" if cell is None else str(cell)
