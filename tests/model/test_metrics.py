"""Metrics are those of scikit-learn, however the examples are cut into batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluate import measure
from lab.runs.meter import FOLD_AT, Meter
from lab.runs.progress import Progress
from model.losses import Loss, cross_entropy, squared_error
from model.metrics import DEFAULTS, accuracy, default_metrics, macro_f1
from model.net import DataSpec


def classification_batch(num: int = 50, classes: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(num, classes, generator=generator, dtype=torch.float64) * 3
    return logits, torch.randint(classes, (num,), generator=generator)


def regression_batch(num: int = 50, outputs: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    values, noise = (torch.randn(num, outputs, generator=generator, dtype=torch.float64) for _ in range(2))
    return values * 2 + noise + 4, values * 2 + 3


CLASSIFICATION = default_metrics(DataSpec((13,), 6, "classification"))
REGRESSION = default_metrics(DataSpec((13,), 3, "regression"))


def ragged(loss: Loss, outputs: Tensor, targets: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    parts = zip(outputs.split(sizes), targets.split(sizes), strict=True)
    return [(loss(some, labels), some, labels) for some, labels in parts]


SPLITS = [[50], [1] * 50, [7, 40, 3], [49, 1]]


@pytest.mark.parametrize("sizes", SPLITS, ids=lambda sizes: f"{len(sizes)} batches")
def test_classification_metrics_are_scikit_learns(sizes: list[int]) -> None:
    logits, targets = classification_batch()
    result = measure(ragged(cross_entropy, logits, targets, sizes), CLASSIFICATION)
    predicted = logits.numpy().argmax(axis=1)
    assert set(result) == {"loss", "accuracy"}
    assert result["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(targets, predicted), rel=1e-12)
    expected = sklearn.metrics.log_loss(targets, logits.softmax(1).numpy(), labels=range(6))
    assert result["loss"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sizes", SPLITS, ids=lambda sizes: f"{len(sizes)} batches")
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_regression_metrics_are_scikit_learns(sizes: list[int], num_outputs: int) -> None:
    outputs, targets = regression_batch(outputs=num_outputs)
    result = measure(ragged(squared_error, outputs, targets, sizes), REGRESSION)
    assert set(result) == {"loss", "rmse", "r2"}
    assert result["rmse"] == pytest.approx(math.sqrt(sklearn.metrics.mean_squared_error(targets, outputs)), rel=1e-9)
    r2 = sklearn.metrics.r2_score(targets, outputs, multioutput="variance_weighted")
    assert result["r2"] == pytest.approx(r2, rel=1e-9)


@pytest.mark.parametrize(("mean", "deviation"), [(2000, 0.1), (20000, 1), (1e5, 10)])
def test_r2_of_targets_far_from_zero_is_exact(mean: float, deviation: float) -> None:
    """Variance as a difference of large means loses digits; years and prices are such targets."""
    generator = torch.Generator().manual_seed(3)
    targets = mean + deviation * torch.randn(500, 1, generator=generator)
    outputs = targets + 0.3 * deviation * torch.randn(500, 1, generator=generator)
    result = measure([(squared_error(outputs, targets), outputs, targets)], REGRESSION)
    expected = sklearn.metrics.r2_score(targets.double(), outputs.double())
    assert result["r2"] == pytest.approx(expected, abs=1e-5)


def test_r2_of_constant_targets_is_no_number() -> None:
    targets = torch.full((8, 1), 2.0)
    result = measure([(squared_error(targets + 1, targets), targets + 1, targets)], REGRESSION)
    assert math.isnan(result["r2"])


@pytest.mark.parametrize("top", [1, 2, 5])
def test_accuracy_among_the_likeliest_is_scikit_learns(top: int) -> None:
    logits, targets = classification_batch()
    result = measure(ragged(cross_entropy, logits, targets, [7, 40, 3]), {"accuracy": accuracy(top)})
    expected = sklearn.metrics.top_k_accuracy_score(targets, logits, k=top, labels=range(6))
    assert result["accuracy"] == pytest.approx(expected, rel=1e-12)
    assert measure([(targets.double(), logits, targets)], {"all": accuracy(9)})["all"] == 1  # there are six


@pytest.mark.parametrize("sizes", SPLITS, ids=lambda sizes: f"{len(sizes)} batches")
def test_macro_f1_is_scikit_learns(sizes: list[int]) -> None:
    """With a class that is neither there nor predicted, which counts as 0."""
    logits, targets = classification_batch()
    logits[:, 5], targets = -99, targets % 5
    result = measure(ragged(cross_entropy, logits, targets, sizes), {"f1": macro_f1(6)})
    options = {"average": "macro", "labels": range(6), "zero_division": 0}
    assert result["f1"] == pytest.approx(sklearn.metrics.f1_score(targets, logits.argmax(dim=1), **options), rel=1e-6)


def test_macro_f1_of_several_labels_is_scikit_learns() -> None:
    logits = classification_batch()[0]
    labels = (logits + 2 * torch.randn(50, 6, generator=torch.Generator().manual_seed(7)) > 0).double()
    loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)
    result = measure([(loss, logits, labels)], {"f1": macro_f1(6)})
    assert result["f1"] == pytest.approx(sklearn.metrics.f1_score(labels, logits > 0, average="macro"), rel=1e-6)


class Counted:
    """A metric with a state, as those of torchmetrics are."""

    higher_is_better = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.right = self.seen = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.right += int((outputs.argmax(dim=1) == targets).sum())
        self.seen += len(targets)

    def compute(self) -> float:
        return self.right / self.seen

    def state_dict(self) -> dict[str, int]:
        return {"right": self.right, "seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.right, self.seen = state["right"], state["seen"]


def test_a_metric_with_a_state_goes_on_where_a_checkpoint_was_made() -> None:
    logits, targets = classification_batch()
    batches = ragged(cross_entropy, logits, targets, [7, 40, 3])
    metrics = {"counted": Counted(), **CLASSIFICATION}
    expected = measure(batches, metrics)
    assert list(expected) == ["loss", "counted", "accuracy"]
    assert expected["counted"] == expected["accuracy"]
    meter = Meter(metrics)
    meter.add(*batches[0])
    assert meter.result()["counted"] != expected["counted"]
    meter.add(*batches[1])
    other = Meter({"counted": Counted(), **CLASSIFICATION})
    other.load_state_dict(meter.state_dict())
    other.add(*batches[2])
    assert other.result() == pytest.approx(expected, rel=1e-14)
    assert other.num_added == 50


def test_means_over_many_examples_are_exact() -> None:
    """More than are held back at once, in batches that do not divide, and float32 losses of very different sizes."""
    num = 3 * FOLD_AT + 77
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(num, 5, generator=generator) * torch.logspace(-3, 3, num).unsqueeze(1)
    targets = torch.randint(5, (num,), generator=generator)
    meter = Meter(CLASSIFICATION)
    for batch, labels in zip(logits.split(333), targets.split(333), strict=True):
        meter.add(cross_entropy(batch, labels), batch, labels)
    result = meter.result()
    values = F.cross_entropy(logits, targets, reduction="none").numpy().astype(np.float64)
    assert result["loss"] == pytest.approx(math.fsum(values) / num, rel=1e-12)
    assert result["accuracy"] == (logits.numpy().argmax(axis=1) == targets.numpy()).sum() / num
    assert meter.result() == result  # reading does not change it


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("classification", {"loss": False, "accuracy": True}),
        ("regression", {"loss": False, "rmse": False, "r2": True}),
        ("custom", {"loss": False}),
    ],
)
def test_directions(task: str, expected: dict[str, bool]) -> None:
    metrics = default_metrics(DataSpec((13,), 3, task))
    for name, is_higher in expected.items():
        assert Progress.judged_by(f"val/{name}", metrics).seeks_higher == is_higher
    assert Progress.judged_by(None, metrics).summary()["higher_is_better"] == expected


def test_each_task_with_metrics_of_its_own_has_its_directions_tested() -> None:
    assert DEFAULTS.keys() == {"classification", "regression"}
