"""Runs that went wrong, were damaged or come from a stranger: each is counted and named, and none harms the table."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import Outcome
from studies import make_run, make_study, make_unbegun

from lab.tables.content import table_of
from lab.tables.summary import summarize
from lab.tables.text import format_terminal, to_text
from synthesize_results import write_report


@pytest.fixture
def synthesize(
    run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """synthesize(...) does what `python synthesize_results.py root=<tmp_path> ...` would."""
    return lambda *arguments: run_command("synthesize_results", f"root={tmp_path}", *arguments)


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
    summary = summarize(tmp_path, metric="val/f1", higher_is_better=True)
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


@pytest.mark.parametrize("name", ["config.yaml", "status.json", "metrics.json", "evaluation.json", "metrics.jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "endless", "huge", "folder"])
def test_what_is_no_file_of_a_usual_size_is_a_note_and_nothing_waits_for_it(
    tmp_path: Path, name: str, kind: str
) -> None:
    make_study(tmp_path, {0.1: [0.8, 0.9], 0.01: [0.85, 0.95]})
    file = make_run(tmp_path, lr=0.1, seed=7, path="bad_one", test=0.5) / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "endless":
        file.symlink_to("/dev/zero")
    elif kind == "huge":
        with file.open("wb") as empty:
            empty.truncate(20 * 2**30)
    else:
        file.mkdir()
    summary = summarize(tmp_path)
    write_report(summary)
    (note,) = summary.notes
    assert note.startswith("warning: 1 run ") and "bad_one (" in note


@pytest.mark.parametrize("text", ["a: " + "[" * 50_000, "- " * 50_000, "a: " + "{a: " * 50_000, "? " * 50_000])
def test_nesting_that_ends_the_reader_of_yaml_is_a_note(tmp_path: Path, text: str) -> None:
    make_run(tmp_path)
    (make_run(tmp_path, path="bad") / "config.yaml").write_text(text)
    assert "bad (config.yaml is nested more than 100 levels deep)" in summarize(tmp_path).notes[0]


def test_a_learning_curve_with_steps_that_no_integer_holds(tmp_path: Path, synthesize: Callable[..., Outcome]) -> None:
    make_study(tmp_path, {0.1: [0.8, 0.9]})
    file = tmp_path / "run0000" / "metrics.jsonl"
    file.write_text(file.read_text().replace('"step": 10,', '"step": 1e308,'))
    assert synthesize("tensorboard=true").code == 0


def test_mean_curves_are_not_written_through_a_link(tmp_path: Path, synthesize: Callable[..., Outcome]) -> None:
    make_study(tmp_path / "study", {0.1: [0.8, 0.9]})
    (tmp_path / "other" / "run").mkdir(parents=True)
    (tmp_path / "other" / "run" / "events.out.tfevents.1").write_text("kept")
    (tmp_path / "study" / "mean").symlink_to(tmp_path / "other")
    outcome = synthesize(f"root={tmp_path / 'study'}", "tensorboard=true")
    assert outcome.code == 2 and "is a link" in outcome.err
    assert [path.name for path in (tmp_path / "other").rglob("*")] == ["run", "events.out.tfevents.1"]
