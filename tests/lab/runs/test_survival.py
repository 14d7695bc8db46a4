"""A run that is killed goes on as if it had not been, wherever that was."""

from __future__ import annotations

import dataclasses
import itertools
import mmap
import os
import random
import signal
import time
from pathlib import Path

import pytest
import sklearn.datasets  # noqa: F401  these here, so that no forked process imports them for itself
import torch
import torch._dynamo
import torch.utils.tensorboard
from helpers.commands import read_lines
from helpers.processes import (
    fork,
    is_alive,
    needs_proc,
    processes_in,
    wait_until,
)
from helpers.runs import (
    SHORT,
    VARIANTS,
    assert_same,
    configuration,
    outcome_of,
    whole_run,
)
from omegaconf import DictConfig

import train
from lab.runs.checkpoint import load_tensors
from lab.runs.run import Run


@dataclasses.dataclass
class Kills:
    """What came of killing runs."""

    kills: int = 0
    runs: int = 0
    most_lost: int = 0  # steps that a kill has cost
    without_checkpoint: int = 0  # kills before the first one


def survive(
    cfg: DictConfig, directory: Path, kills: Kills, *, chance: random.Random, seconds: float, at_most: int
) -> None:
    """Trains in processes that are killed after up to so many seconds, one after the other, until the run finishes."""
    reached = mmap.mmap(-1, 8)  # the latest step, which outlives the process that took it
    epoch = read_lines(directory.parent / "whole" / "metrics.jsonl")[0]["step"]
    bound = min(cfg.trainer.checkpoint_every or epoch, epoch)
    after_step = Run.after_step

    def count(run: Run) -> None:
        reached[:8] = run.progress.step.to_bytes(8, "little")
        after_step(run)

    def work() -> None:
        Run.after_step = count  # type: ignore[method-assign]
        train.train(cfg, directory)

    for number in range(1000):
        pid = fork(work)
        if number < at_most:
            time.sleep(chance.uniform(0, seconds))
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code != -signal.SIGKILL:
            break
        kills.kills += 1
        whole = (directory / "last.pt").exists()
        step = load_tensors(directory / "last.pt")["progress"]["step"] if whole else 0
        kills.without_checkpoint += not whole
        lost = int.from_bytes(reached[:8], "little") - step
        assert 0 <= lost <= bound
        kills.most_lost = max(kills.most_lost, lost)
        reached[:8] = step.to_bytes(8, "little")
    kills.runs += 1
    assert code == 0
    assert not list(directory.glob(".*.tmp"))


def kill_often(cfg: DictConfig, folder: Path, kills: Kills, *, chance: random.Random, num_kills: int) -> None:
    """Kills runs of a configuration so many times in all, each of which must come to what an undisturbed one does."""
    started = time.perf_counter()
    os.waitpid(fork(lambda: train.train(cfg, folder / "whole")), 0)
    seconds = time.perf_counter() - started
    expected, wanted = outcome_of(folder / "whole"), kills.kills + num_kills
    for number in range(num_kills * 20):
        left = wanted - kills.kills
        if left <= 0:
            break
        survive(cfg, folder / str(number), kills, chance=chance, seconds=seconds, at_most=left)
        assert_same(outcome_of(folder / str(number)), expected)


@pytest.mark.parametrize("variant", ["mlp with dropout", "regression, sgd, passes"])
def test_runs_killed_at_random_end_as_if_left_alone(variant: str, tmp_path: Path) -> None:
    kills = Kills()
    cfg = configuration(*VARIANTS[variant], "trainer.checkpoint_every=2")
    kill_often(cfg, tmp_path, kills, chance=random.Random(0), num_kills=3)
    assert kills.kills == 3


@needs_proc
def test_a_killed_run_leaves_no_process_behind_that_holds_it(
    image_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes that decode images notice within seconds that they are alone; until then they block nothing."""
    monkeypatch.setattr(torch.utils.data._utils.worker, "MP_STATUS_CHECK_INTERVAL", 1.0)
    cfg = configuration(*VARIANTS["image folder, 2 workers"], f"data.root={image_root}")
    expected = whole_run(cfg, tmp_path / "whole")
    pid = fork(lambda: train.train(cfg, tmp_path / "killed"))
    wait_until((tmp_path / "killed" / "last.pt").exists)
    orphans = [process for process in processes_in(pid) if process != pid]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    train.train(cfg, tmp_path / "killed")
    assert_same(outcome_of(tmp_path / "killed"), expected)
    assert len(orphans) == 4, "two for training, two for validation"
    wait_until(lambda: not any(map(is_alive, orphans)), seconds=10)


EVERY = itertools.cycle(["null", "2", "3", "4", "1", "2"])
CAMPAIGN = [
    *([*variant, f"trainer.checkpoint_every={every}"] for variant, every in zip(VARIANTS.values(), EVERY, strict=False)),
    ["experiment=dynamic_net", "trainer.checkpoint_every=2"],
    ["experiment=two_layer_by_hand"],
    ["experiment=gaussians", "trainer.images=true", "trainer.checkpoint_every=1"],
    ["experiment=digits_mlp", "trainer.checkpoint_every=7"],
]  # fmt: skip


@pytest.mark.slow
def test_two_hundred_kills(image_root: Path, tmp_path: Path) -> None:
    """A mix of presets, killed 200 times: as many exact resumptions, and no more lost than the bound."""
    kills, chance = Kills(), random.Random(0)
    for number, overrides in enumerate(CAMPAIGN):
        cfg = configuration(f"data.root={image_root}", *overrides, *SHORT, "trainer.epochs=8")
        share = 200 * (number + 1) // len(CAMPAIGN) - kills.kills
        kill_often(cfg, tmp_path / str(number), kills, chance=chance, num_kills=share)
        print(f"{number + 1}/{len(CAMPAIGN)} {kills}", flush=True)
    assert kills.kills == 200
