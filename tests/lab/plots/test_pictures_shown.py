"""What a learner shows becomes files and TensorBoard's pictures, and changes nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Outcome
from helpers.runs import same
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import train
from lab.runs.checkpoint import load_tensors

HERE = "test_pictures_shown"
SHORT = ["data.limit=64", "trainer.epochs=5", "model.dropout=0.5", "trainer.ema=0.9"]


class Showing(train.Learner):
    """Shows one of everything, with what it drew and the mode that it was in."""

    def show(self, epoch: int) -> Mapping[str, Tensor | str]:
        modes = [network.training for network in (self.model, self.average.network)]
        drawn = f"{torch.rand(()):.4f}"
        text = f"epoch {epoch} {modes} {torch.is_grad_enabled()} {len(self.first_batch().inputs)} {drawn}"
        frames = torch.stack([torch.full((3, 20, 30), shade) for shade in (0.0, 0.5, 1.0)])
        return {"sample": text, "image": torch.tensor([1.0, 0.5, -3.0]).view(3, 1, 1).expand(3, 4, 5), "film": frames}


class Silent(train.Learner):
    """Shows nothing."""


class Broken(train.Learner):
    """Fails at it, or names no file."""

    def show(self, epoch: int) -> Mapping[str, Tensor | str]:
        if epoch == 1:
            raise ZeroDivisionError("no picture today")
        return {"../outside": "text"}


def run_learner(run_train: Callable[..., Path], name: str, *arguments: str) -> Path:
    return run_train(f"learner._target_={HERE}.{name}", "trainer.images=true", *SHORT, *arguments)


def test_what_a_learner_shows_is_written_as_files_and_for_tensorboard(run_train: Callable[..., Path]) -> None:
    directory = run_learner(run_train, "Showing")
    text = (directory / "sample.txt").read_text()
    assert text.startswith("epoch 5 [False, False] False 143 ")
    with Image.open(directory / "image.png") as image:
        assert np.asarray(image).tolist() == [[[255, 128, 0]] * 5] * 4
    with Image.open(directory / "film.gif") as film:
        assert film.n_frames == 3 and film.size == (30, 20)
    events = EventAccumulator(str(directory), {"images": 0, "tensors": 0}).Reload()
    assert [event.step for event in events.Tensors("sample/text_summary")] == [1, 2, 4, 5]
    assert [event.step for event in events.Images("image")] == [1, 2, 4, 5]
    drawn = {event.tensor_proto.string_val[0].split()[-2] for event in events.Tensors("sample/text_summary")}
    assert len(drawn) == 1  # the same random numbers each time


def test_showing_changes_nothing_of_the_run(run_train: Callable[..., Path]) -> None:
    states = [load_tensors(run_learner(run_train, name) / "last.pt") for name in ("Showing", "Silent")]
    assert all(same(states[0][part], states[1][part]) for part in ("model", "average", "optimizer", "ranks"))


def test_the_last_epoch_is_shown_where_patience_ends_the_run(run_train: Callable[..., Path]) -> None:
    directory = run_learner(
        run_train, "Showing", "optimizer.lr=1e-30", "trainer.patience=2", "trainer.monitor=val/loss"
    )
    assert (directory / "sample.txt").read_text().startswith("epoch 3 ")


def test_nothing_is_shown_without_pictures(run_train: Callable[..., Path]) -> None:
    directory = run_learner(run_train, "Showing", "trainer.images=false")
    assert not {"sample.txt", "image.png", "film.gif"} & {path.name for path in directory.iterdir()}


@pytest.mark.parametrize(("epochs", "words"), [(1, "no picture today"), (2, "'../outside' is none for a file")])
def test_what_cannot_be_shown_is_a_line(
    epochs: int, words: str, run_command: Callable[..., Outcome], tmp_path: Path
) -> None:
    learner = f"learner._target_={HERE}.Broken"
    outcome = run_command("train", f"experiments_dir={tmp_path}", learner, *SHORT, f"trainer.epochs={epochs}")
    assert outcome.code == 0
    (line,) = [line for line in outcome.err.splitlines() if words in line]
    assert line.startswith("WARNING what the learner shows cannot be drawn (")
    assert not (tmp_path / "outside.txt").exists()
