"""A download that is not what it should be leaves nothing behind."""

from __future__ import annotations

import gzip
import io
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Outcome, assert_one_line
from helpers.runs import (
    files_of,
)

from model.datasets import mnist
from model.examples import DataError


def escaping_archive() -> bytes:
    """An archive whose files would land beside the folder that it is unpacked in."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("../escaped", "/tmp/escaped-from-an-archive", "cifar-10-batches-py/data_batch_1"):
            info = tarfile.TarInfo(name)
            info.size = 7
            archive.addfile(info, io.BytesIO(b"escaped"))
    return buffer.getvalue()


DOWNLOADS = {
    "an archive that escapes": ("cifar10", escaping_archive()),
    "an archive of other content": ("mnist", gzip.compress(b"no images")),
    "an archive that is none": ("mnist", b"<!DOCTYPE html><html>404</html>"),
    "nothing": ("cifar100", b""),
}


@pytest.mark.parametrize("case", DOWNLOADS)
@pytest.mark.parametrize("had_folder", [True, False], ids=["folder", "no folder"])
def test_a_download_with_a_wrong_checksum_leaves_nothing(
    case: str, had_folder: bool, run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, content = DOWNLOADS[case]
    served: list[str] = []

    class Response(io.BytesIO):
        length = len(content)
        url = "http://example.invalid/file"

    def urlopen(request: Any, *_: Any, **__: Any) -> Response:
        served.append(str(request))
        return Response(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    root = tmp_path / "there" / "data"
    if had_folder:
        root.mkdir(parents=True)
        (root / "mine").write_text("keep")
    before = sorted(tmp_path.rglob("*"))
    outcome = run_command("train", f"data={data}", f"data.root={root}", f"experiments_dir={tmp_path / 'x'}")
    *bars, last = outcome.err.strip().splitlines()
    assert all("B/s]" in bar or not bar for bar in bars)  # a download shows how far it is
    assert_one_line(Outcome(outcome.code, outcome.out, last), str(root), "downloading it failed")
    assert served
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/escaped-from-an-archive").exists()


def test_an_archive_with_a_wrong_checksum_that_is_there_is_not_unpacked(
    run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no network in a test")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    root = tmp_path / "data"
    root.mkdir()
    (root / "cifar-10-python.tar.gz").write_bytes(escaping_archive())
    before = files_of(tmp_path)
    outcome = run_command("train", "data=cifar10", f"data.root={root}", f"experiments_dir={tmp_path / 'x'}")
    assert_one_line(outcome, "CIFAR10")
    assert files_of(tmp_path) == before


def test_files_of_mnist_that_are_cut_are_named(tmp_path: Path) -> None:
    """As a download that was killed leaves them; torchvision takes them for whole, and downloads nothing."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(
            bytes([0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 28, 0, 0, 0, 28]) + b"x"
        )
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + bytes(9))
    before = files_of(tmp_path)
    with pytest.raises(DataError, match="damaged there") as caught:
        mnist("train", str(tmp_path))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert files_of(tmp_path) == before
