"""Garbage in the records of a run from someone else is named or left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Outcome
from helpers.hostile import assert_orderly, change_config, go_on

from evaluate import evaluate_run
from lab.runs.checkpoint import load_tensors, save_tensors
from lab.runs.directory import finished_result, is_of_other_code, what_is_left
from lab.runs.loading import load_config
from lab.runs.logger import last_record
from lab.runs.reading import read_run
from utils import UserError, write_json


def test_what_honest_runs_allow(run: Path, use: Callable[[Path], dict[str, Outcome]], marker: Path) -> None:
    """Or the refusals below would say little."""
    assert [outcome.code for outcome in use(run).values()] == [0, 0, 0]
    assert (run / "evaluation.json").exists() and last_record(run)["epoch"] == 3


GARBAGE = {
    "empty": b"",
    "cut": b'{"state": "fin',
    "a list": b"[1, 2]",
    "a number": b"3",
    "null": b"null",
    "binary": b"\xff\xfe\x00",
    "depth": b"[" * 100_000,
    "digits": b'{"epoch": ' + b"9" * 5000 + b"}",
    "other types": b'{"state": {"a": 1}, "best": 3, "final": [], "data_sha256": 1, "resumed": 2, "epoch": {}}',
    "types within": b'{"state": "finished", "best": {"epoch": []}, "final": {"epoch": "x"}, "data_sha256": "", "epoch": 1}',
    "infinity": b'{"epoch": 1e999, "val/loss": NaN, "step": -1e999}',
    "escapes": b'{"state": "\\u001b[31m\\u0007", "epoch": 1, "val/\\u001b]0;x": 1}',
}


@pytest.mark.parametrize("content", GARBAGE)
def test_garbage_in_a_record_is_named_or_left_out(content: str, run: Path) -> None:
    cfg = load_config(run)
    for name in ("status.json", "provenance.json", "metrics.json", "metrics.jsonl", "evaluation.json"):
        whole = (run / name).read_bytes() if (run / name).exists() else None
        (run / name).write_bytes(GARBAGE[content])
        for ask in (
            lambda: finished_result(cfg, run),
            lambda: is_of_other_code(run, cfg),
            lambda: what_is_left(run),
            lambda: last_record(run),
        ):
            try:
                ask()
            except UserError as error:
                assert name in str(error) and "\n" not in str(error)
        assert read_run(run, run.parent).problem or name in ("provenance.json", "metrics.jsonl", "status.json")
        (run / name).unlink() if whole is None else (run / name).write_bytes(whole)


@pytest.mark.parametrize("name", ["status.json", "provenance.json", "metrics.json", "metrics.jsonl", "overrides.yaml"])
def test_a_run_with_garbage_in_a_record_ends_in_order(
    name: str, run: Path, run_command: Callable[..., Outcome]
) -> None:
    (run / name).write_bytes(GARBAGE["types within"] + b"\n")
    assert_orderly(run_command("train", f"resume={run}", "trainer.epochs=3"), name)


STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no spec": lambda state: state.pop("spec"),
    "a spec of other types": lambda state: state["spec"].update(input_shape="abc"),
    "a spec of an unknown task": lambda state: state["spec"].update(task="x"),
    "a spec of another size": lambda state: state["spec"].update(output_size=10**15),
    "a spec with other keys": lambda state: state["spec"].update(payload=1),
    "a spec that is none": lambda state: state.update(spec=torch.zeros(3)),
    "names without end": lambda state: state["spec"].update(classes=["\x1b[31m"] * 1000),
    "no progress": lambda state: state.pop("progress"),
    "progress of other types": lambda state: state.update(progress={"epoch": "x"}),
    "a format that is none": lambda state: state.update(format="x"),
    "weights of other types": lambda state: state["model"].update({"fc1.weight": "x"}),
    "weights that are none": lambda state: state.update(model=3),
    "an optimizer that is none": lambda state: state.update(optimizer=[1]),
    "a schedule that is none": lambda state: state.update(schedule="x"),
    "random states that are none": lambda state: state["ranks"][0].update(random={"python": 1}),
    "a meter that is none": lambda state: state["ranks"][0].update(meter="x"),
    "no processes": lambda state: state.update(ranks=[]),
    "processes that are none": lambda state: state.update(ranks="x"),
    "sizes below nothing": lambda state: state.update(log={"metrics.jsonl": -1}),
    "sizes of other types": lambda state: state.update(log={"metrics.jsonl": "x"}),
    "sizes of files elsewhere": lambda state: state.update(log={"../../thesis": 0, "/etc/passwd": 0}),
}


@pytest.mark.parametrize("case", STATES)
def test_a_whole_checkpoint_that_no_run_wrote(case: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "experiments" / "thesis").write_text("mine")
    state = load_tensors(run / "last.pt")
    STATES[case](state)
    for name in ("best.pt", "last.pt"):
        save_tensors(run / name, state)
    (run / "before.pt").unlink()
    for ask in (lambda: go_on(run), lambda: evaluate_run(run, device="cpu")):
        try:
            ask()
        except Exception as error:
            assert getattr(error, "for_user", False) and "\n" not in str(error), error
    assert (tmp_path / "experiments" / "thesis").read_text() == "mine"


def test_names_are_shown_and_written_as_text(
    run: Path, use: Callable[[Path], dict[str, Outcome]], marker: Path, tmp_path: Path
) -> None:
    hostile = f"<script>alert(1)</script>\x1b]0;x\x07 $(touch '{marker}') `touch '{marker}'` \\input{{x}} | & ; %s"
    for key in ("data__root", "model__activation", "trainer__loss", "experiments_dir"):
        change_config(run, **{key: f"{hostile} {key}"})
    write_json(run / "provenance.json", json.loads((run / "provenance.json").read_text()) | {"command": [hostile]})
    (run / "overrides.yaml").write_text(json.dumps([f"name={hostile}", "$(touch executed)"]))
    (run / "train.log").write_text(hostile)
    outcomes = use(run)
    assert outcomes["tabulate"].code == 0
    for path in (path for path in run.parent.glob("results*") if path.suffix != ".png"):
        assert b"<script>alert" not in path.read_bytes() and b"\x1b" not in path.read_bytes(), path.name
