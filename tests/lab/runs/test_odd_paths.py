"""A run in a folder of whatever name: the commands that are printed work as they are printed, in a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import Outcome, read

ODD = [
    "a=b",
    "a,b",
    "[x]",
    "it's",
    'say "x"',
    "jürgen 日本",
    "a b=[c],{d}'e\"",
    "x:y;z&w",
    "*?",
    "50% #1",
    "back\\slash",
]
SHORT = ["trainer.epochs=1", "data.limit=90", "model.hidden_sizes=[8]", "trainer.images=false", "trainer.device=cpu"]


def printed(text: str, script: str, key: str) -> list[str]:
    """The arguments of the printed command that runs a script with that key, as a shell would pass them on."""
    (line,) = [line for line in text.splitlines() if f"{script}.py " in line and f"{key}=" in line]
    words = shlex.split(re.sub(r"^.*?(?=python )", "", line))
    assert words[0] == "python" and words[1].endswith(f"{script}.py")
    return words[2:]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_the_printed_commands_work_as_printed(
    name: str, run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    outcome = run_command("train", "experiments_dir=runs", "name=odd", *SHORT)
    assert outcome.code == 0, outcome.err
    (run,) = (tmp_path / name / "runs" / "odd").iterdir()
    for start in (tmp_path / name, tmp_path):  # as printed, and from elsewhere
        monkeypatch.chdir(start)
        outcome = run_command("train", *shlex.split(typed("resume", run)))
        assert outcome.code == 0, outcome.err
        (again,) = re.findall(r"for more epochs: (.*) trainer\.epochs=", outcome.out)
        assert run_command("train", *shlex.split(again), "trainer.epochs=+1").code == 0
        text = (run / "train.log").read_text().rpartition("best ")[2]
        outcome = run_command("evaluate", *printed(text, "evaluate", "run"))
        assert outcome.code == 0, outcome.err
    assert read(run / "evaluation.json")["split"] == "test" and read(run / "metrics.json")["final"]["epoch"] == 3


def typed(key: str, path: Path) -> str:
    from lab.config.quoting import path_typed

    return path_typed(key, path)
