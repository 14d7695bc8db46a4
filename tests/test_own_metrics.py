"""A metric of one's own is measured, monitored, recorded with its direction and compared by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.commands import Outcome, assert_one_line

OWN = """
import torch

def margin(outputs, targets):
    top = outputs.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]

def error(outputs, targets):
    return (outputs.argmax(dim=1) != targets).float()
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's with two metrics, on the search path."""
    (tmp_path / "own_metrics.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_metrics"


@pytest.mark.parametrize(("name", "higher"), [("margin", True), ("error", False)])
def test_its_direction_decides_which_epoch_is_best(
    name: str, higher: bool, own_module: str, run_train: Callable[..., Path]
) -> None:
    directory = run_train(
        "trainer.epochs=4",
        "optimizer.lr=0.01",
        f"+metrics.{name}._target_={own_module}.{name}",
        f"+metrics.{name}.higher_is_better={str(higher).lower()}",
        f"trainer.monitor=val/{name}",
    )
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    values = [record[f"val/{name}"] for record in records]
    summary = json.loads((directory / "metrics.json").read_text())
    assert summary["higher_is_better"] == {"loss": False, name: higher}
    assert summary["best"][f"val/{name}"] == (max(values) if higher else min(values))
    assert len(set(values)) > 1


def test_one_that_does_not_say_what_is_better_is_refused(own_module: str, run_command: Callable[..., Outcome]) -> None:
    asked = run_command("train", f"+metrics.margin._target_={own_module}.margin")
    assert_one_line(asked, "metrics.margin", "higher_is_better")


def test_torchmetrics_measures_what_scikit_learn_does(run_train: Callable[..., Path]) -> None:
    from sklearn.metrics import roc_auc_score

    from evaluate import Objective, predict
    from lab.config.builders import load_examples, make_eval_loader
    from lab.runs.loading import load_run

    directory = run_train(
        *("trainer.epochs=2", "+metrics.auroc._target_=torchmetrics.AUROC", "+metrics.auroc.task=multiclass"),
        "+metrics.auroc.num_classes=${spec:output_size}",
    )
    model, cfg = load_run(directory, checkpoint="last")
    loader = make_eval_loader(cfg, load_examples(cfg, "val"), model.spec, torch.device("cpu"))
    objective = Objective(model, torch.nn.functional.cross_entropy, torch.device("cpu"))
    (predicted,) = predict(objective, loader)
    expected = roc_auc_score(predicted[2], predicted[1].softmax(dim=1), multi_class="ovr", average="macro")
    final = json.loads((directory / "metrics.json").read_text())["final"]
    assert final["val/auroc"] == pytest.approx(expected, abs=1e-6)
