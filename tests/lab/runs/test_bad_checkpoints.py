"""A checkpoint that is damaged, or of something else, is refused and nothing is lost."""

from __future__ import annotations

import copy
import hashlib
import io
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Outcome, assert_one_line
from helpers.runs import (
    files_of,
)
from hydra.core.global_hydra import GlobalHydra

import train
from evaluate import load_run
from lab.runs.checkpoint import MARK, load_tensors, save_tensors
from utils import UserError


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


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "the last byte missing": lambda content: content[:-1],
    "a byte more": lambda content: content + b"\n",
    "zeros": lambda content: bytes(len(content)),
    "a page": lambda content: b"<!DOCTYPE html><html>404 Not Found</html>",
    "a bit of the data": lambda content: flipped(content, len(content) // 2),
    "a bit of a key": lambda content: flipped(content, content.index(b"fc1.weight")),
    "a bit of the checksum": lambda content: flipped(content, len(content) - 5),
    "a pointer": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_nothing_is_lost(
    case: str, run: Path, run_command: Callable[..., Outcome]
) -> None:
    for name in ("best.pt", "last.pt", "before.pt"):
        (run / name).write_bytes(DAMAGES[case]((run / name).read_bytes()))
    before = files_of(run)
    assert_one_line(run_command("evaluate", f"run={run}"), "best.pt is damaged")
    assert_one_line(run_command("train", f"resume={run}", "trainer.epochs=3"), "last.pt is damaged")
    with pytest.raises(UserError, match=r"last\.pt is damaged"):
        load_run(run, "last")
    changed = {name for name, content in files_of(run).items() if before.get(name) != content}
    assert changed <= {"train.log"}  # which says it, too


def test_the_checkpoint_before_is_taken_where_the_last_is_damaged(
    run: Path, run_command: Callable[..., Outcome]
) -> None:
    (run / "last.pt").write_bytes(DAMAGES["a bit of the data"]((run / "last.pt").read_bytes()))
    outcome = run_command("train", f"resume={run}", "trainer.epochs=3")
    assert outcome.code == 0, outcome.err
    assert "WARNING" in outcome.err and "last.pt is damaged" in outcome.err
    assert [line.split('"epoch": ')[1][0] for line in (run / "metrics.jsonl").read_text().splitlines()] == [
        "1",
        "2",
        "3",
    ]


def widen(state: dict[str, Any]) -> None:
    state["model"] = {name: torch.cat([tensor, tensor]) for name, tensor in state["model"].items()}


def reorder(state: dict[str, Any]) -> None:
    state["optimizer"]["param_groups"] *= 2


# What was changed -> in which of the two commands it shows, and what is said.
STATES: dict[str, tuple[Callable[[dict[str, Any]], Any], str, list[str]]] = {
    "weights of other shapes": (widen, "evaluate resume", ["does not fit this configuration: model", "size mismatch"]),
    "weights under other names": (
        lambda state: state["model"].update(renamed=state["model"].pop("fc1.weight")),
        "evaluate resume",
        ["does not fit this configuration: model", "fc1.weight"],
    ),
    "other groups of the optimiser": (reorder, "resume", ["optimizer", "parameter group"]),
    "a newer version": (lambda state: state.update(format=99), "evaluate resume", ["format 99", "newer version"]),
    "an older version": (lambda state: state.pop("schedule"), "resume", ["holds no schedule", "another version"]),
    "other data": (lambda state: state["spec"].update(classes=("a",)), "resume", ["another spec"]),
    "another configuration": (lambda state: state.update(configuration="0"), "resume", ["another configuration"]),
}


@pytest.mark.parametrize("case", STATES)
def test_a_checkpoint_of_something_else_is_refused_and_nothing_is_lost(
    case: str, run: Path, run_command: Callable[..., Outcome]
) -> None:
    change, commands, parts = STATES[case]
    for name in ("best.pt", "last.pt"):
        state = load_tensors(run / name)
        if name == "last.pt" or "evaluate" in commands:
            change(state)
        save_tensors(run / name, state)
    before = files_of(run)
    assert_one_line(run_command("train", f"resume={run}", "trainer.epochs=3"), "last.pt", *parts)
    if "evaluate" in commands:
        assert_one_line(run_command("evaluate", f"run={run}"), "best.pt", *parts)
    assert files_of(run) == before


def test_checkpoints_of_another_run_are_refused(original: Path, run: Path, run_command: Callable[..., Outcome]) -> None:
    for name in ("best.pt", "last.pt"):
        shutil.copy(original / "other.run" / name, run / name)
    assert_one_line(run_command("train", f"resume={run}", "trainer.epochs=3"), "last.pt", "another configuration")
    assert_one_line(run_command("evaluate", f"run={run}"), "best.pt", "another configuration (model.hidden_sizes)")


@pytest.mark.parametrize("kind", ["deflated", "one entry under many names"])
def test_a_checkpoint_that_unpacks_to_more_than_itself_is_refused(kind: str, tmp_path: Path) -> None:
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save({"model": torch.zeros(2**22 if kind == "deflated" else 2**10)}, plain)
    with zipfile.ZipFile(plain) as saved, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in saved.namelist():
            archive.writestr(name, saved.read(name), zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED)
        if kind != "deflated":
            largest = max(archive.infolist(), key=lambda entry: entry.file_size)
            for number in range(100):
                again = copy.copy(largest)
                again.filename = f"archive/data/{number + 1}"
                archive.filelist.append(again)
    content = packed.getvalue()[:-2] + (len(MARK) + 64).to_bytes(2, "little")
    (tmp_path / "best.pt").write_bytes(content + MARK + hashlib.sha256(content).hexdigest().encode())
    assert len(content) < 10**5
    with pytest.raises(UserError, match="would unpack to"):
        load_tensors(tmp_path / "best.pt")
