"""Two runs side by side: what differs is said once, and what does not is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from studies import CNN, make_run

from lab.tables.diff import describe_difference
from utils import UserError

RECORD: dict[str, Any] = {
    "command": ["python", "train.py"],
    "started": "2026-01-31T12:00:00+00:00",
    "git_commit": "a" * 40,
    "packages": {"torch": "2.10", "numpy": "2.4"},
    "cpu_threads": 2,
    "data_sha256": "0" * 64,
}


def make_pair(root: Path, change: dict[str, Any] | None = None, **keys: Any) -> tuple[Path, Path]:
    """Two runs, of which the second has other keys, and another provenance.json."""
    first, second = make_run(root, path="first", higher=True), make_run(root, path="second", **{"higher": True} | keys)
    (first / "provenance.json").write_text(json.dumps(RECORD))
    (second / "provenance.json").write_text(json.dumps(RECORD | {"started": "later"} | (change or {})))
    return first, second


def test_a_run_is_identical_to_itself_and_to_one_that_was_recorded_elsewhere(tmp_path: Path) -> None:
    first, second = make_pair(tmp_path, name="other", minute=7, trainer__images=False)
    for pair in ((first, first), (first, second)):
        assert describe_difference(*pair)[-1] == "identical: configuration, code, environment, data and metrics"


def test_keys_that_follow_another_are_not_listed_as_well(tmp_path: Path) -> None:
    lines = describe_difference(*make_pair(tmp_path, model=CNN, lr=0.5, seed=3, split=3))
    text = "\n".join(lines)
    assert "  seed: 0 | 3" in lines and "  optimizer.lr: 0.01 | 0.5" in lines
    assert "  model._target_: model.net.MLP | model.net.CNN" in lines
    assert text.count("model.dropout") == 1 and "model.dropout follows model: 0 with MLP, 0.25 with CNN" in text
    assert text.count("split") == 1


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"packages": {"torch": "2.11", "numpy": "2.4"}}, "  packages.torch: 2.10 | 2.11"),
        ({"cpu_threads": 4}, "  cpu_threads: 2 | 4"),
        ({"data_sha256": "1" * 64}, f"  data_sha256: {'0' * 64} | {'1' * 64}"),
        ({"git_commit": "b" * 40}, "  commit: aaaaaaaaaaaa | bbbbbbbbbbbb"),
    ],
)
def test_what_else_differs_is_named_alone(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    lines = describe_difference(*make_pair(tmp_path, change))
    assert line in lines and len([text for text in lines if text.startswith("  ")]) == 1


def test_a_changed_line_of_code_is_shown(tmp_path: Path) -> None:
    first, second = make_pair(tmp_path)
    for run, sign in ((first, "+"), (second, "-")):
        (run / "uncommitted.patch").write_text(f"+++ model/net.py\n+x = y {sign} z\n\x1b[31m\n")
    lines = describe_difference(first, second)
    assert "  -+x = y + z" in lines and "  ++x = y - z" in lines and all(map(str.isprintable, lines))


def test_the_first_epoch_at_which_they_part_and_who_is_better(tmp_path: Path) -> None:
    first, second = make_pair(tmp_path)
    records = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    records[1]["val/accuracy"] = 0.95
    (second / "metrics.jsonl").write_text("".join(json.dumps(record | {"seconds": 9.0}) + "\n" for record in records))
    best = json.loads((second / "metrics.json").read_text())
    best["best"]["val/accuracy"] = 0.95
    (second / "metrics.json").write_text(json.dumps(best))
    lines = describe_difference(first, second)
    assert lines[-2:] == [
        "  val/accuracy: 0.9 | 0.95 (+0.05, better in b)",
        "  they part in epoch 2, in val/accuracy",
    ]
    short = (second / "metrics.jsonl").read_text().splitlines(True)[:1]
    (second / "metrics.jsonl").write_text("".join(short))
    assert describe_difference(first, second)[-1] == "  equal up to epoch 1, the last one of b"


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    first = make_run(tmp_path, path="first")
    with pytest.raises(UserError, match="which is no run directory"):
        describe_difference(first, tmp_path)
    (first / "config.yaml").write_text("[")
    with pytest.raises(UserError, match="cannot be read"):
        describe_difference(first, first)
