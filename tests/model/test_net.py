"""Networks fit every dataset; losses and metrics are the numbers that torch and scikit-learn give."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from evaluate import FOLD_AT, Means, measure, predict
from lab.config.targets import build
from model.fast_cnn import FastCNN, whitening_filters
from model.net import (
    CNN,
    LOSSES,
    LSTM,
    METRICS,
    MLP,
    DataSpec,
    ResNet,
    TaskError,
    choose_loss,
    class_probabilities,
    higher_is_better,
    metrics_for,
)

CONF = Path(__file__).resolve().parents[2] / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


def image_spec(*shape: int, classes: int = 10) -> DataSpec:
    return DataSpec(shape, classes, "classification", classes=tuple(map(str, range(classes))))


DIGITS, MNIST = image_spec(1, 8, 8), image_spec(1, 28, 28)
CIFAR10, CIFAR100 = image_spec(3, 32, 32), image_spec(3, 32, 32, classes=100)
FLAT = DataSpec((13,), 3, "classification", classes=("a", "b", "c"))
REGRESSION = DataSpec((5,), 2, "regression")
SPECS = {"digits": DIGITS, "mnist": MNIST, "cifar10": CIFAR10, "cifar100": CIFAR100}


def from_conf(name: str, spec: DataSpec) -> nn.Module:
    return build("model", OmegaConf.load(CONF / "model" / f"{name}.yaml"), spec)  # type: ignore[arg-type]


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize(("model_name", "data"), list(itertools.product(MODELS, SPECS)))
def test_every_model_learns_from_every_image_dataset(model_name: str, data: str) -> None:
    spec = SPECS[data]
    model = from_conf(model_name, spec)
    images, targets = torch.randn(6, *spec.input_shape), torch.arange(6) % spec.output_size
    outputs = model(images)
    assert outputs.shape == (6, spec.output_size)
    F.cross_entropy(outputs, targets).backward()
    silent = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []


@pytest.mark.parametrize(("model_name", "data"), list(itertools.product(MODELS, ["digits", "cifar100"])))
def test_an_answer_does_not_depend_on_the_other_images_of_the_batch(model_name: str, data: str) -> None:
    model, images = from_conf(model_name, SPECS[data]).eval(), torch.randn(5, *SPECS[data].input_shape)
    one_by_one = torch.cat([model(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(model(images), one_by_one, rtol=1e-4, atol=1e-4 * one_by_one.abs().max().item())


FEATURE_SIZES = {"mlp": 64, "cnn": 32 * 2 * 2, "lstm": 64, "resnet": 64, "fast_cnn": 256}


@pytest.mark.parametrize("model_name", FEATURE_SIZES)
def test_the_answer_is_a_linear_function_of_the_features(model_name: str) -> None:
    model, images = from_conf(model_name, DIGITS).eval(), torch.randn(4, 1, 8, 8)
    features = model.features(images)
    assert features.shape == (4, FEATURE_SIZES[model_name])
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(model(images), features @ head.weight.T + head.bias)


def test_mlp_layers_by_name_and_size() -> None:
    model = MLP(MNIST, hidden_sizes=(100, 30, 20))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == {
        "fc1.weight": (100, 784),
        "fc1.bias": (100,),
        "fc2.weight": (30, 100),
        "fc2.bias": (30,),
        "fc3.weight": (20, 30),
        "fc3.bias": (20,),
        "fc4.weight": (10, 20),
        "fc4.bias": (10,),
    }


def conv(fan_in: int, fan_out: int, kernel: int) -> int:
    return fan_in * fan_out * kernel * kernel


RESNET_20 = (
    conv(3, 16, 3)
    + 3 * 2 * conv(16, 16, 3)
    + conv(16, 32, 3) + 5 * conv(32, 32, 3) + conv(16, 32, 1)
    + conv(32, 64, 3) + 5 * conv(64, 64, 3) + conv(32, 64, 1)
    + 2 * (16 * 7 + 32 * 7 + 64 * 7)  # batch normalisation: the stem's, two a block, one a widening shortcut
    + 64 * 10 + 10
)  # fmt: skip
PARAMETERS = {
    "mlp": (lambda: MLP(DIGITS), 64 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10),
    "mlp, 100 classes": (lambda: MLP(CIFAR100, hidden_sizes=[7]), 3072 * 7 + 7 + 7 * 100 + 100),
    "mlp, no hidden layer": (lambda: MLP(MNIST, hidden_sizes=[]), 784 * 10 + 10),
    "cnn": (lambda: CNN(MNIST), conv(1, 16, 5) + 16 + conv(16, 32, 5) + 32 + 32 * 7 * 7 * 10 + 10),
    "cnn, odd sizes": (lambda: CNN(MNIST, channels=[4, 4, 4], kernel_size=3), 40 + 148 + 148 + 4 * 3 * 3 * 10 + 10),
    "lstm": (lambda: LSTM(MNIST), 4 * 64 * (28 + 64 + 2) + 64 * 10 + 10),
    "lstm, colour, two layers": (
        lambda: LSTM(CIFAR10, hidden_size=8, num_layers=2),
        4 * 8 * (96 + 8 + 2) + 4 * 8 * (8 + 8 + 2) + 8 * 10 + 10,
    ),
    "resnet-20": (lambda: ResNet(CIFAR10), RESNET_20),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_parameter_counts(case: str) -> None:
    make, expected = PARAMETERS[case]
    assert num_parameters(make()) == expected


@pytest.mark.parametrize(
    ("activation", "function"), {"relu": F.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "gelu": F.gelu}.items()
)
def test_mlp_computes_what_the_formula_says(activation: str, function: Any) -> None:
    model, x = MLP(FLAT, hidden_sizes=(6, 4), activation=activation), torch.randn(9, 13)
    w = model.state_dict()
    hidden = function(x @ w["fc1.weight"].T + w["fc1.bias"])
    hidden = function(hidden @ w["fc2.weight"].T + w["fc2.bias"])
    torch.testing.assert_close(model(x), hidden @ w["fc3.weight"].T + w["fc3.bias"])


def test_mlp_dropout_acts_in_training_only_and_not_on_the_answer() -> None:
    model, x = MLP(DIGITS, hidden_sizes=[400], dropout=0.5), torch.randn(3, 1, 8, 8)
    assert not torch.equal(model(x), model(x))
    assert (model(x) != 0).all()
    model.features(x)
    share = (model.features(x) == 0).float().mean() - (model.eval().features(x) == 0).float().mean()
    assert 0.15 < share < 0.35  # half of the half that ReLU lets through
    assert torch.equal(model(x), model(x))


def test_mlp_outputs_are_distributions() -> None:
    x = torch.randn(7, 1, 8, 8) * 5
    logits_model = MLP(DIGITS)
    for output, expected in [("softmax", F.softmax), ("log_softmax", F.log_softmax)]:
        model = MLP(DIGITS, output=output)
        model.load_state_dict(logits_model.state_dict())
        torch.testing.assert_close(model(x), expected(logits_model(x), dim=1))
        probabilities = class_probabilities(model(x), output)
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(7))
        torch.testing.assert_close(probabilities, F.softmax(logits_model(x), dim=1))


@pytest.mark.parametrize("model_name", [name for name in MODELS if name != "mlp"])
def test_image_models_see_every_channel_and_row(model_name: str) -> None:
    model, images = from_conf(model_name, CIFAR10).eval(), torch.randn(2, 3, 32, 32, requires_grad=True)
    model(images).square().sum().backward()
    seen = images.grad.abs().sum(dim=(0, 3))  # [channels, rows]
    assert (seen > 0).all()


def test_lstm_reads_the_rows_in_order() -> None:
    """Its features after k rows are those of the image cut off there; its answer depends on the order of the rows."""
    model, image = LSTM(CIFAR10), torch.randn(2, 3, 32, 32)
    reference = nn.LSTM(96, 64, batch_first=True)
    reference.load_state_dict(model.lstm.state_dict())
    for num_rows in (1, 5, 32):
        rows = torch.stack(
            [torch.cat([image[:, channel, row] for channel in range(3)], dim=1) for row in range(num_rows)], dim=1
        )
        _, (hidden, _) = reference(rows)
        torch.testing.assert_close(model.features(image[:, :, :num_rows]), hidden[-1])
    assert not torch.allclose(model(image), model(image.flip(2)))


def test_resnet_halves_the_image_between_stages() -> None:
    shapes = []
    model = ResNet(CIFAR10, channels=[4, 8, 16], num_blocks=2)
    for block in model.body:
        block.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    model(torch.randn(2, 3, 32, 32))
    assert shapes == [(4, 32, 32)] * 2 + [(8, 16, 16)] * 2 + [(16, 8, 8)] * 2


def test_fast_cnn_answers_with_the_mean_over_views_of_an_image() -> None:
    plain = FastCNN(CIFAR10, channels=[4, 8])
    model = FastCNN(CIFAR10, channels=[4, 8], mirror=True, shift=True)
    model.load_state_dict(plain.state_dict())
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(model(images), plain(images)), "in training there is one view"
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    views = [images, padded[:, :, :32, :32], padded[:, :, 2:, 2:]]
    plain.eval(), model.eval()
    expected = torch.stack([plain(side) for view in views for side in (view, view.flip(3))]).mean(dim=0)
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_whitening_filters_whiten_what_correlates_as_photographs_do(channels: int) -> None:
    filters = whitening_filters(channels)[: 4 * channels].flatten(1)
    between = torch.tensor([[1, 0.9], [0.9, 1]])
    covariance = torch.kron(torch.full((channels, channels), 0.9).fill_diagonal_(1), torch.kron(between, between))
    torch.testing.assert_close(filters @ covariance @ filters.T, torch.eye(4 * channels), atol=1e-3, rtol=0)


MISTAKES = {
    "cnn on vectors": (lambda: CNN(FLAT), "CNN reads images"),
    "lstm on vectors": (lambda: LSTM(FLAT), "LSTM reads images"),
    "resnet on vectors": (lambda: ResNet(FLAT), "ResNet reads images"),
    "even kernel": (lambda: CNN(DIGITS, kernel_size=4), "model.kernel_size is 4"),
    "too many blocks": (lambda: CNN(DIGITS, channels=[2, 2, 2, 2]), "model.channels has 4 blocks.* allow 3"),
    "activation": (lambda: MLP(DIGITS, activation="rellu"), "model.activation is 'rellu'.*relu"),
    "output": (lambda: MLP(DIGITS, output="soft"), "model.output is 'soft'.*softmax"),
    "softmax for regression": (lambda: MLP(REGRESSION, output="softmax"), "classification.*regression"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_networks_that_do_not_fit_say_so_in_one_line(case: str) -> None:
    make, message = MISTAKES[case]
    with pytest.raises(TaskError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_three_blocks_fit_the_smallest_images() -> None:
    assert CNN(DIGITS, channels=[2, 2, 2])(torch.randn(2, 1, 8, 8)).shape == (2, 10)


# ------------------------------------------------------------------------------------------------ losses and metrics


def classification_batch(num: int = 50, classes: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(num, classes, generator=generator, dtype=torch.float64) * 3
    return logits, torch.randint(classes, (num,), generator=generator)


def regression_batch(num: int = 50, outputs: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    values, noise = (torch.randn(num, outputs, generator=generator, dtype=torch.float64) for _ in range(2))
    return values * 2 + noise + 4, values * 2 + 3


def test_classification_losses_are_torchs() -> None:
    logits, targets = classification_batch()
    expected = F.cross_entropy(logits, targets, reduction="none")
    for name, outputs in [
        ("cross_entropy", logits),
        ("nll", logits.log_softmax(dim=1)),
        ("nll_of_probabilities", logits.softmax(dim=1)),
    ]:
        values = LOSSES[name].values(outputs, targets)
        assert values.shape == (50,)
        torch.testing.assert_close(values, expected)
        torch.testing.assert_close(values.mean(), F.cross_entropy(logits, targets))


def test_regression_losses_are_torchs() -> None:
    outputs, targets = regression_batch()
    mse, total = LOSSES["mse"], LOSSES["sum_of_squares"]
    assert mse.values(outputs, targets).shape == total.values(outputs, targets).shape == (50,)
    torch.testing.assert_close(mse.values(outputs, targets).mean(), F.mse_loss(outputs, targets))
    torch.testing.assert_close(total.values(outputs, targets).sum(), F.mse_loss(outputs, targets, reduction="sum"))
    torch.testing.assert_close(total.values(outputs, targets), 3 * mse.values(outputs, targets))


def test_a_probability_of_zero_has_a_finite_loss() -> None:
    probabilities = torch.tensor([[1.0, 0.0], [0.5, 0.5]], requires_grad=True)
    values = LOSSES["nll_of_probabilities"].values(probabilities, torch.tensor([1, 1]))
    assert torch.isfinite(values).all()
    assert values[0] > 80
    torch.testing.assert_close(values[1], torch.tensor(math.log(2)))
    values.sum().backward()
    assert torch.isfinite(probabilities.grad).all()


CHOICES = {
    ("classification", "logits"): ("cross_entropy", {"cross_entropy"}),
    ("classification", "log_softmax"): ("nll", {"nll"}),
    ("classification", "softmax"): ("nll_of_probabilities", {"nll_of_probabilities"}),
    ("regression", "logits"): ("mse", {"mse", "sum_of_squares"}),
}


@pytest.mark.parametrize(("task", "output"), CHOICES)
def test_choose_loss(task: str, output: str) -> None:
    automatic, fitting = CHOICES[task, output]
    spec = DataSpec((4,), 3, task)
    assert choose_loss("auto", spec, output) is LOSSES[automatic]
    for name in [*LOSSES, "crossentropy", ""]:
        if name in fitting:
            assert choose_loss(name, spec, output) is LOSSES[name]
        else:
            with pytest.raises(TaskError, match=automatic):
                choose_loss(name, spec, output)


def ragged(outputs: Tensor, targets: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(outputs.split(sizes), targets.split(sizes), strict=True))


SPLITS = [[50], [1] * 50, [7, 40, 3], [49, 1]]


@pytest.mark.parametrize("sizes", SPLITS, ids=lambda sizes: f"{len(sizes)} batches")
def test_classification_metrics_are_scikit_learns(sizes: list[int]) -> None:
    logits, targets = classification_batch()
    result = measure(ragged(logits, targets, sizes), LOSSES["cross_entropy"], metrics_for("classification"))
    predicted = logits.numpy().argmax(axis=1)
    assert set(result) == {"loss", "accuracy"}
    assert result["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(targets, predicted), rel=1e-12)
    expected = sklearn.metrics.log_loss(targets, logits.softmax(1).numpy(), labels=range(6))
    assert result["loss"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sizes", SPLITS, ids=lambda sizes: f"{len(sizes)} batches")
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_regression_metrics_are_scikit_learns(sizes: list[int], num_outputs: int) -> None:
    outputs, targets = regression_batch(outputs=num_outputs)
    result = measure(ragged(outputs, targets, sizes), LOSSES["mse"], metrics_for("regression"))
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
    result = measure([(outputs, targets)], LOSSES["mse"], metrics_for("regression"))
    expected = sklearn.metrics.r2_score(targets.double(), outputs.double())
    assert result["r2"] == pytest.approx(expected, abs=1e-5)


def test_r2_of_constant_targets_is_no_number() -> None:
    targets = torch.full((8, 1), 2.0)
    result = measure([(targets + 1, targets)], LOSSES["mse"], metrics_for("regression"))
    assert math.isnan(result["r2"])


def test_means_over_many_examples_are_exact() -> None:
    """More than are held back at once, in batches that do not divide, and float32 losses of very different sizes."""
    num = 3 * FOLD_AT + 77
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(num, 5, generator=generator) * torch.logspace(-3, 3, num).unsqueeze(1)
    targets = torch.randint(5, (num,), generator=generator)
    means = Means(LOSSES["cross_entropy"], metrics_for("classification"))
    for batch, labels in zip(logits.split(333), targets.split(333), strict=True):
        means.add(LOSSES["cross_entropy"].values(batch, labels), batch, labels)
    result = means.result()
    values = F.cross_entropy(logits, targets, reduction="none").numpy().astype(np.float64)
    assert result["loss"] == pytest.approx(math.fsum(values) / num, rel=1e-12)
    assert result["accuracy"] == (logits.numpy().argmax(axis=1) == targets.numpy()).sum() / num
    assert means.result() == result  # reading does not change it


def test_predict_leaves_the_mode_and_the_gradients_alone() -> None:
    model = MLP(FLAT, dropout=0.5)
    x = torch.randn(4, 13)
    for training in (True, False):
        model.train(training)
        ((outputs, _),) = predict(model, [(x, torch.zeros(4))], "fp32")
        assert model.training is training
        assert not outputs.requires_grad
        assert all(parameter.grad is None for parameter in model.parameters())
    model.train()
    ((first, _),) = predict(model, [(x, torch.zeros(4))], "fp32")
    assert torch.equal(first, model.eval()(x))  # without dropout


def test_predict_puts_the_mode_back_after_an_error() -> None:
    model = MLP(FLAT).train()
    with pytest.raises(RuntimeError):
        list(predict(model, [(torch.randn(2, 99), torch.zeros(2))], "fp32"))
    assert model.training


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_are_computed_in_full_precision(precision: str) -> None:
    ((outputs, _),) = predict(MLP(FLAT), [(torch.randn(3, 13), torch.zeros(3))], precision)
    assert outputs.dtype == torch.float32


def test_directions() -> None:
    assert higher_is_better("val/accuracy")
    assert higher_is_better("test/accuracy")
    assert higher_is_better("val/r2")
    assert not higher_is_better("val/loss")
    assert not higher_is_better("train/loss")
    assert not higher_is_better("val/rmse")
    assert {name for task in ("classification", "regression") for name in metrics_for(task)} == METRICS.keys()
