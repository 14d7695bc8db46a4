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

from utils import RunLogger, load_tensors

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
