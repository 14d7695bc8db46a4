"""Which rows are worse than the best: claims that hold all together, though the best was chosen by looking.

Each row is compared with the observed best. Chosen among k rows that are all alike, the best differs from the worst by
their range, so what a difference has to exceed is the quantile of the studentized range (Tukey-Kramer), with the spread
pooled over all rows. Hsu's comparisons with the best take less, and would call rows worse that tie. See docs/results.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import chdtri, stdtrit

from lab.tables.cells import Estimate
from lab.tables.statistics import (
    Difference,
    Spread,
    Values,
    difference,
    estimate,
    modulus_quantile,
    pooled_spread,
    range_quantile,
    same_seeds,
)

BEST, AMONG_BEST, WORSE, NO_CLAIM = "best", "one of the best", "worse", "no claim"
PRIOR = 0.1  # of the sequential test: the prior precision of an effect in standard deviations, Normal(0, 1 / PRIOR)


class Comparison(NamedTuple):
    """What may be said of a row beside the best one."""

    standing: str
    gap: Estimate | None = None  # from the best
    verdict: str = ""


def compare_with_best(
    rows: Sequence[Values], *, higher: bool, floor: float = 0.0, sequential: bool = False
) -> list[Comparison]:
    """Compares rows of values by seed, the best first, with the best of those that have several values.

    The chance that any row which is as good as the others is called worse is at most 5%; with `sequential` also if one
    looked after every seed. floor: the least half-width of an interval, and what a difference has to exceed.
    """
    several = [number for number, values in enumerate(rows) if len(values) > 1]
    reference = several[0] if several else 0
    family = [rows[number] for number in several]
    paired = len(family) > 1 and same_seeds(family)
    spread = pooled_spread(family, paired=paired) if len(family) > 1 and not sequential else None
    result = []
    for number, values in enumerate(rows):
        gap = rounded(difference(values, rows[reference]), (values, rows[reference]), floor)
        half = None
        if number == reference:
            result.append(Comparison(BEST, verdict="best" if not reference else "best of several seeds"))
            continue
        if gap.error is not None and sequential:
            half = sequential_half(gap, k=len(family)) if gap.paired else None
        elif gap.error is not None and spread is not None:
            half = family_half(gap, (values, rows[reference]), spread, k=len(family))
        result.append(judge(gap, half, (values, rows[reference]), higher=higher, floor=floor))
    return result


def judge(
    gap: Difference, half: float | None, pair: tuple[Values, Values], *, higher: bool, floor: float
) -> Comparison:
    """What may be said of a difference from the best with this half-width."""
    ours, theirs = pair
    if half is None or not math.isfinite(half) or not max(half, floor):
        reason = "with n = 1" if min(map(len, pair)) == 1 else f"with n = {gap.n}" if gap.paired else "with other seeds"
        reason = "without a spread" if half == 0 else reason
        return Comparison(NO_CLAIM, Estimate(gap.mean, None, gap.n), f"no claim {reason}")
    half = max(half, floor)
    is_worse = abs(gap.mean) > half and (gap.mean < 0) == higher
    how = "" if gap.paired else ", unpaired"
    if gap.paired and gap.n < max(len(ours), len(theirs)):
        how = f", {gap.n} pairs"
    standing = WORSE if is_worse else AMONG_BEST
    return Comparison(standing, Estimate(gap.mean, half, gap.n), standing + how)


def rounded(gap: Difference, pair: tuple[Values, Values], floor: float) -> Difference:
    """The difference with an error that is no smaller than that of rounding its values to steps of `floor`."""
    if gap.error is None:
        return gap
    share = 2 / gap.n if gap.paired else sum(1 / len(values) for values in pair)
    return gap._replace(error=max(gap.error, floor * math.sqrt(share / 12)))


def family_half(gap: Difference, pair: tuple[Values, Values], spread: Spread, *, k: int) -> float:
    """The half-width of a difference's interval that holds together with those of all pairs of k rows.

    By the pooled spread or, where that is wider, by the pair's own; where rows differ in spread, the own one is taken
    for each of the k - 1 comparisons at its share of the 5% (Bonferroni).
    """
    assert gap.error is not None
    share = 2 / gap.n if gap.paired else sum(1 / len(values) for values in pair)
    pooled = spread.deviation * math.sqrt(share)
    quantile = range_quantile(k, spread.degrees)
    own = max(quantile, stdtrit(gap.degrees, 1 - 0.025 / (k - 1 if spread.unequal else 1)))
    return float(max(quantile * pooled, own * gap.error))


def sequential_half(gap: Difference, *, k: int, level: float = 0.95) -> float:
    """The half-width of an interval for paired differences that holds after every seed at once, for all pairs of k rows.

    Inverts the test martingale of the t-statistic: the Bayes factor of a normal prior on the effect against none, with
    the right Haar prior on the spread (Lai 1976; Perez-Ortiz et al. 2022, arXiv 2208.07610; Wang and Ramdas 2025).
    Infinite while there are too few seeds.
    """
    assert gap.error is not None
    alpha, n = (1 - level) / (k * (k - 1) / 2), gap.n
    growth = 1 + n / PRIOR
    bound = math.exp(2 / n * (math.log(growth) / 2 - math.log(alpha)))
    if bound >= growth:
        return math.inf
    return math.sqrt((n - 1) * (bound - 1) / (1 - bound / growth)) * gap.error


# --------------------------------------------------------------------------------------------------- the best one's own


def unflattered(rows: Sequence[Values], *, floor: float = 0.0) -> Estimate | None:
    """The first row's mean with an interval that holds whichever of the rows was chosen; None where there is no spread.

    Intervals for all k means at once (the studentized maximum modulus) hold for the chosen one too.
    """
    family = [values for values in rows if len(values) > 1]
    spread = pooled_spread(family, paired=False) if len(rows[0]) > 1 else None
    if spread is None:
        return None
    own = estimate([*rows[0].values()], floor=floor)
    half = modulus_quantile(len(family), spread.degrees) * spread.deviation / math.sqrt(own.n)
    half = max(half, own.half or 0.0)
    return Estimate(own.mean, half, own.n) if half else None


# ------------------------------------------------------------------------------------------------------- how many seeds


class Plan(NamedTuple):
    """What a study could show, from the spread that was seen, each with the ends of its own 95% interval."""

    smallest: tuple[float, float, float]  # difference that is found in 80 of 100 studies with n seeds
    n: int
    needed: tuple[float, float, float]  # seeds for the difference asked for


def plan_seeds(rows: Sequence[Values], wanted: float) -> Plan | None:
    """The smallest difference that these rows can show, and the seeds that the wanted one needs; None without a spread.

    Found is what exceeds the half-width of the comparisons with the best, by Tukey's range and with a power of 80%.
    """
    family = [values for values in rows if len(values) > 1]
    paired = len(family) > 1 and same_seeds(family)
    spread = pooled_spread(family, paired=paired) if len(family) > 1 else None
    if spread is None or not spread.deviation:
        return None
    k, n = len(family), min(map(len, family))
    # An estimated spread is to the true one as the root of a chi-squared to that of its degrees of freedom.
    ends = [spread.deviation * math.sqrt(spread.degrees / chdtri(spread.degrees, tail)) for tail in (0.025, 0.975)]
    deviations = (spread.deviation, *ends)
    smallest = [smallest_difference(deviation, n, k=k, paired=paired) for deviation in deviations]
    needed = [seeds_for(wanted, deviation, k=k, paired=paired) for deviation in deviations]
    return Plan((smallest[0], smallest[1], smallest[2]), n, (needed[0], needed[1], needed[2]))


def smallest_difference(deviation: float, n: float, *, k: int, paired: bool, power: float = 0.8) -> float:
    """The difference between two of k rows that n seeds show with this power, for a spread of one value."""
    degrees = (n - 1) * (k - 1 if paired else k)
    return deviation * math.sqrt(2 / n) * (range_quantile(k, degrees) + float(stdtrit(degrees, power)))


def seeds_for(wanted: float, deviation: float, *, k: int, paired: bool) -> float:
    """The least number of seeds that shows the wanted difference, or infinity beyond a million."""
    low, high = 1, 2
    while smallest_difference(deviation, high, k=k, paired=paired) > wanted:
        low, high = high, 2 * high
        if high > 2**20:
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high) if smallest_difference(deviation, middle, k=k, paired=paired) > wanted else (low, middle)
        )
    return high


def resolution(values: Sequence[float], num_examples: int | None) -> float:
    """The smallest step of a metric that counts examples, 1 / their number; 0 where the values are no such counts."""
    if not num_examples or not len(values):
        return 0.0
    counts = np.asarray(values) * num_examples
    return 1 / num_examples if np.abs(counts - np.round(counts)).max() < 5e-3 else 0.0
