"""Files and folders that are not what they should be are named in one line."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Outcome, assert_one_line
from helpers.runs import (
    files_of,
)
from hydra.core.global_hydra import GlobalHydra

import train
from evaluate import load_run


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, and another one whose network is larger, beside it."""
    folder = tmp_path_factory.mktemp("original")
    for name, size in (("run", 8), ("other", 16)):
        with pytest.MonkeyPatch.context() as patch:
            arguments = ["data=quadratic", "data.num_examples=20", "trainer.epochs=2", "trainer.images=false"]
            arguments += [
                "trainer.device=cpu",
                f"experiments_dir={folder}",
                f"name={name}",
                f"model.hidden_sizes=[{size}]",
            ]
            patch.setattr(sys, "argv", ["train.py", *arguments])
            GlobalHydra.instance().clear()
            train.main()
        next((folder / name).iterdir()).rename(folder / f"{name}.run")
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy of the first of them."""
    return Path(shutil.copytree(original / "run.run", tmp_path / "run"))


OPTIONS = {
    "a tab": ("_target_: model.net.MLP\n\thidden_sizes: [3]\n", ["broken.yaml", "line 2"]),
    "a duplicate key": ("_target_: model.net.MLP\n_target_: model.net.CNN\n", ["duplicate key _target_"]),
    "an unclosed list": ("_target_: model.net.MLP\nhidden_sizes: [3\n", ["broken.yaml", "line"]),
    "a list": ("- 1\n- 2\n", ["broken"]),
    "text": ("only text\n", ["model._target_"]),
    "nothing": ("", ["model._target_"]),
    "no target": ("hidden_sizes: [3]\n", ["model"]),
    "binary": ("\0\1", ["broken.yaml"]),
    "code": ("_target_: !!python/object/apply:os.system ['exit']\n", ["python/object/apply"]),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_file_of_configuration_that_cannot_be_read_is_named(
    case: str, run_command: Callable[..., Outcome], tmp_path: Path
) -> None:
    content, parts = OPTIONS[case]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "broken.yaml").write_text(content)
    before = sorted(tmp_path.rglob("*"))
    outcome = run_command("train", "--config-dir", str(tmp_path), "model=broken", f"experiments_dir={tmp_path / 'x'}")
    assert_one_line(outcome, *parts)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "case", ["a tab", "a duplicate key", "an unclosed list", "a list", "text", "nothing", "binary"]
)
def test_a_recorded_configuration_that_cannot_be_read_is_named(
    case: str, run: Path, run_command: Callable[..., Outcome]
) -> None:
    (run / "config.yaml").write_text(OPTIONS[case][0])
    before = files_of(run)
    for command in (["evaluate", f"run={run}"], ["train", f"resume={run}", "trainer.epochs=3"]):
        assert_one_line(run_command(*command), "config.yaml cannot be read")
    assert files_of(run) == before


def test_odd_names_of_folders_are_no_mistake(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    folder = tmp_path / "a folder, with 'quotes' & $HOME #1 (ünï = ✓)"
    quoted = str(folder).replace("'", "\\'")
    small = ["data=quadratic", "trainer.epochs=1", "trainer.images=false", "trainer.device=cpu", "name=x"]
    outcome = run_command("train", *small, f"experiments_dir='{quoted}'")
    assert outcome.code == 0, outcome.err
    (run,) = folder.glob("x/*")
    quoted = str(run).replace("'", "\\'")
    assert run_command("evaluate", f"run='{quoted}'").code == 0
    assert run_command("train", f"resume='{quoted}'", "trainer.epochs=2").code == 0
    assert load_run(run)[1].trainer.epochs == 2


@pytest.mark.parametrize("key", ["experiments_dir", "resume", "data.root"])
def test_a_path_that_is_too_long_is_one_line(key: str, run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    for name in ("x" * 300, "x/" * 3000):
        outcome = run_command(
            "train", "data=image_folder" if key == "data.root" else "seed=0", f"{key}={tmp_path}/{name}"
        )
        assert_one_line(outcome, "too long", code=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["a folder", "proc"])
def test_output_that_is_read_only_is_one_line(place: str, run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    folder = tmp_path / "read-only" if place == "a folder" else Path("/proc/nowhere")
    if place == "a folder":
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        folder.mkdir(mode=0o555)
    elif not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    outcome = run_command("train", "data=quadratic", f"experiments_dir={folder}")
    assert_one_line(outcome, str(folder), code=1)
    assert not folder.exists() or not list(folder.iterdir())


def test_a_run_that_is_read_only_is_evaluated_in_one_line(
    run: Path, run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a read-only file system, also for root."""
    open_file = Path.open

    def refuse(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if "w" in mode and path.is_relative_to(run):
            raise OSError(30, "Read-only file system", str(path))
        return open_file(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert_one_line(run_command("evaluate", f"run={run}"), "outcomes.pt", "Read-only file system", code=1)
    assert not list(run.glob("evaluation*"))


def test_files_where_folders_should_be_are_one_line(
    run: Path, run_command: Callable[..., Outcome], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert_one_line(run_command("evaluate", f"run={file}"), "file", "no config.yaml")
    assert_one_line(run_command("evaluate", f"run={file}/x"), "file/x", "does not exist")
    assert_one_line(run_command("train", f"resume={file}"), "file", "no config.yaml")
    assert_one_line(run_command("train", "data=quadratic", f"experiments_dir={file}"), str(file), code=1)
    assert_one_line(run_command("train", "data=image_folder", f"data.root={file}"), str(file), "train/<class>")
    for name in ("last.pt", "config.yaml", "provenance.json"):
        whole = (run / name).read_bytes()
        (run / name).unlink()
        (run / name).mkdir()
        outcome = run_command("train", f"resume={run}", "trainer.epochs=3")
        assert outcome.code in (1, 2), outcome.err
        (line,) = [line for line in outcome.err.strip().splitlines() if not line.startswith("WARNING")]
        assert name in line
        (run / name).rmdir()
        (run / name).write_bytes(whole)
    assert file.read_text() == "mine"
