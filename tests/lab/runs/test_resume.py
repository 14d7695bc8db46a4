"""A run that was stopped and resumed is the run that was not stopped, bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Outcome, read_lines
from helpers.runs import SHORT, VARIANTS, Killed, kill_after, outcome_of, same

import train
from lab.runs.checkpoint import load_tensors, save_tensors
from lab.runs.directory import finished_result
from lab.runs.loading import load_config
from utils import UserError


@pytest.fixture(scope="module")
def wholes() -> dict[str, dict[str, Any]]:
    """What uninterrupted runs came to, by variant: each is needed several times."""
    return {}


def signal_after(step_to_stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cluster does to a job whose time is up, in the middle of an epoch."""
    step = train.Learner.step
    num_steps = 0

    def signalled_step(*batch: Any, **keywords: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps == step_to_stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*batch, **keywords)

    monkeypatch.setattr(train.Learner, "step", signalled_step)


# How a run of 5 steps an epoch ends, what it is told about checkpoints, and the step that it goes on from.
ENDS: dict[str, tuple[Callable[..., None], int, list[str], int]] = {
    "killed in epoch 1": (kill_after, 3, [], 0),
    "killed in epoch 3": (kill_after, 14, [], 10),
    "killed in epoch 3, checkpoints within": (kill_after, 13, ["trainer.checkpoint_every=3"], 12),
    "signalled in epoch 2": (signal_after, 8, [], 8),
    "signalled at the end of epoch 2": (signal_after, 10, [], 10),
}


@pytest.mark.parametrize("end", ENDS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_resumed_equals_uninterrupted(
    variant: str,
    end: str,
    wholes: dict[str, dict[str, Any]],
    image_root: Path,
    run_train: Callable[..., Path],
    run_command: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    arguments = [*SHORT, *VARIANTS[variant], f"data.root={image_root}"]
    if variant not in wholes:
        wholes[variant] = outcome_of(run_train(*arguments, name="whole"))

    stop, step, options, step_of_checkpoint = ENDS[end]
    stop(step, monkeypatch)
    with pytest.raises((Killed, AssertionError)):
        run_train(*arguments, *options, name="stopped")
    monkeypatch.undo()
    (stopped,) = (tmp_path / "experiments" / "stopped").iterdir()
    torch.manual_seed(12345)  # what another process would have

    again = run_command("train", f"resume={stopped}")
    assert again.code == 0, again.err
    assert (f", step {step_of_checkpoint}\n" in again.out) == (step_of_checkpoint > 0)
    outcome = outcome_of(stopped)
    for what, expected in wholes[variant].items():
        assert same(outcome[what], expected), what


def test_a_run_does_not_go_on_with_other_data(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    directory = run_train("data=quadratic", "trainer.epochs=1")
    config = (directory / "config.yaml").read_text()
    (directory / "config.yaml").write_text(config.replace("data_seed: 0", "data_seed: 1"))
    outcome = run_command("train", f"resume={directory}", "trainer.epochs=2")
    assert outcome.code == 2 and "training data is not what" in outcome.err
    (directory / "config.yaml").write_text(config)
    assert run_command("train", f"resume={directory}", "trainer.epochs=2").code == 0
    assert [record["epoch"] for record in read_lines(directory / "metrics.jsonl")] == [1, 2]
    provenance = json.loads((directory / "provenance.json").read_text())
    assert provenance["resumed"][0]["overrides"] == [f"resume={directory}", "trainer.epochs=2"]


def test_a_run_from_before_an_option_existed_goes_on_and_one_of_other_options_does_not(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    directory = run_train("trainer.epochs=1", "data.limit=200")
    last, config = directory / "last.pt", directory / "config.yaml"
    state = load_tensors(last)
    del state["configuration"]["data.flip"]
    save_tensors(last, state)
    config.write_text("".join(line for line in config.read_text().splitlines(keepends=True) if "  flip:" not in line))
    assert run_command("train", f"resume={directory}", "trainer.epochs=2").code == 0
    assert len(read_lines(directory / "metrics.jsonl")) == 2
    config.write_text(config.read_text().replace("batch_size: 64", "batch_size: 32"))
    outcome = run_command("train", f"resume={directory}", "trainer.epochs=3")
    assert outcome.code == 2 and "saved with another configuration (data.batch_size)" in outcome.err
    assert len(read_lines(directory / "metrics.jsonl")) == 2


def test_a_warning_stands_once_in_the_log_of_a_job_whose_errors_go_there_too(
    run_train: Callable[..., Path],
) -> None:
    directory = run_train("trainer.epochs=1", "data.limit=200", "trainer.images=false")
    with (directory / "last.pt").open("ab") as file:
        file.write(b"x")
    (directory / "before.pt").write_bytes((directory / "best.pt").read_bytes())  # whole, but of other parts
    with (directory / "train.log").open("a") as log, contextlib.redirect_stderr(log), pytest.raises(UserError):
        train.train(load_config(directory), directory)
    assert (directory / "train.log").read_text().count("going back to the checkpoint before it") == 1


def test_a_run_goes_on_without_a_readable_status_and_says_what_else_is_lost(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    directory = run_train("trainer.epochs=2", "data.limit=200", "trainer.images=false")
    whole = (directory / "metrics.jsonl").read_text()
    (directory / "status.json").write_text("[1")
    assert run_command("train", f"resume={directory}").code == 0
    assert json.loads((directory / "status.json").read_text())["state"] == "finished"
    assert (directory / "metrics.jsonl").read_text() == whole

    (directory / "metrics.jsonl").unlink()
    outcome = run_command("train", f"resume={directory}", "trainer.epochs=3")
    assert outcome.code == 0 and "WARNING metrics.jsonl" in outcome.err
    assert [line["epoch"] for line in read_lines(directory / "metrics.jsonl")] == [3]

    (directory / "provenance.json").unlink()
    outcome = run_command("train", f"resume={directory}", "trainer.epochs=4")
    assert outcome.code == 2 and "which data" in outcome.err and "rerun=true" in outcome.err
    (directory / "status.json").write_text("[1")
    assert run_command("train", f"resume={directory}", "rerun=true").code == 0
    assert [line["epoch"] for line in read_lines(directory / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("scheduler", ["cosine", "onecycle", "step"])
def test_a_schedule_made_for_fewer_epochs_is_not_stretched(
    scheduler: str, run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    directory = run_train(f"scheduler={scheduler}", "trainer.epochs=1", "data.limit=200")
    config = (directory / "config.yaml").read_text()
    outcome = run_command("train", f"resume={directory}", "trainer.epochs=3")
    assert outcome.code == 2 and "was started for 1 epochs" in outcome.err and "scheduler." in outcome.err
    assert (directory / "config.yaml").read_text() == config


def test_a_run_that_lost_its_last_checkpoint_is_not_started_over(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    directory = run_train("trainer.epochs=2", "data.limit=200")
    lines = (directory / "metrics.jsonl").read_text()
    (directory / "last.pt").unlink()
    (directory / "before.pt").unlink()
    outcome = run_command("train", f"resume={directory}", "trainer.epochs=3")
    assert outcome.code == 2 and "lacks last.pt" in outcome.err
    assert (directory / "metrics.jsonl").read_text() == lines
    empty = run_command("train", "resume=")
    assert empty.code == 2 and "run is empty" in empty.err


def test_a_checkpoint_is_read_on_the_cpu_whatever_the_device(
    run_train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, run_command: Callable[..., Outcome]
) -> None:
    """Random states live on the CPU; a checkpoint mapped to the device of the run could not be restored."""
    directory = run_train("trainer.epochs=1", "data.limit=200")
    devices = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: devices.append(str(k.get("map_location"))) or load(*a, **k))
    assert run_command("train", f"resume={directory}", "trainer.epochs=2").code == 0
    assert devices == ["cpu"]


def test_a_finished_run_counts_elsewhere_only_for_the_same_data(run_train: Callable[..., Path], tmp_path: Path) -> None:
    directory = run_train("data=quadratic", "trainer.epochs=1")
    cfg = load_config(directory)
    cfg.data.root = str(tmp_path / "moved")
    metrics = json.loads((directory / "metrics.json").read_text())
    assert finished_result(cfg, directory) == metrics["best"]
    provenance = json.loads((directory / "provenance.json").read_text())
    (directory / "provenance.json").write_text(json.dumps(provenance | {"data_sha256": "of other data"}))
    with pytest.raises(UserError, match="holds a run on other data"):
        finished_result(cfg, directory)
