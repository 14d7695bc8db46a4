"""Networks fit every dataset, and compute what their formulas say."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

from lab.config.targets import build
from model.fast_cnn import FastCNN, whitening_filters
from model.net import (
    CNN,
    LSTM,
    MLP,
    DataSpec,
    ResNet,
    TaskError,
    class_probabilities,
)

CONF = Path(__file__).resolve().parents[2] / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


def image_spec(*shape: int, classes: int = 10) -> DataSpec:
    return DataSpec(shape, classes, "classification", classes=tuple(map(str, range(classes))))


DIGITS, MNIST = image_spec(1, 8, 8), image_spec(1, 28, 28)
CIFAR10, CIFAR100 = image_spec(3, 32, 32), image_spec(3, 32, 32, classes=100)
FLAT = DataSpec((13,), 3, "classification", classes=("a", "b", "c"))
REGRESSION = DataSpec((5,), 2, "regression")
ONLY_COLOUR = {"resnet18"}  # torchvision's
SPECS = {"digits": DIGITS, "mnist": MNIST, "cifar10": CIFAR10, "cifar100": CIFAR100}


def from_conf(name: str, spec: DataSpec) -> nn.Module:
    node = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    return build("model", OmegaConf.to_container(node, resolve=True), spec)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def fitting(models: list[str], data: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs of them that go together."""
    pairs = itertools.product(models, data)
    return [(name, on) for name, on in pairs if name not in ONLY_COLOUR or SPECS[on].input_shape[0] == 3]


# ---------------------------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize(("model_name", "data"), fitting(MODELS, SPECS))
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


@pytest.mark.parametrize(("model_name", "data"), fitting(MODELS, ["digits", "cifar100"]))
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
