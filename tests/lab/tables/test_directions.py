"""Which metric ranks the rows, and which end of it is the better one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studies import make_run, make_study

from lab.tables.content import heading, table_of
from lab.tables.summary import summarize
from lab.tables.text import to_text
from utils import UserError

ROWS = {0.1: [0.3, 0.31, 0.305], 0.01: [0.5, 0.512, 0.505]}


@pytest.mark.parametrize(("monitor", "best"), [("val/loss", "0.1"), ("val/rmse", "0.1"), ("val/r2", "0.01")])
def test_runs_from_before_have_the_directions_of_their_time(tmp_path: Path, monitor: str, best: str) -> None:
    make_study(tmp_path, ROWS, monitor=monitor)
    assert summarize(tmp_path).rows[0].values == [best]


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("name", ["val/surprise", "val/my_loss", "val/accuracy_gap"])
def test_the_direction_of_an_own_metric_is_the_recorded_one(tmp_path: Path, name: str, higher: bool) -> None:
    make_study(tmp_path, ROWS, monitor=name, higher=higher)
    summary = summarize(tmp_path)
    assert summary.higher == higher
    assert [row.values for row in summary.rows] == [[["0.1"], ["0.01"]][higher], [["0.01"], ["0.1"]][higher]]
    assert [row.verdict for row in summary.rows] == ["best", "worse"]
    assert f"({'higher' if higher else 'lower'} is better)" in heading(summary)[1]


def test_a_recorded_direction_goes_before_what_a_name_was_once(tmp_path: Path) -> None:
    make_study(tmp_path, ROWS, monitor="val/accuracy", higher=False)
    assert summarize(tmp_path).rows[0].values == ["0.1"]


def test_a_direction_that_nobody_recorded_has_to_be_told(tmp_path: Path) -> None:
    make_study(tmp_path, ROWS, monitor="val/surprise")
    with pytest.raises(UserError, match=r"better one is recorded in none .* say higher_is_better=true or"):
        summarize(tmp_path)
    for higher in (True, False):
        assert summarize(tmp_path, higher_is_better=higher).rows[0].values == ["0.01" if higher else "0.1"]


def test_runs_that_contradict_each_other_or_the_user_have_no_order(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.3]}, monitor="val/surprise", higher=True)
    with pytest.raises(UserError, match="have recorded the opposite"):
        summarize(tmp_path, higher_is_better=False)
    make_study(tmp_path, {0.01: [0.3]}, monitor="val/surprise", higher=False)
    with pytest.raises(UserError, match="a root each"):
        summarize(tmp_path)


def test_test_metrics_stand_beside_and_never_decide(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path, 0.9 + seed / 100, lr=0.1, seed=seed, test=0.5)
        make_run(tmp_path, 0.8 + seed / 100, lr=0.01, seed=seed, test=0.99 if seed else None)
    summary = summarize(tmp_path)
    assert [row.values for row in summary.rows] == [["0.1"], ["0.01"]]
    lines = to_text(table_of(summary)).splitlines()
    assert lines[0].endswith("test/accuracy")
    assert lines[2].endswith("0.5000 identical in all seeds") and lines[3].endswith("0.9900 (n = 1)")
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


def test_runs_of_tasks_without_a_common_metric_are_told_apart(tmp_path: Path) -> None:
    for number, monitor in enumerate(("val/accuracy", "val/rmse")):
        file = make_run(tmp_path, 0.3 + number, monitor=monitor) / "metrics.json"
        record = json.loads(file.read_text())
        del record["best"]["val/loss"]
        file.write_text(json.dumps(record))
    with pytest.raises(UserError, match="choose: a root with runs of one task"):
        summarize(tmp_path)


# ------------------------------------------------------------------------------------------------ what a number is worth


def test_values_that_are_all_the_same_are_called_that(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.9, 0.9, 0.9], 0.01: [0.8, 0.7, 0.6]})
    lines = to_text(table_of(summarize(tmp_path))).splitlines()
    assert "0.9000 identical in all seeds" in lines[2] and "± 0.0000" not in lines[2]


def test_intervals_are_no_narrower_than_one_validation_example(tmp_path: Path) -> None:
    for lr, counts in {0.1: [130, 130, 130], 0.01: [129, 129, 129]}.items():
        for seed, right in enumerate(counts):
            make_run(tmp_path, right / 143, lr=lr, seed=seed, num_validation=143)
    summary = summarize(tmp_path)
    assert any(line.startswith("one validation example is 0.007 of val/accuracy") for line in heading(summary))
    assert [row.verdict for row in summary.rows] == ["best", "one of the best"]
    result, gap = summary.rows[0].result, summary.rows[1].gap
    assert result and result.half == pytest.approx(1 / 143) and gap and gap.half and gap.half >= 1 / 143


def test_the_best_row_is_said_to_be_flattered_and_by_what(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.80, 0.81, 0.82], 0.01: [0.90, 0.92, 0.94], 0.001: [0.89, 0.93, 0.93]})
    (line,) = summarize(tmp_path).remarks
    assert line.startswith("the mean of lr 0.01 is flattered") and "the chosen of 3: 0.9200 ± 0.0" in line


def test_seeds_that_did_not_choose_say_what_the_best_row_is_worth(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.90, 0.92, 0.94, 0.80, 0.82], 0.01: [0.89, 0.90, 0.91, 0.89, 0.91]})
    summary = summarize(tmp_path, seeds_for_choosing=[0, 1, 2])
    assert [row.values for row in summary.rows] == [["0.1"], ["0.01"]]
    first = summary.rows[0]
    assert first.result and first.result.n == 3 and first.result.mean == pytest.approx(0.92)
    assert first.unseen and first.unseen.n == 2 and first.unseen.mean == pytest.approx(0.81)
    assert summary.remarks[0].startswith("lr 0.1 was chosen by 3 seeds; on the other 2 it has 0.8100 ± ")
    assert "on unseen seeds" in to_text(table_of(summary)).splitlines()[0]
    with pytest.raises(UserError, match=r"seeds_for_choosing is \[8,9\]"):
        summarize(tmp_path, seeds_for_choosing=[8, 9])


def test_a_plan_is_a_line_for_each_dataset(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.80, 0.81, 0.82], 0.01: [0.90, 0.92, 0.94]})
    line = summarize(tmp_path, plan=0.005).remarks[-1]
    assert line.startswith("plan: 3 seeds show a difference of ") and "a difference of 0.005 needs " in line


def test_values_of_any_size_make_a_table_without_a_complaint(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for size in (1e-200, 1e200, 1e308):
        root = tmp_path / str(size)
        make_study(root, {0.1: [0.3 * size, 0.5 * size], 0.01: [0.2 * size, 0.1 * size]}, monitor="val/rmse")
        assert [row.values for row in summarize(root, plan=0.1).rows] == [["0.01"], ["0.1"]]
    assert not recwarn.list
