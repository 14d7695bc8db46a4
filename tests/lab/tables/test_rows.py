"""Rows of runs that agree: what was varied, what stands for a seed, and under which names."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import CNN, MLP, make_run, make_study

from lab.tables.summary import summarize


def test_runs_that_differ_in_their_seed_alone_are_one_row_and_the_best_is_on_top(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.80, 0.81, 0.82], 0.01: [0.90, 0.92, 0.94], 0.001: [0.89, 0.93, 0.93]})
    summary = summarize(tmp_path)
    assert (summary.names, summary.metric, summary.notes) == (["lr"], "val/accuracy", [])
    assert [row.values for row in summary.rows] == [["0.01"], ["0.001"], ["0.1"]]
    assert [row.result.n for row in summary.rows if row.result] == [3, 3, 3]
    assert summary.rows[0].result and summary.rows[0].result.mean == pytest.approx(0.92)
    assert [row.verdict for row in summary.rows] == ["best", "one of the best", "worse"]


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


def test_group_by_averages_what_it_does_not_name_and_counts_seeds_alone(tmp_path: Path) -> None:
    for model, shift in ((MLP, 0.0), (CNN, 0.2)):
        for lr, values in {0.1: [0.5, 0.6, 0.72], 0.01: [0.51, 0.62, 0.74]}.items():
            for seed, value in enumerate(values):
                make_run(tmp_path, value + shift, model=model, lr=lr, seed=seed)
    for name in ("lr", "optimizer.lr"):
        summary = summarize(tmp_path, group_by=[name])
        assert [(row.values, len(row.counted)) for row in summary.rows] == [(["0.01"], 6), (["0.1"], 6)]
        assert [row.metric("val/accuracy")["1"] for row in summary.rows] == pytest.approx([0.72, 0.7])
        result, gap = summary.rows[1].result, summary.rows[1].gap
        assert result and result.n == 3 and gap and gap.n == 3 and gap.mean == pytest.approx(-0.05 / 3)
        assert "averaged within each seed, which alone is a replicate: model._target_" in summary.notes
    assert summarize(tmp_path, group_by=["model", "seed"]).rows[0].values == ["CNN", "2"]
    (row,) = summarize(tmp_path, group_by=[]).rows
    assert row.result and (row.result.n, row.num_combinations, len(row.counted)) == (3, 4, 12)


def test_a_seed_that_lacks_a_combination_is_left_out_of_the_average(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.5, 0.6, 0.7], 0.01: [0.7, 0.8]}, model=MLP)
    make_study(tmp_path, {0.1: [0.4, 0.4]}, model=CNN)
    summary = summarize(tmp_path, group_by=["model"])
    assert {row.values[0]: row.metric("val/accuracy") for row in summary.rows} == {
        "MLP": pytest.approx({"0": 0.6, "1": 0.7}),
        "CNN": {"0": 0.4, "1": 0.4},
    }
    assert "warning: 1 row has seeds without some of these combinations, which are left out" in summary.notes


def test_runs_that_do_not_differ_are_a_row_with_a_name(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.5, 0.6]})
    summary = summarize(tmp_path)
    assert (summary.names, summary.rows[0].values) == (["model", "data"], ["MLP", "digits"])


def test_runs_that_only_tried_something_stay_out_of_the_table(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.5, 0.6]})
    make_run(tmp_path, 0.99, name="debug_tiny", lr=7)
    summary = summarize(tmp_path)
    assert len(summary.rows) == 1 and len(summary.runs) == 2
    assert summary.notes == ["left out: 1 run whose name begins with debug_"]
    make_run(tmp_path / "debug_tiny", 0.99, name="debug_tiny")
    assert len(summarize(tmp_path / "debug_tiny").rows) == 1


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
