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
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from utils import PROJECT


def provenance(device: torch.device, fingerprint: str) -> tuple[dict[str, Any], str]:
    """(what provenance.json holds, the uncommitted changes as a patch): where the numbers of a run come from."""
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
    }, patch


CodeState = tuple[dict[str, str | None], str]
_used: CodeState | None = None


def use(code: CodeState) -> None:
    """Has this process take that for the state of its code: that of the process that it was forked from."""
    global _used  # noqa: PLW0603
    _used = code


def code_state() -> CodeState:
    """(the commit and a hash of what differs from it, as in provenance.json; the difference as a patch)."""
    if _used is not None:
        return _used
    patch = _uncommitted_patch()
    return {
        "git_commit": _git("rev-parse", "HEAD").strip() or None,
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


def _uncommitted_patch() -> str:
    """All that differs from the last commit, new files below 1 MB too, without touching the repository's own index."""
    index = _git("rev-parse", "--git-path", "index").strip()
    if not index or not (PROJECT / index).exists():
        return ""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "index"
        shutil.copy(PROJECT / index, copy)
        untracked = _git("ls-files", "--others", "--exclude-standard", "-z").split("\0")
        small = [
            name for name in untracked if name and (PROJECT / name).is_file() and (PROJECT / name).stat().st_size < 1e6
        ]
        _git("add", "--intent-to-add", "--", *small[:1000], GIT_INDEX_FILE=str(copy))
        return _git("diff", "HEAD", "--no-ext-diff", "--no-color", GIT_INDEX_FILE=str(copy))
