"""A pickle in a run from someone else is not executed, wherever it stands."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Outcome

from evaluate import load_run
from lab.runs.checkpoint import MARK, load_tensors
from utils import UserError


class Payload:
    """Pickled, it is a call of os.system."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.marker}'",)


def zipped(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def tarred(content: bytes) -> bytes:
    """The format of PyTorch's first versions."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


PICKLES: dict[str, Callable[[Payload], bytes]] = {
    "raw": pickle.dumps,
    "raw, old protocol": lambda payload: pickle.dumps({"model": payload}, protocol=0),
    "zip": zipped,
    "zip, within a state": lambda payload: zipped({"model": {"weight": payload}, "progress": {"epoch": 1}}),
    "before zip": lambda payload: zipped(payload, _use_new_zipfile_serialization=False),
    "tar": lambda payload: tarred(pickle.dumps(payload)),
}


def sealed(content: bytes) -> bytes:
    """With the SHA-256 that a whole checkpoint ends with."""
    if content.startswith(b"PK"):
        content = content[:-2] + (len(MARK) + 64).to_bytes(2, "little")
    return content + MARK + hashlib.sha256(content).hexdigest().encode()


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_is_not_executed(kind: str, run: Path, marker: Path) -> None:
    content = PICKLES[kind](Payload(marker))
    for damage in (content, sealed(content)):
        for name in ("best.pt", "last.pt"):
            (run / name).write_bytes(damage)
            with pytest.raises(UserError, match=name):
                load_tensors(run / name)
            with pytest.raises(UserError, match=name):
                load_run(run, name[:-3])


def test_the_payload_is_one(tmp_path: Path) -> None:
    pickle.loads(PICKLES["raw"](Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["raw", "zip, within a state"])
def test_no_command_executes_a_pickle(
    kind: str, run: Path, use: Callable[[Path], dict[str, Outcome]], marker: Path
) -> None:
    metrics = (run / "metrics.jsonl").read_bytes()
    for name in ("best.pt", "last.pt", "before.pt"):
        (run / name).write_bytes(sealed(PICKLES[kind](Payload(marker))))
    outcomes = use(run)
    assert (outcomes["evaluate"].code, outcomes["resume"].code) == (2, 2)
    assert "more than tensors and plain types" in outcomes["evaluate"].err
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_pickles_under_other_names_are_not_looked_at(
    run: Path, use: Callable[[Path], dict[str, Outcome]], marker: Path
) -> None:
    for kind, name in enumerate(
        ["model.pkl", "study.pkl", "model.pt2", "events.out.tfevents.0.x", "uncommitted.patch"]
    ):
        (run / name).write_bytes(list(PICKLES.values())[kind](Payload(marker)))
    (run / ".hydra").mkdir()
    (run / ".hydra" / "config.yaml").write_text(f"_target_: os.system\ncommand: touch '{marker}'\n")
    assert [outcome.code for outcome in use(run).values()] == [0, 0, 0]
