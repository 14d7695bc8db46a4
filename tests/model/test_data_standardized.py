"""Tables are standardised by their training split, targets included, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Outcome, read
from omegaconf import OmegaConf
from transform_cases import epoch_of, streamed, table

from evaluate import load_run
from lab.config.builders import build_metrics
from lab.runs.meter import Meter
from model.augment import Normalize
from model.datasets import quadratic
from model.examples import Examples
from model.metrics import default_metrics
from model.net import DataSpec
from model.splits import describe


@pytest.mark.parametrize("stream", [False, True])
def test_a_table_is_standardised_by_its_training_split(stream: bool) -> None:
    examples = table()
    spec = describe(examples, None, None, standardize=True)
    inputs, targets = examples.inputs.double().numpy(), examples.targets.double().numpy()
    np.testing.assert_allclose(spec.mean, inputs.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(spec.std, [*inputs.std(axis=0)[:2], 1.0], rtol=1e-9)
    np.testing.assert_allclose(spec.target_mean, targets.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(spec.target_std, targets.std(axis=0), rtol=1e-9)
    source = streamed(examples) if stream else examples
    batch = epoch_of(source, 1, spec, batch_size=200, shuffle=False)[0]
    np.testing.assert_allclose(batch.targets, (targets - targets.mean(0)) / targets.std(0), atol=1e-4)
    np.testing.assert_allclose(batch.inputs.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(batch.inputs.std(0), [1, 1, 0], atol=1e-2)
    restored = Normalize(spec.target_mean, spec.target_std).inverse(batch.targets)
    torch.testing.assert_close(restored, examples.targets)


def test_without_it_tables_are_as_they_are() -> None:
    spec = describe(table(), None, None)
    assert spec.mean == spec.std == spec.target_mean == spec.target_std == ()


def test_class_numbers_and_several_labels_are_not_standardised() -> None:
    for targets in (torch.arange(200) % 2, torch.zeros(200, 2)):
        spec = describe(Examples(table().inputs, targets, ["a", "b"]), None, None, standardize=True)
        assert spec.target_mean == spec.target_std == () and len(spec.mean) == 3


class Memory:
    """A metric with a state: the largest error so far."""

    higher_is_better = False

    def __init__(self) -> None:
        self.worst = torch.zeros(())

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.worst = torch.maximum(self.worst, (outputs - targets).abs().max().float())

    def compute(self) -> torch.Tensor:
        return self.worst

    def reset(self) -> None:
        self.worst = torch.zeros(())

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"worst": self.worst}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.worst = state["worst"]


def test_metrics_are_in_the_units_of_the_targets() -> None:
    generator = np.random.default_rng(0)
    targets = generator.normal([100, -3], [20, 0.5], (64, 2))
    guesses = targets + generator.normal(0, [5, 0.1], (64, 2))
    spec = DataSpec((3,), 2, "regression", target_mean=(100.0, -3.0), target_std=(20.0, 0.5))
    scaled = [torch.from_numpy((x - spec.target_mean) / spec.target_std).float() for x in (guesses, targets)]
    node = {"worst": {"_target_": "test_data_standardized.Memory", "higher_is_better": False}}
    metrics = {**default_metrics(spec), **build_metrics(OmegaConf.create({"metrics": node}), spec)}
    assert {name: one.higher_is_better for name, one in metrics.items()} == {"rmse": False, "r2": True, "worst": False}
    first, second = (Meter(metrics) for _ in range(2))
    for half in (slice(40), slice(40, 64)):
        first.add(torch.zeros(len(scaled[0][half])), *(part[half] for part in scaled))
    second.load_state_dict(first.state_dict())
    for found in (first.result(), second.result()):
        assert found["rmse"] == pytest.approx(np.sqrt(np.mean((guesses - targets) ** 2)), rel=1e-5)
        residual, total = ((guesses - targets) ** 2).sum(), ((targets - targets.mean(0)) ** 2).sum()
        assert found["r2"] == pytest.approx(1 - residual / total, rel=1e-5)
        assert found["worst"] == pytest.approx(np.abs(guesses - targets).max(), rel=1e-4)


def test_a_standardised_regression_is_measured_and_exported_in_units(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    run = run_train("data=quadratic", "data.standardize=true", "trainer.epochs=3")
    assert run_command("evaluate", f"run={run}", "export=torch_export").code == 0
    (examples,) = [quadratic("test", "")]
    exported = torch.export.load(run / "model.pt2").module()(examples.inputs)
    error = (exported - examples.targets).double()
    assert read(run / "evaluation.json")["test/rmse"] == pytest.approx(float(error.square().mean().sqrt()), rel=1e-4)
    network, _ = load_run(run)
    spec = network.spec
    assert spec.target_std and not np.allclose(spec.target_std, 1, atol=0.05)
    outputs = network(Normalize(spec.mean, spec.std)(examples.inputs))
    torch.testing.assert_close(Normalize(spec.target_mean, spec.target_std).inverse(outputs), exported)
