"""Intervals for means and differences, and the quantiles that hold for many of them at once: numbers in, numbers out.

Student (1908), Welch (1947); the studentized range is Tukey's (1953), the maximum modulus in Hsu, "Multiple Comparisons"
(1996). Of scipy only `special` is imported: scipy.stats has most of this too, but takes half a second to import.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import chdtrc, gammaln, ndtr, stdtrit

from lab.tables.cells import Estimate

Values = Mapping[Any, float]  # by seed
NOISE = 1e-12  # of a value, to which sums of equal numbers agree


def estimate(values: Sequence[float], *, floor: float = 0.0) -> Estimate:
    """The mean of independent values, with its 95% interval by Student's t, of a half-width of at least `floor`."""
    n = len(values)
    half = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else None
    identical = n > 1 and bool(np.ptp(values) <= NOISE * np.abs(values).max())
    half = half if half is None else max(0.0 if identical else half, floor)
    return Estimate(float(np.mean(values)), half, n, identical=identical)


class Difference(NamedTuple):
    """Ours minus theirs: its mean, the standard error of that, the degrees of freedom, how many values it rests on."""

    mean: float
    error: float | None  # None where a value stands alone
    degrees: float
    n: int
    paired: bool

    def half(self, level: float = 0.95) -> float | None:
        """The half-width of the interval of this one difference."""
        return None if self.error is None else float(stdtrit(self.degrees, (1 + level) / 2) * self.error)


def difference(ours: Values, theirs: Values) -> Difference:
    """The mean of ours minus theirs, both by seed.

    Seeds that both have make pairs. With less than two of them it is Welch's difference of two independent means,
    without an error where either is of one value.
    """
    pairs = [value - theirs[seed] for seed, value in ours.items() if seed in theirs]
    if len(pairs) > 1:
        deviation = float(np.std(pairs, ddof=1))
        error = 0.0 if deviation < NOISE * max(map(abs, ours.values())) else deviation / math.sqrt(len(pairs))
        return Difference(float(np.mean(pairs)), error, len(pairs) - 1, len(pairs), True)
    a, b = np.array([*ours.values()]), np.array([*theirs.values()])
    mean, n = float(a.mean() - b.mean()), min(len(a), len(b))
    if n == 1:
        return Difference(mean, None, 0, 1, False)
    u, v = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    degrees = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1)) if u + v else 1.0
    return Difference(mean, math.sqrt(u + v), float(degrees), n, False)


# ----------------------------------------------------------------------------------------------- the spread of all rows


class Spread(NamedTuple):
    """The standard deviation of one value about its row, pooled over rows, and whether rows differ in it."""

    deviation: float
    degrees: int
    unequal: bool


def pooled_spread(rows: Sequence[Values], *, paired: bool) -> Spread | None:
    """The spread of the values of all rows, that of their seeds taken out if `paired`; None without a degree of freedom.

    unequal: by Bartlett's test at 10%, and where values of a row are all the same.
    """
    seeds = {seed: number for number, seed in enumerate(dict.fromkeys(seed for row in rows for seed in row))}
    of_row = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    of_seed = np.array([seeds[seed] for row in rows for seed in row])
    rest = np.array([value for row in rows for value in row.values()])
    degrees = len(rest) - len(rows)
    if paired:
        degrees -= len(seeds) - num_components(of_row, of_seed)
    for _ in range(200):  # fits rows and seeds in turn; where all rows have all seeds, once is enough
        before = rest
        for group in (of_row, of_seed) if paired else (of_row,):
            rest = rest - (np.bincount(group, rest) / np.bincount(group))[group]
        if np.allclose(rest, before, rtol=0, atol=1e-12 * np.abs(before).max()):
            break
    if degrees < 1:
        return None
    counts, squares = np.bincount(of_row) - 1, np.bincount(of_row, rest**2)
    several = counts > 0
    unequal = several.sum() > 1 and bartlett(squares[several] / counts[several], counts[several]) < 0.1
    deviation = math.sqrt(squares.sum() / degrees)
    scale = max(abs(value) for row in rows for value in row.values())
    return Spread(0.0 if deviation < NOISE * scale else deviation, degrees, bool(unequal))


def num_components(of_row: np.ndarray, of_seed: np.ndarray) -> int:
    """Into how many parts rows fall between which no chain of shared seeds leads."""
    label = np.arange(of_row.max() + 1)
    while True:
        by_seed = np.full(of_seed.max() + 1, len(label))
        np.minimum.at(by_seed, of_seed, label[of_row])
        new = label.copy()
        np.minimum.at(new, of_row, by_seed[of_seed])
        if np.array_equal(new, label):
            return len(np.unique(label))
        label = new


def bartlett(variances: np.ndarray, degrees: np.ndarray) -> float:
    """The p-value of Bartlett's test (1937) that samples of these variances come from populations of one."""
    total, groups = degrees.sum(), len(degrees)
    mean = (degrees * variances).sum() / total
    if not mean:
        return 1.0
    logs = np.log(np.maximum(variances, mean * 1e-12))  # values that are all the same have none
    statistic = total * math.log(mean) - (degrees * logs).sum()
    return float(chdtrc(groups - 1, statistic / (1 + ((1 / degrees).sum() - 1 / total) / (3 * (groups - 1)))))


# ------------------------------------------------------------------------------------------ quantiles for many at once

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(80)
_Z, _DENSITY = 8 * _NODES, 8 * _WEIGHTS * np.exp(-32 * _NODES**2) / math.sqrt(2 * math.pi)  # of a standard normal


def _spreads(degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """(values of an estimated standard deviation of 1 with these degrees of freedom, the weight of each)."""
    width = 1 / math.sqrt(2 * degrees)
    low, high = max(1e-9, 1 - 6 * width), 1 + 7 * width
    s = low + (_NODES + 1) / 2 * (high - low)
    constant = math.log(2) + degrees / 2 * math.log(degrees / 2) - gammaln(degrees / 2)
    density = np.exp(constant + (degrees - 1) * np.log(s) - degrees * s**2 / 2)
    return s, _WEIGHTS * density * (high - low) / 2


def _solve(tail: Callable[[float], float], target: float) -> float:
    """Where a tail, a falling function, has this value."""
    low, high = 0.0, 8.0
    while tail(high) > target:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle) > target else (low, middle)
    return high


@functools.lru_cache(4096)
def range_quantile(k: int, degrees: float, level: float = 0.95) -> float:
    """Tukey's quantile for the largest of all differences of k means, in standard errors of a difference.

    The range of k normal values over an independent estimate of their spread, divided by the root of 2.
    """
    s, weights = _spreads(degrees)

    def tail(q: float) -> float:
        inner = ndtr(_Z[:, None]) - ndtr(_Z[:, None] - q * math.sqrt(2) * s)
        return 1 - float(_DENSITY @ (k * inner ** (k - 1)) @ weights)

    return _solve(tail, 1 - level)


@functools.lru_cache(4096)
def modulus_quantile(k: int, degrees: float, level: float = 0.95) -> float:
    """The quantile for the largest distance of k means from their own truths, in standard errors of a mean."""
    s, weights = _spreads(degrees)
    return _solve(lambda q: 1 - float((1 - 2 * ndtr(-q * s)) ** k @ weights), 1 - level)


def same_seeds(rows: Sequence[Mapping[Hashable, Any]]) -> bool:
    """Whether rows share seeds, two at least of each with the first, so that their differences are those of pairs."""
    return all(len(rows[0].keys() & row.keys()) > 1 for row in rows)
