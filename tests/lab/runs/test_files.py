"""Files whose content may be anything: a pipe, a device, a file without end, nesting that ends a reader."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lab.runs.files import read_bytes, read_json, read_text, read_yaml
from utils import UserError


@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_only_files_of_a_size_to_be_expected_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(20 * 2**30)
    started = time.perf_counter()
    for read in (read_text, read_bytes, read_json, read_yaml):
        with pytest.raises(UserError, match=r"file (cannot be|is not) read"):
            read(path)
    assert time.perf_counter() - started < 5


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('{"a": [1]}')
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_json(tmp_path / "link", a=list) == {"a": [1]} == read_yaml(tmp_path / "link")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b'{"a": 1} x'], ids=["empty", "cut", "binary", "more"])
def test_read_json_names_a_damaged_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(UserError, match=r"status\.json is damaged"):
        read_json(tmp_path / "status.json")


@pytest.mark.parametrize("content", ["", "{", '{"a": 1}', "[]", "[" * 100_000])
def test_what_is_not_as_it_was_written_is_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "file").write_text(content)
    with pytest.raises(UserError, match="file is damaged"):
        read_json(tmp_path / "file", a=str)
    with pytest.raises(UserError, match="nothing is missing"):
        read_json(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["a: " + "[" * 50_000, "- " * 50_000, "? " * 50_000, "a: " + "{a: " * 50_000])
def test_deep_nesting_of_yaml_is_refused_before_it_is_built(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(ValueError, match="more than 100 levels"):
        read_yaml(tmp_path / "file")


def test_nesting_by_indentation_is_refused_as_well(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("\n".join(" " * level + "a:" for level in range(150)))
    with pytest.raises(ValueError, match="more than 100 levels"):
        read_yaml(tmp_path / "file")


def test_many_values_side_by_side_are_no_nesting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a: [" + "[1], " * 5_000 + "[1]]\n" + "b:\n" + "- 1\n" * 1_000)
    assert len(read_yaml(tmp_path / "file")["a"]) == 5_001
