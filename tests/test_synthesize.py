"""The table of many runs: its numbers against scipy and simulation, and what becomes of runs that went wrong."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise, product
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import conftest
import numpy as np
import pytest
import scipy.stats
import yaml
from conftest import Outcome
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import synthesize_results
from report import Estimate, Table, digits_for, escape_latex, to_csv, to_latex, to_markdown, to_text
from summary import difference, estimate, summarize, verdict
from synthesize_results import format_terminal, pivot_tables, write_report
from utils import PROJECT, UserError

MLP = {"_target_": "model.net.MLP", "hidden_sizes": [128, 64], "dropout": 0.0}
CNN = {"_target_": "model.net.CNN", "channels": [16, 32], "dropout": 0.25}


@pytest.fixture
def synthesize(
    run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """synthesize(...) does what `python synthesize_results.py root=<tmp_path> ...` would."""
    monkeypatch.setitem(conftest.COMMANDS, "synthesize_results", synthesize_results.main)
    return lambda *arguments: run_command("synthesize_results", f"root={tmp_path}", *arguments)


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


# -------------------------------------------------------------------------------------------- runs not as they should be


def test_every_run_is_counted_and_a_row_without_a_result_is_at_the_bottom(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.8, 0.9]})
    for state in ("running", "interrupted", "diverged", "failed"):
        make_run(tmp_path, state=state, lr=0.1, seed=5)
        make_run(tmp_path, state=state, lr=0.001, seed=1)
    (make_run(tmp_path, lr=0.1, seed=6) / "metrics.json").unlink()
    text = format_terminal(summarize(tmp_path))
    assert "11 runs below" in text and ": 2 finished, 4 incomplete, 2 failed, 2 diverged, 1 unreadable" in text
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("lr"))
    assert lines[head].split()[-4:] == ["incomplete", "failed", "diverged", "unreadable"]
    assert lines[head + 2].split()[:2] == ["0.1", "2"] and lines[head + 2].split()[-4:] == ["2", "1", "1", "1"]
    assert lines[head + 3].split() == ["0.001", "0", "-", "2", "1", "1", "0"]


def test_only_failed_runs_still_make_a_table(tmp_path: Path, synthesize: Callable[..., Outcome]) -> None:
    make_run(tmp_path, state="failed", lr=0.1)
    make_run(tmp_path, state="diverged", lr=0.2)
    outcome = synthesize("tensorboard=true", "pivot=[model,lr]")
    assert outcome.code == 0 and "2 runs below" in outcome.out and "1 failed, 1 diverged" in outcome.out


def make_unbegun(root: Path, name: str, error: str | None) -> Path:
    """What is left of a sweep's job that ended before its run began."""
    directory = root / name / "seed-0"
    directory.mkdir(parents=True)
    (directory / "train.log").write_text("Traceback (most recent call last): ...")
    if error is not None:
        status = {"state": "failed", "epoch": 0, "step": 0, "time": "2026-01-31T12:00:00+00:00", "error": error}
        (directory / "status.json").write_text(json.dumps(status))
    return directory


def test_a_job_that_ended_before_its_run_began_is_counted_and_named(
    tmp_path: Path, synthesize: Callable[..., Outcome]
) -> None:
    make_study(tmp_path, {0.1: [0.8, 0.9]})
    make_unbegun(tmp_path, "lr-0.2", "AssertionError: refuses\nto be made")
    make_unbegun(tmp_path, "lr-0.3", None)
    (make_run(tmp_path, path="without") / "config.yaml").unlink()
    text = format_terminal(summarize(tmp_path))
    assert "5 runs below" in text and ": 2 finished, 1 incomplete, 1 failed, 1 unreadable" in text
    assert (
        "warning: 2 runs that never began, in no row: lr-0.2/seed-0 (AssertionError: refuses to be made); lr-" in text
    )
    assert "warning: 1 run cannot be read: without (config.yaml is missing, though its state is finished)" in text
    for number in range(2):
        make_unbegun(tmp_path / "hopeless", f"lr-{number}", "RuntimeError: no")
    outcome = synthesize(f"root={tmp_path / 'hopeless'}")
    assert outcome.code == 0 and "2 runs below" in outcome.out and "2 failed" in outcome.out


DAMAGES: dict[str, list[bytes]] = {
    "config.yaml": [
        b"",
        b"3",
        b"[1]",
        b"a: [",
        b"\xff\xfe\x00",
        b"a: &x [1]\nb: *x",
        b"a: 2020-01-01",
        b"a: !!set {1}",
    ],
    "status.json": [b"", b"{}", b"[]", b'{"state": "finished"}', b'{"state": [1], "time": 3}', b'{"state": "fin'],
    "metrics.json": [
        b"",
        b"null",
        b'{"monitor": "val/accuracy"}',
        b'{"monitor": "val/accuracy", "best": {"val/accuracy": "nan", "epoch": 1}, "final": {}}',
        b'{"monitor": "val/accuracy", "best": {"val/accuracy": NaN, "epoch": 1}, "final": {}}',
        b'{"monitor": "val/accuracy", "best": {"val/accuracy": 1e999, "epoch": 1}, "final": {}}',
        b'{"monitor": "val/accuracy", "best": {"val/accuracy": 1' + b"0" * 400 + b', "epoch": 1}, "final": {}}',
        b'{"monitor": 3, "best": {"val/accuracy": 1, "epoch": 1}, "final": {}}',
        b'{"monitor": "val/accuracy", "best": [1, 2], "final": {}}',
        b"[" * 100_000,
        b"\x00\xff",
    ],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name in DAMAGES for content in DAMAGES[name]])
def test_a_damaged_run_is_counted_and_named(tmp_path: Path, name: str, content: bytes) -> None:
    make_study(tmp_path, {0.1: [0.8, 0.9], 0.01: [0.85, 0.95]})
    (make_run(tmp_path, lr=0.1, seed=7, path="bad_one") / name).write_bytes(content)
    summary = summarize(tmp_path)
    assert [len(row.counted) for row in summary.rows] == [2, 2]
    assert "5 runs" in format_terminal(summary) and "1 unreadable" in format_terminal(summary)
    (note,) = summary.notes
    assert note.startswith("warning: 1 run cannot be read: bad_one (") and "\n" not in note


@pytest.mark.parametrize(
    "content", [None, b"", b'{"epoch": 1, "step": 10, "val/acc', b"\xff\n[]\n3\n{}\n", b"[" * 100_000]
)
def test_a_damaged_learning_curve_leaves_the_table_as_it_is(tmp_path: Path, content: bytes | None) -> None:
    make_study(tmp_path, {0.1: [0.8, 0.9], 0.01: [0.85, 0.95]})
    (tmp_path / "run0000" / "metrics.jsonl").unlink()
    if content is not None:
        (tmp_path / "run0000" / "metrics.jsonl").write_bytes(content)
    summary = summarize(tmp_path)
    write_report(summary)
    assert [len(row.counted) for row in summary.rows] == [2, 2]
    expected = {None: "cannot be read: No such file or directory", b"": None}.get(content, "has damaged lines")
    notes = [f"warning: 1 run without a whole learning curve: run0000 (metrics.jsonl {expected})"] if expected else []
    assert summary.notes == notes


def test_what_is_not_a_number_is_no_value(tmp_path: Path) -> None:
    """As the logger writes it, in a run that went on and finished."""
    make_study(tmp_path, {0.1: [0.8, 0.9], 0.01: [0.85, 0.95]})
    for name in ("metrics.jsonl", "metrics.json"):
        file = tmp_path / "run0000" / name
        file.write_text(re.sub(r'"val/loss": [\d.]+', '"val/loss": "nan"', file.read_text()))
    assert [len(row.counted) for row in summarize(tmp_path).rows] == [2, 2] and not summarize(tmp_path).notes
    summary = summarize(tmp_path, metric="val/loss")
    assert sorted(len(row.counted) for row in summary.rows) == [1, 2]
    assert summary.notes[-1] == "warning: 1 run without val/loss, left out: run0000"
    write_report(summary)


def test_one_seed_makes_a_table_without_claims(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.8], 0.01: [0.9]})
    lines = to_text(synthesize_results.table_of(summarize(tmp_path))).splitlines()
    assert [re.split(" {2,}", line) for line in lines[2:]] == [
        ["0.01", "1", "0.9000", "-", "best"],
        ["0.1", "1", "0.8000", "-0.1000", "no claim with n = 1"],
    ]
    write_report(summarize(tmp_path))


def test_runs_whose_sets_of_metrics_differ_share_a_table(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.8, 0.9]})
    for seed, name in enumerate(["test/f1", "test/accuracy"]):
        directory = make_run(tmp_path, 0.95, lr=0.01, seed=seed)
        record = json.loads((directory / "metrics.json").read_text())
        record["best"]["val/f1"] = 0.7
        (directory / "metrics.json").write_text(json.dumps(record))
        (directory / "evaluation.json").write_text(json.dumps({"epoch": record["best"]["epoch"], name: 0.6}))
    summary = summarize(tmp_path)
    assert [len(row.counted) for row in summary.rows] == [2, 2] and not summary.notes
    lines = to_text(synthesize_results.table_of(summary)).splitlines()
    assert lines[0].split()[-2:] == ["test/accuracy", "test/f1"] and lines[2].count("0.6000 (n = 1)") == 2
    summary = summarize(tmp_path, metric="val/f1")
    assert [len(row.counted) for row in summary.rows] == [2]
    assert summary.notes[-1].startswith("warning: 2 runs without val/f1, left out: run0000; run0001")


def test_nothing_is_executed_and_nothing_explodes(tmp_path: Path) -> None:
    make_run(tmp_path)
    bad = make_run(tmp_path, path="bad")
    for text in (
        f"a: !!python/object/apply:os.system ['touch {tmp_path}/executed']",
        f"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{tmp_path}/executed']]",
        "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi")),
        "a: " + "[" * 5000,
    ):
        (bad / "config.yaml").write_text(text)
        assert "bad (" in summarize(tmp_path).notes[0]
    assert not (tmp_path / "executed").exists()


def test_a_repeated_seed_counts_once_with_the_run_that_finished_last(tmp_path: Path) -> None:
    make_run(tmp_path, 0.5, seed=0, minute=1, path="a")
    make_run(tmp_path, 0.7, seed=0, minute=9, path="b")
    make_run(tmp_path, 0.6, seed=0, minute=5, path="c", trainer__images=False)
    make_run(tmp_path, 0.9, seed=1)
    summary = summarize(tmp_path)
    (row,) = summary.rows
    assert row.result and row.result.mean == pytest.approx(0.8) and row.result.n == 2
    assert summary.notes == ["warning: 2 runs with configuration and seed of a later run, not counted again: a; c"]


# ---------------------------------------------------------------------------------------------------------- the metrics


def test_test_metrics_stand_beside_and_never_decide(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path, 0.9 + seed / 100, lr=0.1, seed=seed, test=0.5)
        make_run(tmp_path, 0.8 + seed / 100, lr=0.01, seed=seed, test=0.99 if seed else None)
    summary = summarize(tmp_path)
    assert [row.values for row in summary.rows] == [["0.1"], ["0.01"]]
    lines = to_text(synthesize_results.table_of(summary)).splitlines()
    assert lines[0].endswith("test/accuracy")
    assert lines[2].endswith("0.5000 ± 0.0000") and lines[3].endswith("0.9900 (n = 1)")
    with pytest.raises(UserError, match=r"metric is test/accuracy, but the test split decides no order"):
        summarize(tmp_path, metric="test/accuracy")


def test_an_evaluation_of_an_earlier_best_epoch_is_not_shown(tmp_path: Path) -> None:
    directory = make_run(tmp_path, test=0.99)
    (directory / "evaluation.json").write_text('{"epoch": 1, "test/accuracy": 0.99}')
    summary = summarize(tmp_path)
    assert summary.rows[0].result and not summary.rows[0].test
    assert "run evaluate.py again" in summary.notes[0]


def test_a_metric_that_was_not_monitored(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.8, 0.9], 0.01: [0.85, 0.95]})
    summary = summarize(tmp_path, metric="val/loss")
    assert [row.values for row in summary.rows] == [["0.01"], ["0.1"]] and not summary.higher
    assert summary.notes == ["val/loss is that of the epoch with the best val/accuracy"]


def test_runs_that_monitor_different_metrics_need_a_choice(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.8, 0.9]})
    make_run(tmp_path, 0.3, monitor="val/rmse", data="random_regression", path="other")
    with pytest.raises(UserError, match=r"different metrics, val/accuracy \(2\), val/rmse \(1\); choose: metric=val/"):
        summarize(tmp_path)
    assert len(summarize(tmp_path, metric="val/loss").rows) == 2
    summary = summarize(tmp_path, metric="val/accuracy")
    assert len(summary.rows) == 1
    assert summary.notes[-1] == "warning: 1 run without val/accuracy, left out: other"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["metric=val/acuracy"], ["metric is val/acuracy", "there is val/loss, val/accuracy", "mean val/accuracy?"]),
        (["metric=accuracy"], ["did you mean val/accuracy?"]),
        (["group_by=[lrr]"], ["group_by has lrr", "did you mean lr?"]),
        (["group_by=[modle]"], ["group_by has modle"]),
        (["group_by=lr"], ["group_by is 'lr'", "a list"]),
        (["group_by=[root]", "+x=1"], ["x is not a key"]),
        (["pivot=[model]"], ["pivot is [model]", "two keys", "pivot=[model,data]"]),
        (["pivot=[model,model]"], ["two keys"]),
        (["pivot=[lr,model,data]"], ["two keys"]),
        (["pivot=model,data"], ["pivot=[model,data]"]),
        (["group_by=[size]"], ["size", "data.size or model.size", "in full"]),
        (["tensorboard=3"], ["tensorboard is 3"]),
        (["rooot=1"], ["rooot", "did you mean root?"]),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, synthesize: Callable[..., Outcome], arguments: list[str], words: list[str]
) -> None:
    make_run(tmp_path, model=MLP | {"size": 1}, data__size=2)
    outcome = synthesize(*arguments)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    assert all(word in outcome.err for word in words), outcome.err


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("lr_studdy", "did you mean"),
        ("nowhere/at/all", "which is no folder"),
        ("lr_study/file", "which is no folder"),
        ("''", "which is no folder"),
        ("empty", "there are no runs below"),
    ],
)
def test_a_root_without_runs_is_one_line(
    tmp_path: Path, synthesize: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, root: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "lr_study").mkdir()
    (tmp_path / "lr_study" / "file").touch()
    outcome = synthesize(f"root={root}")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and words in outcome.err, outcome.err


# ------------------------------------------------------------------------------------------------------------ the formats

HOSTILE = '<script>alert("1")</script> & 50% of $x_1$ {\\input{/etc/passwd}} | `*#~^\' \x1b[31m\n\u202e end'


class Page(HTMLParser):
    """The tags, the links and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else_and_links_to_every_run(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.8, 0.9], 0.01: [0.85, 0.95]})
    make_run(tmp_path, lr=0.1, seed=2, state="failed", path="a dir/seed-2 <b>&%41")
    write_report(summarize(tmp_path))
    page = Page((tmp_path / "results.html").read_text())
    links = page.attributes["href"]
    assert sorted(unquote(link) for link in links) == sorted(
        f"./{path.parent.relative_to(tmp_path)}" for path in tmp_path.rglob("config.yaml")
    )
    assert all((tmp_path / unquote(link)).is_dir() for link in links)
    assert "2 failed" in page.text
    assert len(page.attributes["src"]) == 2
    for source in page.attributes["src"]:
        kind, _, data = source.partition("base64,")
        assert kind == "data:image/png;" and base64.b64decode(data).startswith(b"\x89PNG")
    assert set(page.tags) & {"link", "iframe", "object"} == set() and page.tags.count("script") == 1


def test_hostile_values_are_harmless_everywhere(tmp_path: Path) -> None:
    root = tmp_path / "<img src=x onerror=alert(1)>&_%"
    for seed in (0, 1):
        make_run(root, 0.8 + seed / 10, model=MLP | {"note": HOSTILE}, seed=seed, path=f"{seed}<script>", test=0.5)
        make_run(root, 0.7 + seed / 10, model=MLP | {"note": "plain"}, seed=seed, path=f'{seed}"onclick="x')
    (make_run(root, path="<b>bad</b>\x1b") / "metrics.json").write_text("<script>")
    summary = summarize(root, pivot=["note", "model"])
    write_report(summary, pivot_tables(summary, ["note", "model"]))
    page = Page((root / "results.html").read_text())
    assert page.tags.count("script") == 1 and page.tags.count("img") == 2
    assert not {"onclick", "onerror"} & page.attributes.keys()
    assert '<script>alert("1")</script> & 50% of $x_1$' in page.text  # as text
    latex = "".join(line for line in (root / "results.tex").read_text().splitlines(True) if not line.startswith("%"))
    for formula in re.findall(r"(?<!\\)\$(.*?)(?<!\\)\$", latex):
        assert re.fullmatch(r"(\\mathbf\{)?[-\d.]+\}?( \\pm [\d.]+)?", formula), formula
    assert not re.search(r"(?<!\\)[%#_~^]", latex)
    assert r"\input" not in latex and r"\textbackslash{}input\{" in latex
    for name in ("results.md", "results.tex", "results.csv"):
        assert all(c.isprintable() for c in (root / name).read_text().replace("\n", "")), name
    assert "\\<script\\>" in (root / "results.md").read_text()
    terminal = format_terminal(summary)
    assert all(c.isprintable() for c in terminal.replace("\n", ""))


@pytest.mark.skipif(
    not shutil.which("kpsewhich")
    or subprocess.run(["kpsewhich", "booktabs.sty"], check=False, stdout=subprocess.DEVNULL).returncode,
    reason="there is no LaTeX with booktabs on this machine",
)
def test_latex_takes_the_table_whatever_is_in_it(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path, 0.8 + seed / 10, model=MLP | {"note": HOSTILE}, seed=seed, path=f"{seed}$x_{{1}}%", test=0.5)
        make_run(tmp_path, 1e-9 * seed, model=MLP | {"note": r"$\\alpha$ #1 & \\end{tabular}"}, seed=seed)
        make_run(tmp_path, 0.5, model=MLP | {"note": [1, 2]}, seed=seed)  # \\ takes what is in brackets after it
    make_unbegun(tmp_path, "\\input{x}", "100% \\undefined $")
    pivot = ["note", "model"]
    summary = summarize(tmp_path, pivot=pivot)
    write_report(summary, pivot_tables(summary, pivot))
    text = (tmp_path / "results.tex").read_text()
    paper = r"\documentclass{article}\usepackage{booktabs}\begin{document}" + f"\n{text}\n" + r"\end{document}"
    (tmp_path / "paper.tex").write_text(paper)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_latex_escapes() -> None:
    assert escape_latex(r"50% & $a_1$ #{x} ~^\ <>|") == (
        r"50\% \& \$a\_1\$ \#\{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \textless{}\textgreater{}\textbar{}"
    )


def test_one_table_in_four_formats() -> None:
    table = Table(
        ["lr", "n", "val/loss"],
        [
            ["a_b", 3, Estimate(0.5, 0.25, 3, ".4f", bold=True)],
            ["c|d", 1, Estimate(2e-5, None, 1, ".3e")],
            ["e", 0, None],
        ],
    )
    assert to_text(table).splitlines() == [
        "lr   n  val/loss",
        "---  -  ---------------",
        "a_b  3  0.5000 ± 0.2500",
        "c|d  1  2.000e-05",
        "e    0  -",
    ]
    assert to_markdown(table).splitlines()[2:] == [
        "| a_b | 3 | **0.5000 ± 0.2500** |",
        "| c\\|d | 1 | 2.000e-05 |",
        "| e | 0 | - |",
    ]
    assert to_latex(table).splitlines()[4:7] == [
        r"a\_b & 3 & $\mathbf{0.5000} \pm 0.2500$ \\",
        r"c\textbar{}d & 1 & $2.000 \times 10^{-5}$ \\",
        r"e & 0 & -- \\",
    ]
    assert to_csv(table).splitlines() == [
        "lr,n,val/loss,val/loss low,val/loss high",
        "a_b,3,0.5,0.25,0.75",
        "c|d,1,2e-05,,",
        "e,0,,,",
    ]


def test_csv_has_every_number_in_full(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.8, 0.9, 0.95]})
    write_report(summarize(tmp_path))
    with (tmp_path / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    low, high = scipy.stats.t.interval(0.95, 2, np.mean([0.8, 0.9, 0.95]), scipy.stats.sem([0.8, 0.9, 0.95]))
    assert [float(row[f"val/accuracy{end}"]) for end in ("", " low", " high")] == pytest.approx(
        [2.65 / 3, low, high], rel=1e-12
    )
    assert row["runs"].split() == [f"./run{i:04}" for i in range(3)]


@pytest.mark.parametrize(
    ("values", "digits"),
    [
        ([0.95, 0.9], ".4f"),
        ([12.3, 4.0], ".2f"),
        ([0.05], ".5f"),
        ([2e-9, 0.5], ".3e"),
        ([1e-8], ".3e"),
        ([3e9], ".3e"),
    ],
)
def test_numbers_show_four_digits(values: list[float], digits: str) -> None:
    assert digits_for(values) == digits


def test_the_pivot_table_is_models_by_datasets(tmp_path: Path, synthesize: Callable[..., Outcome]) -> None:
    for (model, shift), data, lr, seed in product([(MLP, 0.0), (CNN, 0.1)], ["digits", "mnist"], [0.1, 0.01], [0, 1]):
        value, test = 0.7 + shift + lr + seed / 100, 0.6 + shift - lr
        make_run(tmp_path, value, test=test, model=model, data=data, lr=lr, seed=seed)
    outcome = synthesize("pivot=[model,data]")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    start = lines.index("val/accuracy, each the best of its rows by val/accuracy")
    assert [re.split(" {2,}", line) for line in (lines[start + 1], *lines[start + 3 : start + 5])] == [
        ["model / data", "digits", "mnist"],
        ["CNN", "0.9050 ± 0.0635", "0.9050 ± 0.0635"],
        ["MLP", "0.8050 ± 0.0635", "0.8050 ± 0.0635"],
    ]
    assert lines[start + 6].startswith("test/accuracy")
    assert lines[start + 9].split()[:2] == ["CNN", "0.6000"]  # of the learning rate that validation chose
    assert (
        r"CNN & $\mathbf{0.9050} \pm 0.0635$ & $\mathbf{0.9050} \pm 0.0635$ \\"
        in (tmp_path / "results.tex").read_text()
    )


def test_mean_curves_for_tensorboard_replace_older_ones_and_no_run(
    tmp_path: Path, synthesize: Callable[..., Outcome]
) -> None:
    make_study(tmp_path, {0.1: [0.8, 0.9], 0.01: [0.5]})
    run = make_run(tmp_path, path="mean/a-run", lr=0.01, seed=1)
    (run / "events.out.tfevents.1").write_text("kept")
    for _ in range(2):
        assert synthesize("tensorboard=true").code == 0
    assert (run / "events.out.tfevents.1").read_text() == "kept"
    (folder,) = (tmp_path / "mean").glob("*lr-0.1")
    assert len(list(folder.iterdir())) == 1
    events = EventAccumulator(str(folder)).Reload().Scalars("val/accuracy")
    assert [(event.step, round(event.value, 6)) for event in events] == [(10, 0.75), (20, 0.85), (30, 0.75)]


# ----------------------------------------------------------------------------------------------------------- the whole


def test_from_training_to_the_table(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome], synthesize: Callable[..., Outcome]
) -> None:
    small = ("trainer.epochs=1", "data.limit=200", "model.hidden_sizes=[8]")
    runs = [run_train(*small, f"optimizer.lr={lr}", f"seed={seed}") for lr, seed in ((0.001, 0), (0.001, 1), (0.03, 0))]
    assert run_command("evaluate", f"run={runs[0]}").code == 0
    outcome = synthesize()
    assert outcome.code == 0, outcome.err
    values = [json.loads((run / "metrics.json").read_text())["best"]["val/accuracy"] for run in runs]
    test = json.loads((runs[0] / "evaluation.json").read_text())["test/accuracy"]
    assert f"{np.mean(values[:2]):.4f} ± " in outcome.out and f"{values[2]:.4f}" in outcome.out
    assert f"{test:.4f} (n = 1)" in outcome.out and "3 runs below" in outcome.out


def test_a_thousand_runs_take_seconds(tmp_path: Path, synthesize: Callable[..., Outcome]) -> None:
    random = np.random.default_rng(0)
    for lr in random.uniform(1e-4, 1e-1, 50):
        for model in (MLP, CNN):
            for seed in range(10):
                value = float(random.normal(0.9, 0.01))
                path = f"{model['_target_']}_{lr}/seed-{seed}"
                make_run(tmp_path, value, path=path, lr=float(lr), model=model, seed=seed, num_epochs=20)
    started = time.perf_counter()
    outcome = synthesize()
    assert outcome.code == 0 and "1000 runs below" in outcome.out
    assert time.perf_counter() - started < 10


def test_the_table_alone_needs_no_matplotlib_and_no_model() -> None:
    code = "import synthesize_results, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert not {"matplotlib", "plots", "model.net", "scipy.stats", "tensorboard"} & set(loaded.stdout.split())
