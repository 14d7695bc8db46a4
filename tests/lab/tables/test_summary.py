"""Rows of runs that agree, and what may be said of them: the numbers against scipy and simulation."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import yaml

from lab.tables.cells import Estimate
from lab.tables.statistics import difference, estimate
from lab.tables.summary import summarize

MLP = {"_target_": "model.net.MLP", "hidden_sizes": [128, 64], "dropout": 0.0}
CNN = {"_target_": "model.net.CNN", "channels": [16, 32], "dropout": 0.25}


def make_run(
    root: Path,
    value: float = 0.9,
    *,
    path: str | None = None,
    seed: int = 0,
    lr: Any = 0.01,
    model: dict[str, Any] = MLP,
    data: str = "digits",
    state: str = "finished",
    monitor: str = "val/accuracy",
    test: float | None = None,
    minute: int = 0,
    num_epochs: int = 3,
    **keys: Any,
) -> Path:
    """A run directory as train.py leaves it, whose best epoch, the last but one, has this value."""
    directory = root / (path or f"{len(list(root.glob('run*')))}".rjust(4, "0").join(["run", ""]))
    directory.mkdir(parents=True)
    config: dict[str, Any] = {
        "name": "study",
        "seed": seed,
        "resume": None,
        "experiments_dir": str(root),
        "data": {"root": "data", "batch_size": 64, "_target_": f"model.datasets.{data}"},
        "model": model,
        "optimizer": {"_target_": "torch.optim.Adam", "lr": lr, "betas": [0.9, 0.999]},
        "trainer": {"epochs": num_epochs, "monitor": None, "max_grad_norm": float("inf"), "images": True},
    }
    for key, item in keys.items():
        group, _, name = key.partition("__")
        (config[group] if name else config).update({name or key: item})
    (directory / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    status = {"state": state, "epoch": num_epochs, "time": f"2026-01-31T12:{minute:02}:00+00:00", "error": None}
    (directory / "status.json").write_text(json.dumps(status))
    best = max(1, num_epochs - 1)
    offsets = [-0.1 * abs(epoch - best) for epoch in range(1, num_epochs + 1)]
    sign = -1 if monitor.endswith(("loss", "rmse")) else 1
    lines = [
        {"epoch": i, "step": 10 * i, "seconds": 1.0, "val/loss": 1 - value, monitor: value + sign * offset}
        for i, offset in enumerate(offsets, start=1)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if state == "finished":
        record = {"monitor": monitor, "best": lines[best - 1], "final": lines[-1]}
        (directory / "metrics.json").write_text(json.dumps(record))
    if test is not None:
        name = monitor.replace("val/", "test/")
        (directory / "evaluation.json").write_text(json.dumps({"split": "test", "epoch": best, name: test}))
    return directory


def make_study(root: Path, rows: dict[float, list[float]], **keys: Any) -> None:
    """For each learning rate, runs with the seeds 0, 1, ... and these values."""
    for lr, values in rows.items():
        for seed, value in enumerate(values):
            make_run(root, value, lr=lr, seed=seed, **keys)


def make_unbegun(root: Path, name: str, error: str | None) -> Path:
    """What is left of a sweep's job that ended before its run began."""
    directory = root / name / "seed-0"
    directory.mkdir(parents=True)
    (directory / "train.log").write_text("Traceback (most recent call last): ...")
    if error is not None:
        status = {"state": "failed", "epoch": 0, "step": 0, "time": "2026-01-31T12:00:00+00:00", "error": error}
        (directory / "status.json").write_text(json.dumps(status))
    return directory


# ---------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("n", [2, 3, 10, 200])
def test_intervals_are_those_of_scipy(n: int) -> None:
    random = np.random.default_rng(n)
    a, b = random.normal(0.9, 0.02, n), random.normal(0.8, 0.1, n + 3)
    ours = estimate(list(a))
    assert ours.half is not None
    expected = scipy.stats.t.interval(0.95, n - 1, loc=a.mean(), scale=scipy.stats.sem(a))
    assert (ours.mean - ours.half, ours.mean + ours.half) == pytest.approx(expected)

    gap, paired = difference(dict(enumerate(a)), dict(enumerate(b)))
    assert paired and gap.n == n and gap.half is not None
    low_high = scipy.stats.ttest_rel(a, b[:n]).confidence_interval()
    assert (gap.mean - gap.half, gap.mean + gap.half) == pytest.approx(tuple(low_high))

    gap, paired = difference(dict(enumerate(a)), dict(enumerate(b, start=1000)))
    assert not paired and gap.n == n and gap.half is not None
    low_high = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert (gap.mean - gap.half, gap.mean + gap.half) == pytest.approx(tuple(low_high))


def test_95_of_100_intervals_hold_the_truth() -> None:
    random = np.random.default_rng(0)
    holds: dict[str, list[bool]] = {"mean": [], "paired": [], "unpaired": []}
    for _ in range(6000):
        seeds = random.normal(0, 1, 5)  # what two rows share when they share seeds
        a, b = 0.7 + seeds + random.normal(0, 0.2, 5), 0.5 + seeds + random.normal(0, 0.2, 5)
        c = random.normal(0.5, 2.0, 8)
        cases = {
            "mean": (estimate(list(c)), 0.5),
            "paired": (difference(dict(enumerate(a)), dict(enumerate(b)))[0], 0.2),
            "unpaired": (difference(dict(enumerate(a)), dict(enumerate(c, start=10)))[0], 0.2),
        }
        for name, (interval, truth) in cases.items():
            assert interval.half is not None
            holds[name].append(abs(interval.mean - truth) <= interval.half)
    for name, held in holds.items():
        assert np.mean(held) == pytest.approx(0.95, abs=0.01), name


def test_pairs_are_found_by_seed_whatever_their_order() -> None:
    gap, paired = difference({"2": 5.0, "0": 1.0, "1": 3.0, "9": 99.0}, {"0": 0.0, "1": 2.0, "2": 4.0})
    assert paired and (gap.mean, gap.half, gap.n) == (1.0, 0.0, 3)


def test_one_value_allows_no_interval_and_no_claim() -> None:
    assert estimate([0.5]) == Estimate(0.5, None, 1)
    for theirs in ({"0": 0.1}, {"1": 0.1}, {"1": 0.1, "2": 0.2}):
        gap, paired = difference({"0": 0.5}, theirs)
        assert gap.half is None
        assert verdict(gap, paired=paired, higher=True) == "no claim with n = 1"


@pytest.mark.parametrize(
    ("mean", "half", "higher", "words"),
    [
        (-0.1, 0.2, True, "not separable with n = 3"),
        (0.0, 0.0, True, "not separable with n = 3"),
        (-0.2, 0.1, True, "worse"),
        (0.2, 0.1, False, "worse"),
        (0.2, 0.1, True, "better"),
    ],
)
def test_what_may_be_said(mean: float, half: float, higher: bool, words: str) -> None:
    assert verdict(Estimate(mean, half, 3), paired=True, higher=higher) == words
    assert verdict(Estimate(mean, half, 3), paired=False, higher=higher) == f"{words}, unpaired"


# ------------------------------------------------------------------------------------------------------------ the rows


def test_runs_that_differ_in_their_seed_alone_are_one_row_and_the_best_is_on_top(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.80, 0.81, 0.82], 0.01: [0.90, 0.92, 0.94], 0.001: [0.89, 0.93, 0.93]})
    summary = summarize(tmp_path)
    assert (summary.names, summary.metric, summary.notes) == (["lr"], "val/accuracy", [])
    assert [row.values for row in summary.rows] == [["0.01"], ["0.001"], ["0.1"]]
    assert [row.result.n for row in summary.rows if row.result] == [3, 3, 3]
    assert summary.rows[0].result and summary.rows[0].result.mean == pytest.approx(0.92)
    assert [row.verdict for row in summary.rows] == ["best", "not separable with n = 3", "worse"]


def test_a_loss_is_better_when_lower_and_so_is_what_unknown_metrics_show_to_be(tmp_path: Path) -> None:
    for monitor, best in (("val/loss", "0.1"), ("val/rmse", "0.1"), ("val/r2", "0.01"), ("val/f1", "0.01")):
        make_study(tmp_path / monitor[4:], {0.1: [0.3, 0.31], 0.01: [0.5, 0.51]}, monitor=monitor)
        assert summarize(tmp_path / monitor[4:]).rows[0].values == [best], monitor


def test_columns_are_what_was_varied_under_short_names(tmp_path: Path) -> None:
    for model, batch_size, seed in product([MLP, CNN], [32, 64], [0, 1]):
        record = {"name": f"n{seed}", "trainer__images": seed == 0, "data__root": f"/{seed}"}
        keys: dict[str, Any] = record | {"split": seed, "data__batch_size": batch_size}
        make_run(tmp_path, model=model, seed=seed, **keys)
    summary = summarize(tmp_path)
    assert summary.keys == ["data.batch_size", "model._target_"]
    assert summary.names == ["batch_size", "model"]
    assert sorted(row.values for row in summary.rows) == [["32", "CNN"], ["32", "MLP"], ["64", "CNN"], ["64", "MLP"]]
    assert summary.notes == [
        "model.dropout follows model: 0 with MLP, 0.25 with CNN",
        "split is always equal to seed",
    ]


def test_names_and_values_stay_in_full_where_short_ones_would_be_confused(tmp_path: Path) -> None:
    make_run(tmp_path, model={"_target_": "model.net.MLP", "lr": 1}, lr=0.12345)
    make_run(tmp_path, model={"_target_": "my_net.MLP", "lr": 2}, lr=0.12346)
    make_run(tmp_path, model={"_target_": "my_net.MLP", "lr": 3}, lr=0.5)
    summary = summarize(tmp_path)
    assert summary.names == ["model", "model.lr", "optimizer.lr"]
    assert sorted(row.values for row in summary.rows) == [
        ["model.net.MLP", "1", "0.12345"],
        ["my_net.MLP", "2", "0.12346"],
        ["my_net.MLP", "3", "0.5"],
    ]


def test_a_key_that_only_some_models_have_is_absent_elsewhere(tmp_path: Path) -> None:
    for model in (CNN, MLP, MLP | {"hidden_sizes": [8]}):
        make_run(tmp_path, model=model)
    assert sorted(row.values for row in summarize(tmp_path).rows) == [
        ["CNN", "-"],
        ["MLP", "[128, 64]"],
        ["MLP", "[8]"],
    ]


def test_one_and_one_point_zero_are_the_same_value(tmp_path: Path) -> None:
    make_run(tmp_path, lr=1, seed=0)
    make_run(tmp_path, lr=1.0, seed=1)
    assert [len(row.counted) for row in summarize(tmp_path).rows] == [2]


def test_random_search_keeps_every_key(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for trial in range(20):
        make_run(tmp_path, trial / 100, lr=float(random.uniform()), model=MLP | {"dropout": float(random.uniform())})
    assert summarize(tmp_path).names == ["dropout", "lr"]


def test_group_by_pools_what_it_does_not_name_and_pairs_it_case_by_case(tmp_path: Path) -> None:
    for model, shift in ((MLP, 0.0), (CNN, 0.2)):
        for lr, values in {0.1: [0.5, 0.6], 0.01: [0.51, 0.61]}.items():
            for seed, value in enumerate(values):
                make_run(tmp_path, value + shift, model=model, lr=lr, seed=seed)
    for name in ("lr", "optimizer.lr"):
        summary = summarize(tmp_path, group_by=[name])
        assert [(row.values, len(row.counted)) for row in summary.rows] == [(["0.01"], 4), (["0.1"], 4)]
        gap = summary.rows[1].gap
        assert gap and gap.n == 4 and gap.mean == pytest.approx(-0.01) and gap.half == pytest.approx(0, abs=1e-9)
    assert summarize(tmp_path, group_by=["model", "seed"]).rows[0].values == ["CNN", "1"]
    assert len(summarize(tmp_path, group_by=[]).rows[0].counted) == 8


def test_rows_of_different_data_are_compared_with_the_best_of_their_own(tmp_path: Path) -> None:
    for data, shift in (("digits", 0.0), ("mnist", 0.1)):
        make_study(tmp_path / data, {0.1: [0.8 + shift, 0.81 + shift], 0.01: [0.7 + shift, 0.711 + shift]}, data=data)
    rows = {tuple(row.values): row.verdict for row in summarize(tmp_path).rows}
    assert rows == {
        ("mnist", "0.1"): "best of its data",
        ("digits", "0.1"): "best of its data",
        ("mnist", "0.01"): "worse",
        ("digits", "0.01"): "worse",
    }
