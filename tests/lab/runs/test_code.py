"""A run names the files that its numbers depend on, and only a change of these makes it one of other code."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import read

from lab.runs import provenance
from lab.runs.code import code_of
from lab.runs.directory import is_of_other_code
from lab.runs.loading import load_config
from utils import PROJECT

MODULES = {
    "of_mine/__init__.py": "",
    "of_mine/net.py": "from of_mine.parts import (\n    width,\n)\nfrom . import depths\nimport torch\n\nclass Net: ...\n",
    "of_mine/parts.py": "from of_mine import unused_name\nwidth = 3\n",
    "of_mine/depths.py": "depth = 2\n",
    "of_mine/other.py": "nobody imports it\n",
}
CONFIG = {"model": {"_target_": "of_mine.net.Net", "layers": [{"_target_": "torch.nn.ReLU"}]}, "seed": 0}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of one's own, on the path."""
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "of_mine"


def test_the_files_of_a_target_and_of_what_it_imports(mine: Path) -> None:
    found = code_of(CONFIG)
    assert sorted(found) == [str(mine / name) for name in ("__init__.py", "depths.py", "net.py", "parts.py")]
    assert found[str(mine / "depths.py")] == hashlib.sha256(b"depth = 2\n").hexdigest()


def test_only_what_may_change_numbers_changes_the_code(mine: Path) -> None:
    before = code_of(CONFIG)
    (mine / "parts.py").write_text("# of no account\n\nfrom of_mine import unused_name\n   # nor this\nwidth = 3\n\n")
    (mine / "other.py").write_text("nor does anybody now\n")
    (mine / "notes.md").write_text("it went well\n")
    assert code_of(CONFIG) == before
    (mine / "parts.py").write_text("from of_mine import unused_name\nwidth = 4\n")
    after = code_of(CONFIG)
    assert [name for name in after if after[name] != before[name]] == [str(mine / "parts.py")]


def test_a_run_records_the_code_of_each_slot(run_train: Callable[..., Path]) -> None:
    run = run_train("trainer.epochs=1", "data.limit=90")
    recorded, cfg = read(run / "provenance.json")["code_sha256"], load_config(run)
    slots = {"train.py", "model/net.py", "model/datasets.py", "model/losses.py", "model/metrics.py"}
    assert slots <= recorded.keys() and "lab/runs/run.py" in recorded
    assert not {name for name in recorded if name.startswith(("tests", "lab/sweeps", "lab/tables", ".venv"))}
    for name in recorded:
        assert (PROJECT / name).is_file()
    assert not is_of_other_code(run, cfg)
    cfg.model._target_ = "model.by_hand.MLP"
    assert is_of_other_code(run, cfg)


def test_git_is_asked_once_a_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked, original = [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **keys: asked.append(command) or original(command, **keys))
    monkeypatch.setattr(provenance, "_known", None)
    first = provenance.code_state()
    assert 1 <= len(asked) <= 4
    num = len(asked)
    assert provenance.code_state() is first and len(asked) == num


def test_the_patch_holds_what_differs_from_the_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*words: str) -> None:
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *author, *words], check=True, capture_output=True)

    monkeypatch.setattr(provenance, "PROJECT", tmp_path)
    monkeypatch.setattr(provenance, "_known", None)
    assert provenance._ask_git() == ({"git_commit": None, "git_patch_sha256": None}, "")  # no repository
    git("init")
    (tmp_path / "a.py").write_text("a = 1\n")
    assert provenance._ask_git()[0]["git_commit"] is None
    git("add", "a.py")
    git("commit", "-m", "first")
    state, patch = provenance._ask_git()
    assert len(str(state["git_commit"])) == 40 and state["git_patch_sha256"] is None and not patch
    (tmp_path / "a.py").write_text("a = 2\n")
    (tmp_path / "new é.py").write_text("b = 3\n")
    state, patch = provenance._ask_git()
    assert "+a = 2" in patch and "+b = 3" in patch
    assert state["git_patch_sha256"] == hashlib.sha256(patch.encode()).hexdigest()
