"""Means, differences and quantiles: the numbers against scipy and simulation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from lab.tables.cells import Estimate
from lab.tables.statistics import (
    bartlett,
    difference,
    estimate,
    modulus_quantile,
    pooled_spread,
    range_quantile,
)


@pytest.mark.parametrize("n", [2, 3, 10, 200])
def test_intervals_are_those_of_scipy(n: int) -> None:
    random = np.random.default_rng(n)
    a, b = random.normal(0.9, 0.02, n), random.normal(0.8, 0.1, n + 3)
    ours = estimate(list(a))
    assert ours.half is not None
    expected = scipy.stats.t.interval(0.95, n - 1, loc=a.mean(), scale=scipy.stats.sem(a))
    assert (ours.mean - ours.half, ours.mean + ours.half) == pytest.approx(expected)

    gap = difference(dict(enumerate(a)), dict(enumerate(b)))
    half = gap.half()
    assert gap.paired and gap.n == n and half is not None
    low_high = scipy.stats.ttest_rel(a, b[:n]).confidence_interval()
    assert (gap.mean - half, gap.mean + half) == pytest.approx(tuple(low_high))

    gap = difference(dict(enumerate(a)), dict(enumerate(b, start=1000)))
    half = gap.half()
    assert not gap.paired and gap.n == n and half is not None
    low_high = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert (gap.mean - half, gap.mean + half) == pytest.approx(tuple(low_high))


def test_95_of_100_intervals_hold_the_truth() -> None:
    random = np.random.default_rng(0)
    holds: dict[str, list[bool]] = {"mean": [], "paired": [], "unpaired": []}
    for _ in range(6000):
        seeds = random.normal(0, 1, 5)  # what two rows share when they share seeds
        a, b = 0.7 + seeds + random.normal(0, 0.2, 5), 0.5 + seeds + random.normal(0, 0.2, 5)
        c = random.normal(0.5, 2.0, 8)
        cases = {
            "mean": (0.5, (mean := estimate(list(c))).mean, mean.half),
            "paired": (0.2, (pairs := difference(dict(enumerate(a)), dict(enumerate(b)))).mean, pairs.half()),
            "unpaired": (0.2, (two := difference(dict(enumerate(a)), dict(enumerate(c, start=10)))).mean, two.half()),
        }
        for name, (truth, middle, half) in cases.items():
            assert half is not None
            holds[name].append(abs(middle - truth) <= half)
    for name, held in holds.items():
        assert np.mean(held) == pytest.approx(0.95, abs=0.01), name


def test_pairs_are_found_by_seed_whatever_their_order() -> None:
    gap = difference({"2": 5.0, "0": 1.0, "1": 3.0, "9": 99.0}, {"0": 0.0, "1": 2.0, "2": 4.0})
    assert gap.paired and (gap.mean, gap.half(), gap.n) == (1.0, 0.0, 3)


def test_one_value_allows_no_interval() -> None:
    assert estimate([0.5]) == Estimate(0.5, None, 1)
    for theirs in ({"0": 0.1}, {"1": 0.1}, {"1": 0.1, "2": 0.2}):
        assert difference({"0": 0.5}, theirs).half() is None


def test_equal_values_have_no_spread_whatever_rounding_makes_of_them() -> None:
    assert estimate([0.1 + 0.2] * 3).identical and estimate([0.1 + 0.2] * 3).half == 0
    assert estimate([0.3] * 3, floor=0.01).half == 0.01 and not estimate([0.3, 0.31]).identical
    gap = difference({0: 0.51, 1: 0.61, 2: 0.71}, {0: 0.5, 1: 0.6, 2: 0.7})
    assert gap.error == 0 and gap.mean == pytest.approx(0.01)
    spread = pooled_spread([{0: 0.51, 1: 0.61, 2: 0.71}, {0: 0.5, 1: 0.6, 2: 0.7}], paired=True)
    assert spread and spread.deviation == 0


@pytest.mark.parametrize(("k", "degrees"), [(2, 1), (2, 4), (5, 16), (10, 2), (20, 76), (100, 400)])
def test_the_quantile_of_the_range_is_tukeys(k: int, degrees: int) -> None:
    expected = scipy.stats.studentized_range.ppf(0.95, k, degrees) / np.sqrt(2)
    assert range_quantile(k, degrees) == pytest.approx(expected, rel=1e-4)


def test_the_quantile_of_the_maximum_modulus_is_the_one_in_the_tables() -> None:
    # Hahn and Hendrickson (1971), two-sided 95%: k = 1 is Student's.
    assert modulus_quantile(1, 10) == pytest.approx(scipy.stats.t.ppf(0.975, 10), rel=1e-5)
    random = np.random.default_rng(0)
    for k, degrees in ((5, 20), (20, 80)):
        spread = np.sqrt(random.chisquare(degrees, 400_000) / degrees)
        largest = np.abs(random.normal(size=(400_000, k))).max(axis=1) / spread
        assert modulus_quantile(k, degrees) == pytest.approx(np.quantile(largest, 0.95), rel=5e-3)


def test_the_test_of_equal_spreads_is_scipys() -> None:
    random = np.random.default_rng(0)
    samples = [random.normal(0, scale, n) for scale, n in ((1, 5), (2, 9), (1.5, 7))]
    variances, degrees = np.array([x.var(ddof=1) for x in samples]), np.array([len(x) - 1 for x in samples])
    assert bartlett(variances, degrees) == pytest.approx(scipy.stats.bartlett(*samples).pvalue)


def test_the_spread_of_rows_is_that_of_an_analysis_of_variance() -> None:
    """Against least squares on indicators of rows and seeds, where some rows lack some seeds."""
    random = np.random.default_rng(1)
    rows = [{seed: float(random.normal()) + seed for seed in range(6) if random.uniform() > 0.2} for _ in range(7)]
    cells = [(number, seed, value) for number, row in enumerate(rows) for seed, value in row.items()]
    for paired in (True, False):
        design = np.array([[*np.eye(7)[n], *np.eye(6)[seed] * paired] for n, seed, _ in cells])
        values = np.array([value for _, _, value in cells])
        rest = values - design @ np.linalg.lstsq(design, values)[0]
        degrees = len(values) - np.linalg.matrix_rank(design)
        spread = pooled_spread(rows, paired=paired)
        assert spread and spread.degrees == degrees
        assert spread.deviation == pytest.approx(np.sqrt((rest**2).sum() / degrees), rel=1e-6)


def test_seeds_that_no_rows_share_leave_no_spread_of_pairs() -> None:
    assert pooled_spread([{0: 1.0, 1: 2.0}, {2: 1.0, 3: 2.0}], paired=True) is None
