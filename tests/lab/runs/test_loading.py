"""A run is loaded and evaluated from its directory alone, wherever it and its data are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Outcome, assert_one_line, read
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch import Tensor

from evaluate import load_run
from lab.runs.checkpoint import load_tensors


def write_folder(root: Path, *, names: tuple[str, ...] = ("dark", "light"), num_mislabelled: int = 1) -> None:
    """Two classes of 8x8 images, told apart by their brightness, but for a few of each in the test split."""
    generator = np.random.default_rng(0)
    for split, num in (("train", 20), ("test", 6)):
        for label, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for number in range(num):
                is_mislabelled = split == "test" and number < num_mislabelled
                pixels = generator.integers(0, 128, (8, 8, 3)) + 127 * ((label + is_mislabelled) % 2)
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")


FOLDER = ["data=image_folder", "data.image_size=8", "data.num_workers=0", "data.batch_size=8", "trainer.epochs=3"]


@pytest.fixture
def folder_run(tmp_path: Path, run_train: Callable[..., Path]) -> Path:
    """A run on tmp_path/images."""
    write_folder(tmp_path / "images")
    return run_train(*FOLDER, f"data.root={tmp_path / 'images'}")


def folder_inputs(run: Path, root: Path) -> Tensor:
    """The test images of `write_folder` as the run's network gets them."""
    files = sorted((root / "test").glob("*/*.png"))
    pixels = np.stack([np.array(Image.open(path)) for path in files]).transpose(0, 3, 1, 2) / 255
    spec = load_tensors(run / "best.pt")["spec"]
    mean, std = (np.array(spec[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    return torch.from_numpy((pixels - mean) / std).float()


def test_a_run_is_loaded_without_its_data_from_anywhere(
    folder_run: Path, tmp_path: Path, run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_command("evaluate", f"run={folder_run}").code == 0
    confusions = np.array(read(folder_run / "evaluation.json")["confusion_matrix"])
    inputs = folder_inputs(folder_run, tmp_path / "images")
    shutil.rmtree(tmp_path / "images")
    moved = tmp_path / "elsewhere" / "copy"
    moved.parent.mkdir()
    shutil.move(folder_run, moved)
    monkeypatch.chdir(moved.parent)
    for name in ("copy", str(moved)):
        model, cfg = load_run(name)
        assert not model.training
        assert cfg.data.image_size == 8
        with torch.no_grad():
            predicted = model(inputs).argmax(dim=1).numpy()
        assert confusion_matrix([0] * 6 + [1] * 6, predicted).tolist() == confusions.tolist()
    assert confusions.trace() == 10  # it has learned something, or the comparison says little
    last, _ = load_run("copy", "last")
    weights = load_tensors(moved / "last.pt")["model"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in last.state_dict().items())


def test_a_folder_without_a_mistake_is_evaluated(
    tmp_path: Path, run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    write_folder(tmp_path / "images", num_mislabelled=0)
    run = run_train(*FOLDER, f"data.root={tmp_path / 'images'}")
    assert run_command("evaluate", f"run={run}").code == 0
    assert read(run / "evaluation.json")["test/accuracy"] == 1.0


def test_data_may_have_moved(folder_run: Path, tmp_path: Path, run_command: Callable[..., Outcome]) -> None:
    assert run_command("evaluate", f"run={folder_run}").code == 0
    there = read(folder_run / "evaluation.json")
    (tmp_path / "images").rename(tmp_path / "moved")
    assert run_command("evaluate", f"run={folder_run}").code == 2
    assert run_command("evaluate", f"run={folder_run}", f"data.root={tmp_path / 'moved'}").code == 0
    assert read(folder_run / "evaluation.json") == there


def test_the_test_split_is_evaluated_where_there_is_no_training_data(
    folder_run: Path, tmp_path: Path, run_command: Callable[..., Outcome]
) -> None:
    shutil.rmtree(tmp_path / "images" / "train")
    outcome = run_command("evaluate", f"run={folder_run}")
    assert outcome.code == 0, outcome.err
    assert read(folder_run / "evaluation.json")["num_examples"] == 12


def test_other_classes_are_refused(folder_run: Path, tmp_path: Path, run_command: Callable[..., Outcome]) -> None:
    write_folder(tmp_path / "other", names=("cat", "dog"))
    write_folder(tmp_path / "more", names=("dark", "light", "middle"))
    for root in ("other", "more"):
        outcome = run_command("evaluate", f"run={folder_run}", f"data.root={tmp_path / root}")
        assert_one_line(outcome, "classes", str(folder_run))
    assert not (folder_run / "evaluation.json").exists()


def test_what_is_left_out_of_the_data_is_said_and_recorded(
    tmp_path: Path, run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    write_folder(tmp_path / "images")
    for split in ("train", "test"):
        (tmp_path / "images" / split / "dark" / "notes.txt").write_text("not an image")
    run = run_train(*FOLDER, f"data.root={tmp_path / 'images'}")
    note = f"1 files in {tmp_path / 'images' / 'train'} are no images and are skipped: 1 .txt"
    assert note in (run / "train.log").read_text()
    assert read(run / "provenance.json")["data_notes"] == [note]
    outcome = run_command("evaluate", f"run={run}")
    assert note.replace("train are", "test are") in outcome.out
    assert read(run / "evaluation.json")["data_notes"] == [note.replace("train are", "test are")]
