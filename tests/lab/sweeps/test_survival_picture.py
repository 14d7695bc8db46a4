"""experiment=survival: a run that is killed again and again on its way, beside one that is not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.commands import Outcome
from PIL import Image

from lab.runs.checkpoint import load_tensors
from lab.sweeps.callbacks import kills_of, losses_of

SMALL = ("experiment=survival", "trainer.epochs=2", "data.max_batches=6", "trainer.checkpoint_every=2")


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_one_that_was_not(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    arguments = (*SMALL, "hydra.launcher.kills=[9,3]", "trainer.device=cpu", f"experiments_dir={tmp_path}")
    outcome = run_command("train", *arguments)
    assert outcome.code == 0, outcome.err
    assert "weights at the end: identical, bit for bit" in outcome.out
    undisturbed, survivor = (tmp_path / "survival" / f"killed-{killed}" / "seed-0" for killed in (False, True))
    first, second = kills_of(survivor)
    assert 3 <= first < second
    assert 9 <= second <= 12
    assert kills_of(undisturbed) == []
    assert losses_of(survivor) == losses_of(undisturbed)
    assert losses_of(survivor)[0] == list(range(1, 13))
    one, other = (load_tensors(directory / "last.pt") for directory in (undisturbed, survivor))
    assert all(torch.equal(weight, other["model"][name]) for name, weight in one["model"].items())
    # It went on, each time, from a checkpoint: nothing was begun from the start again.
    starts = re.findall(r"^run .*, going on after epoch \d+(?:, step (\d+))?$", log_of(survivor), re.MULTILINE)
    assert len(starts) == 2
    assert json.loads((survivor / "status.json").read_text())["state"] == "finished"
    for name in ("survival", "survival_dark"):
        with Image.open(tmp_path / "survival" / f"{name}.gif") as picture:
            assert picture.n_frames > 3  # type: ignore[attr-defined]
        assert (tmp_path / "survival" / f"{name}.png").exists()

    again = run_command("train", *arguments)
    assert "2 jobs: 2 were finished, 0 ran, 0 failed" in again.out
    anew = run_command("train", *arguments, "rerun=true")
    assert anew.code == 0, anew.err
    assert "killed  2 of 2 times" in anew.out
    assert len(kills_of(survivor)) == 2
    assert losses_of(survivor) == losses_of(undisturbed)


@pytest.mark.slow
def test_a_kill_that_never_comes_due_leaves_the_run_alone(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    arguments = (*SMALL, "hydra.launcher.kills=[1000]", "trainer.device=cpu", f"experiments_dir={tmp_path}")
    outcome = run_command("train", *arguments)
    assert outcome.code == 0, outcome.err
    assert "killed  1" not in outcome.out
    assert "weights at the end: identical, bit for bit" in outcome.out


def test_kills_are_steps(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run_command("train", "experiment=survival", "hydra.launcher.kills=[x]", f"experiments_dir={tmp_path}")
    assert outcome.code == 2
    assert "hydra.launcher.kills is" in outcome.err
    assert not list(tmp_path.iterdir())


def log_of(directory: Path) -> str:
    return (directory / "train.log").read_text()
