"""The table of many runs: what becomes of runs that went wrong, which metrics it shows, and its files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_summary import CNN, MLP, make_run, make_study, make_unbegun

from lab.tables.content import table_of
from lab.tables.summary import summarize
from lab.tables.text import format_terminal, to_text
from synthesize_results import write_report
from utils import PROJECT, UserError


@pytest.fixture
def synthesize(
    run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """synthesize(...) does what `python synthesize_results.py root=<tmp_path> ...` would."""
    return lambda *arguments: run_command("synthesize_results", f"root={tmp_path}", *arguments)


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
    lines = to_text(table_of(summarize(tmp_path))).splitlines()
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
    lines = to_text(table_of(summary)).splitlines()
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
    lines = to_text(table_of(summary)).splitlines()
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


# --------------------------------------------------------------------------------------------------- pivots and curves


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
    assert not {"matplotlib", "lab.plots", "model.net", "scipy.stats", "tensorboard"} & set(loaded.stdout.split())
