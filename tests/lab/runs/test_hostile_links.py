"""Nothing is written through a link in a run from someone else, and what never ends is not read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import Outcome
from helpers.hostile import go_on
from PIL import Image

from evaluate import evaluate_run, load_run
from lab.runs.export import export_run
from model.cache import decode_once
from model.datasets import image_folder
from utils import UserError, write_file

LINKS = [
    *("metrics.jsonl", "train.log", "status.json", "config.yaml", "provenance.json", "metrics.json", "evaluation.json"),
    *("best.pt", "last.pt", "before.pt", ".lock", ".lock.owner", ".config.yaml.tmp", ".evaluation.json.tmp"),
    *("events.out.tfevents.1.x.2", "learning_curves.png", "projector_config.pbtxt", ".model.safetensors", "00000/x"),
    *("outcomes.pt", ".outcomes.pt.tmp", "test_openings.jsonl", ".lock.evaluation"),
]


@pytest.mark.parametrize("name", LINKS)
def test_nothing_is_written_through_a_link(name: str, run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "thesis"
    path = run / name
    path.parent.mkdir(exist_ok=True)
    content = path.read_bytes() if path.exists() else b"my thesis"
    victim.write_bytes(content)
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    before = {file.name: file.lstat().st_mtime_ns for file in run.iterdir()}
    for write in (
        lambda: go_on(run),
        lambda: evaluate_run(run, device="cpu"),
        lambda: export_run(run, "best", "test", form="torch_export"),
    ):
        with pytest.raises(UserError, match="is no file but a link") as caught:
            write()
        assert str(path) in str(caught.value)
    assert victim.read_bytes() == content and path.is_symlink()
    assert {file.name: file.lstat().st_mtime_ns for file in run.iterdir()} == before
    load_run(run, "best")  # reading does no harm


def test_nothing_is_written_into_a_folder_that_is_a_link(run: Path, run_command: Callable[..., Outcome]) -> None:
    victim = run.parent.parent / "mine"
    victim.mkdir()
    (run / "00000").symlink_to(victim)
    assert run_command("evaluate", f"run={run}").code == 2
    assert run_command("train", f"resume={run}", "trainer.epochs=3").code == 2
    assert list(victim.iterdir()) == []


def test_a_temporary_file_that_is_a_link_is_replaced(tmp_path: Path) -> None:
    """Also where tables are written, which is no run directory."""
    (tmp_path / "thesis").write_text("my thesis")
    (tmp_path / ".results.md.tmp").symlink_to(tmp_path / "thesis")
    write_file(tmp_path / "results.md", b"a table")
    assert (tmp_path / "thesis").read_text() == "my thesis"
    assert (tmp_path / "results.md").read_text() == "a table"


def test_decoded_images_are_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "a" / "0.png")
    images, cache = image_folder("train", str(tmp_path), image_size=4), tmp_path / "cache"
    (path,) = [decode_once(images, cache).pixels, *cache.glob("*.pixels")][1:]
    path.unlink()
    (tmp_path / "thesis").write_bytes(b"my thesis" * 10)
    (cache / f".{path.name}.tmp").symlink_to(tmp_path / "thesis")
    assert len(decode_once(images, cache).pixels) == 1
    assert (tmp_path / "thesis").read_bytes() == b"my thesis" * 10


@pytest.mark.parametrize("name", ["best.pt", "config.yaml"])
def test_what_never_ends_is_not_read(name: str, run: Path) -> None:
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            load_run(run)
