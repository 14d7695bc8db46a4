"""What docs/extending.md shows, done as it stands there."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import Outcome, read

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# ((?:conf/|my_)\S+)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"```\npython train\.py (.*?)\n```", PAGE)
METRICS = {"sums": "val/rmse", "brier": "val/brier"}


@pytest.fixture
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the page writes, where Python finds it."""
    for name, content in FILES.items():
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.syspath_prepend(tmp_path / "own")
    for name in FILES:
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    return tmp_path / "own"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_trains_and_is_evaluated(
    command: str, own_files: Path, run_command: Callable[..., Outcome], tmp_path: Path
) -> None:
    fixed = ["trainer.epochs=2", "trainer.device=cpu", f"experiments_dir={tmp_path}", "name=extended"]
    done = run_command("train", "--config-dir", str(own_files / "conf"), *shlex.split(command), *fixed)
    assert done.code == 0, done.err
    (directory,) = (tmp_path / "extended").iterdir()
    assert read(directory / "status.json")["state"] == "finished"
    final = read(directory / "metrics.json")["final"]
    assert final["val/loss"] > 0
    assert all(metric in final for word, metric in METRICS.items() if word in command)
    assert (directory / "noise.txt").exists() == ("learner" in command)
    evaluated = run_command("evaluate", f"run={directory}")
    assert evaluated.code == 0 and "test/loss" in evaluated.out, evaluated.err


def test_every_file_of_the_page_is_used_and_every_slot_shown() -> None:
    commands, targets = " ".join(COMMANDS), "".join(FILES.values())
    for name in FILES:
        if name.endswith(".py"):
            assert f"{name.removesuffix('.py')}." in targets + commands, name
        else:
            _, group, option = Path(name).with_suffix("").parts
            assert f"{group}={option}" in commands, name
    assert {Path(name).parts[1] for name in FILES if name.startswith("conf")} == {
        "data", "model", "loss", "metrics", "learner", "scheduler"
    }  # fmt: skip
    for link in re.findall(r"\]\(\.\./([^)]+)\)", PAGE):
        assert (Path(__file__).parents[1] / link).exists(), link
