"""A run that was stopped and resumed is the run that was not stopped, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome, read_lines
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evaluate import load_config
from train import finished_result
from utils import RunLogger, UserError, load_tensors

VARIANTS = {
    "mlp with dropout": ["model.dropout=0.3", "scheduler=cosine"],
    "cnn, momentum, augmentation": ["model=cnn", "optimizer=momentum", "data.crop_padding=1", "scheduler=onecycle"],
    "lstm, rmsprop, clipping": ["model=lstm", "optimizer=rmsprop", "trainer.max_grad_norm=0.5", "scheduler=step"],
    "resnet, adamw, bf16": ["model=resnet", "model.num_blocks=1", "optimizer=adamw", "trainer.precision=bf16"],
    "adagrad, plateau, patience": ["optimizer=adagrad", "scheduler=plateau", "trainer.patience=3"],
}
SHORT = ["data.limit=300", "trainer.log_every=2", "trainer.epochs=4"]


class Killed(Exception):
    """What a kill looks like to the test."""


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars as TensorBoard reads them, but for times."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag != "examples_per_second"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def same(left: Any, right: Any) -> bool:
    """Equality of nested plain data and tensors, bit for bit; the sizes of files apart."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left if key != "log")
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right or (left != left and right != right)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("killed_in_epoch", [1, 3])
def test_resumed_equals_uninterrupted(
    variant: str,
    killed_in_epoch: int,
    run_train: Callable[..., Path],
    run_command: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    whole = run_train(*SHORT, *VARIANTS[variant], name="whole")

    # Killed in the middle of an epoch, after it has logged: nothing of the run gets to tidy up.
    log_step = RunLogger.step

    def kill(self: RunLogger, values: Any, step: int, bar: Any) -> None:
        log_step(self, values, step, bar)
        self.writer.flush()
        if step > (killed_in_epoch - 1) * 5 + 2:
            raise Killed

    monkeypatch.setattr(RunLogger, "step", kill)
    with pytest.raises(Killed):
        run_train(*SHORT, *VARIANTS[variant], name="killed")
    monkeypatch.undo()
    (killed,) = (tmp_path / "experiments" / "killed").iterdir()
    torch.manual_seed(12345)  # what another process would have

    assert run_command("train", f"resume={killed}").code == 0
    assert read_lines(killed / "metrics.jsonl") == read_lines(whole / "metrics.jsonl")
    assert same(load_tensors(killed / "last.pt"), load_tensors(whole / "last.pt"))
    assert same(load_tensors(killed / "best.pt"), load_tensors(whole / "best.pt"))
    assert json.loads((killed / "metrics.json").read_text()) == json.loads((whole / "metrics.json").read_text())
    assert scalars(killed) == scalars(whole)
    assert json.loads((killed / "status.json").read_text())["state"] == "finished"


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
