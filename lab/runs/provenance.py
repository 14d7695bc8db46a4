"""Where the numbers of a run come from: command, code, packages, device, data."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from lab.runs.code import code_of
from utils import PROJECT


def provenance(device: torch.device, values: Mapping[str, Any], fingerprint: str) -> tuple[dict[str, Any], str]:
    """(what provenance.json holds, the uncommitted changes as a patch): where the numbers of a run come from.

    values: its configuration, which names the code; fingerprint: of its data.
    """
    code, patch = code_state()
    packages = ("torch", "torchvision", "numpy", "hydra-core", "scikit-learn", "tensorboard")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "command": [sys.executable, *sys.argv],
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        **code,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: importlib.metadata.version(package) for package in packages},
        "device": f"{device} ({name})",
        "cpu_threads": torch.get_num_threads(),
        "data_sha256": fingerprint,
        "code_sha256": code_of(values),
    }, patch


CodeState = tuple[dict[str, str | None], str]
_known: CodeState | None = None


def use(code: CodeState) -> None:
    """Has this process take that for the state of its code: that of the process that it was forked from."""
    global _known  # noqa: PLW0603
    _known = code


def code_state() -> CodeState:
    """(the commit and a hash of what differs from it, as in provenance.json; the difference as a patch).

    As it was when this process asked for the first time: what it has imported does not change any more.
    """
    if _known is None:
        use(_ask_git())
    assert _known is not None
    return _known


def _ask_git() -> CodeState:
    """Asks for the commit and for what has changed; only where something has, also how."""
    lines = _git("--no-optional-locks", "status", "--porcelain=v2", "--branch", "--untracked-files=all", "-z").split(
        "\0"
    )
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), "(initial)")
    new = [line[2:] for line in lines if line.startswith("? ")]
    is_changed = any(line and not line.startswith("# ") for line in lines)
    patch = _uncommitted_patch(new) if is_changed and commit != "(initial)" else ""
    return {
        "git_commit": None if commit == "(initial)" else commit,
        "git_patch_sha256": hashlib.sha256(patch.encode()).hexdigest() if patch else None,
    }, patch


def _git(*arguments: str, **environment: str) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            ["git", "-C", str(PROJECT), *arguments],
            capture_output=True,
            check=False,
            text=True,
            errors="replace",
            timeout=20,
            env=os.environ | environment,
        ).stdout
    return ""


def _uncommitted_patch(new: Sequence[str]) -> str:
    """All that differs from the last commit, new files below 1 MB too, without touching the repository's own index."""
    index = _git("rev-parse", "--git-path", "index").strip()
    if not index or not (PROJECT / index).exists():
        return ""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "index"
        shutil.copy2(PROJECT / index, copy)  # with its time: git looks again at what was changed as late as that
        small = [name for name in new if (PROJECT / name).is_file() and (PROJECT / name).stat().st_size < 1e6]
        if small:
            _git("add", "--intent-to-add", "--", *small[:1000], GIT_INDEX_FILE=str(copy))
        return _git("diff", "HEAD", "--no-ext-diff", "--no-color", GIT_INDEX_FILE=str(copy))
