"""Comparisons with the best: how often they say what is not so, over many studies, and what they say at all."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from lab.tables.cells import Estimate
from lab.tables.comparisons import (
    compare_with_best,
    plan_seeds,
    resolution,
    seeds_for,
    sequential_half,
    smallest_difference,
    unflattered,
)
from lab.tables.statistics import difference

Study = list[dict[int, float]]


def make_study(random: np.random.Generator, k: int, n: int, *, paired: bool, spreads: float = 1.0) -> np.ndarray:
    """Values [k, n] of k equal variants; paired: with an effect of each seed on all of them."""
    values = random.normal(size=(k, n)) * np.geomspace(1, spreads, k)[:, None]
    return values + 2 * random.normal(size=n) * paired


def as_rows(values: np.ndarray, *, paired: bool) -> Study:
    """Rows by seed, the best first; not paired: each row has seeds of its own."""
    order = np.argsort(-values.mean(axis=1))
    return [{s + 1000 * int(r) * (not paired): float(x) for s, x in enumerate(values[r])} for r in order]


def share_with_false_claims(k: int, n: int, *, studies: int, paired: bool, spreads: float = 1.0) -> float:
    """The share of studies of equal variants in which one or more are called worse."""
    random = np.random.default_rng(k)
    wrong = 0
    for _ in range(studies):
        rows = as_rows(make_study(random, k, n, paired=paired, spreads=spreads), paired=paired)
        wrong += any(one.standing == "worse" for one in compare_with_best(rows, higher=True))
    return wrong / studies


def power(k: int, n: int, gap: float, *, studies: int, paired: bool) -> float:
    """The share of studies in which the one variant is called worse that is, by `gap` standard deviations."""
    random = np.random.default_rng(k)
    found = 0
    for _ in range(studies):
        values = make_study(random, k, n, paired=paired)
        values[-1] -= gap
        rows = as_rows(values, paired=paired)
        worst = [set(row.values()) == set(values[-1]) for row in rows].index(True)
        found += compare_with_best(rows, higher=True)[worst].standing == "worse"
    return found / studies


def test_equal_variants_are_rarely_called_worse() -> None:
    """At 95% for each comparison by itself it is 26% of studies of 5 variants, and 55% of 10."""
    for paired in (False, True):
        assert share_with_false_claims(5, 5, studies=400, paired=paired) <= 0.075
        assert share_with_false_claims(10, 5, studies=200, paired=paired, spreads=10) <= 0.08


@pytest.mark.slow
@pytest.mark.parametrize(("k", "paired"), [*product((2, 5, 10, 20), (False, True))])
def test_over_ten_thousand_studies_of_equal_variants_at_most_one_in_twenty_has_a_false_claim(
    k: int, paired: bool
) -> None:
    assert share_with_false_claims(k, 5, studies=10_000, paired=paired) <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize(("k", "paired"), [*product((2, 5, 10, 20), (False, True))])
def test_variants_whose_spreads_differ_are_not_called_worse_for_it(k: int, paired: bool) -> None:
    """Spreads from 1 to 10, means all equal: the pooled spread alone would be wrong in 29% of studies of 20."""
    assert share_with_false_claims(k, 5, studies=4_000, paired=paired, spreads=10) <= 0.065


def test_what_is_much_worse_is_found() -> None:
    for paired in (False, True):
        assert power(5, 5, 4.0, studies=100, paired=paired) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("k", "least"), [(2, 0.63), (5, 0.64), (10, 0.63), (20, 0.58)])
def test_the_power_is_what_the_documentation_says(k: int, least: float) -> None:
    assert power(k, 5, 2.0, studies=2_000, paired=True) >= least
    assert power(k, 5, 3.0, studies=2_000, paired=True) >= 0.88


# ------------------------------------------------------------------------------------------------------ looked at often


def share_with_claims_after_any_seed(k: int, *, most: int, studies: int) -> float:
    """The share of studies of equal variants in which one is called worse after one of the seeds from 2 to `most`."""
    random = np.random.default_rng(k)
    wrong = 0
    for _ in range(studies):
        values = make_study(random, k, most, paired=True)
        looks = (as_rows(values[:, :n], paired=True) for n in range(2, most + 1))
        wrong += any(
            c.standing == "worse" for rows in looks for c in compare_with_best(rows, higher=True, sequential=True)
        )
    return wrong / studies


def test_looking_after_every_seed_misleads_no_more_often() -> None:
    assert share_with_claims_after_any_seed(2, most=20, studies=300) <= 0.075


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 5, 10])
def test_over_thousands_of_studies_looked_at_after_every_seed(k: int) -> None:
    assert share_with_claims_after_any_seed(k, most=30, studies=10_000 if k == 2 else 2_000) <= 0.06


def test_the_interval_after_every_seed_is_where_the_bayes_factor_is_twenty() -> None:
    """Against the integral that the closed form solves, of the noncentral t over the prior of the effect."""
    from scipy import integrate, stats

    n = 12
    gap = difference({seed: float(seed % 5) for seed in range(n)}, dict.fromkeys(range(n), 1.0))
    assert gap.error
    t = sequential_half(gap, k=2) / gap.error
    prior = stats.norm(0, np.sqrt(10))
    marginal, _ = integrate.quad(lambda d: stats.nct.pdf(t, n - 1, d * np.sqrt(n)) * prior.pdf(d), -15, 15, limit=200)
    assert marginal / stats.t.pdf(t, n - 1) == pytest.approx(20, rel=1e-3)


def test_too_few_seeds_or_none_in_common_allow_no_claim_after_every_seed() -> None:
    apart = [{0: 9.0, 1: 9.1}, {2: 1.0, 3: 1.1}]
    assert [c.verdict for c in compare_with_best(apart, higher=True, sequential=True)] == [
        "best",
        "no claim with other seeds",
    ]
    two = [{0: 9.0, 1: 9.1}, {0: 1.0, 1: 1.2}]
    assert compare_with_best(two, higher=True, sequential=True)[1].verdict == "no claim with n = 2"


# --------------------------------------------------------------------------------------------------------- what is said


@pytest.mark.parametrize("higher", [True, False])
def test_a_row_is_worse_in_the_direction_of_its_metric(higher: bool) -> None:
    sign = 1 if higher else -1
    rows = [{seed: sign * (level + 0.01 * seed**2) for seed in range(4)} for level in (0.9, 0.895, 0.5)]
    rows[1][2] += 0.01
    compared = compare_with_best(rows, higher=higher)
    assert [one.standing for one in compared] == ["best", "one of the best", "worse"]
    assert compared[2].gap and compared[2].gap.mean * sign == pytest.approx(-0.4)


def test_a_row_below_the_best_is_never_better() -> None:
    """Its seeds are the easy ones: on them it is ahead of the best, on the whole it is behind."""
    rows = [{0: 0.70, 1: 0.71, 2: 0.99, 3: 0.98}, {0: 0.72, 1: 0.7303}]
    best, other = compare_with_best(rows, higher=True)
    assert other.gap and other.gap.mean == pytest.approx(0.02, abs=1e-3)
    assert (best.verdict, other.standing, other.verdict) == ("best", "one of the best", "one of the best, 2 pairs")


def test_a_row_of_one_seed_is_neither_compared_nor_compared_with() -> None:
    rows = [{0: 0.99}, {0: 0.9, 1: 0.91, 2: 0.92}, {0: 0.5, 1: 0.52, 2: 0.53}]
    verdicts = [one.verdict for one in compare_with_best(rows, higher=True)]
    assert verdicts == ["no claim with n = 1", "best of several seeds", "worse"]
    assert [one.verdict for one in compare_with_best([{0: 0.9}, {0: 0.5}], higher=True)] == [
        "best",
        "no claim with n = 1",
    ]


def test_equal_differences_claim_no_more_than_the_resolution_of_the_split() -> None:
    step = 1 / 143
    one_off = [{seed: (130 + seed) * step for seed in range(3)}, {seed: (129 + seed) * step for seed in range(3)}]
    assert compare_with_best(one_off, higher=True)[1].verdict == "no claim without a spread"
    compared = compare_with_best(one_off, higher=True, floor=step)[1]
    assert compared.standing == "one of the best" and compared.gap and compared.gap.half and compared.gap.half >= step
    far_off = [one_off[0], {seed: (100 + seed) * step for seed in range(3)}]
    assert compare_with_best(far_off, higher=True, floor=step)[1].standing == "worse"
    after_three = compare_with_best([one_off[0], far_off[1]], higher=True, floor=step, sequential=True)[1]
    assert after_three.gap and after_three.gap.half and after_three.gap.half > 3 * step


def test_the_resolution_is_of_metrics_that_count_examples_alone() -> None:
    counts = np.float32([130 / 143, 131 / 143, 0.0]).tolist()
    assert resolution(counts, 143) == 1 / 143
    assert resolution(counts, None) == resolution([0.3141, 0.2718], 143) == resolution([], 143) == 0


# ----------------------------------------------------------------------------------------- the best one, and how many seeds


def coverage_of_the_best(k: int, interval: Callable[[Study], Estimate | None], studies: int) -> float:
    random = np.random.default_rng(0)
    holds = []
    for _ in range(studies):
        estimate = interval(as_rows(make_study(random, k, 5, paired=False), paired=False))
        assert estimate and estimate.half
        holds.append(abs(estimate.mean) <= estimate.half)
    return float(np.mean(holds))


def test_the_interval_of_the_best_row_allows_for_its_being_chosen() -> None:
    """Ten equal variants with a mean of 0: the best one's own interval of Student's t leaves it out more often."""
    assert coverage_of_the_best(10, unflattered, 600) >= 0.94
    assert unflattered([{0: 1.0}, {0: 0.5, 1: 0.4}]) is None and unflattered([{0: 1.0, 1: 1.0}] * 2) is None


def test_a_plan_is_what_a_simulation_shows() -> None:
    """It is exact for two rows; of more the best is a little better than it is, and the difference easier to find."""
    least = smallest_difference(1.0, 6, k=2, paired=True)
    assert power(2, 6, least, studies=500, paired=True) == pytest.approx(0.8, abs=0.05)
    k = 5
    assert power(k, 6, smallest_difference(1.0, 6, k=k, paired=True), studies=200, paired=True) > 0.75
    assert smallest_difference(1.0, seeds_for(0.5, 1.0, k=k, paired=True), k=k, paired=True) <= 0.5
    assert smallest_difference(1.0, seeds_for(0.5, 1.0, k=k, paired=True) - 1, k=k, paired=True) > 0.5


def test_a_plan_knows_how_little_it_knows() -> None:
    random = np.random.default_rng(3)
    rows = as_rows(make_study(random, 3, 5, paired=True), paired=True)
    plan = plan_seeds(rows, 1.0)
    assert plan and plan.n == 5
    for middle, low, high in (plan.smallest, plan.needed):
        assert low < middle < high
    assert plan_seeds([{0: 1.0, 1: 2.0}], 0.1) is None and plan_seeds([{0: 1.0, 1: 1.0}] * 2, 0.1) is None
