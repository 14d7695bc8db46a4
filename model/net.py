"""Architectures, loss functions and metrics.

A network takes the shape of its data from a `DataSpec`, never from configuration, so every image model runs on every image
dataset. To add one, write a class whose constructor takes `spec` first, and a file in `conf/model/` that names it.

Losses and metrics give one value for each example, so that means over ragged batches are exact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU}


class TaskError(ValueError):
    """A network, loss or metric that does not fit the data it is given; the message is one line for the user."""

    for_user = True


@dataclass(frozen=True)
class DataSpec:
    """What a network must know of its data: the loader makes it, the networks are built from it.

    input_shape: one example's shape, (channels, height, width) for images, () where the inputs are no single tensor;
    output_size: classes, or values for each example, 0 where the data does not tell; task: "classification",
    "regression", or "custom" for targets of any other kind; mean and std: a value for each channel, on the scale where a
    pixel is in [0, 1] (empty: not normalised); classes: their names; target_mean and target_std: by which targets were
    standardised, a value for each output (empty: not at all).
    """

    input_shape: tuple[int, ...]
    output_size: int
    task: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()


# ---------------------------------------------------------------------------------------------------- architectures


class MLP(nn.Module):
    """Fully connected layers fc1, fc2, ... with an activation and dropout after each but the last.

    [batch, *input_shape] -> [batch, output_size]: logits, or with `output` their softmax or log-softmax.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden_sizes: Sequence[int] = (128, 64),
        activation: str = "relu",
        dropout: float = 0.0,
        output: str = "logits",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise TaskError(f"model.activation is {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
        if output not in OUTPUTS:
            raise TaskError(f"model.output is {output!r}; choose one of {', '.join(OUTPUTS)}")
        if output != "logits" and spec.task != "classification":
            raise TaskError(f"model.output={output} is for classification; the task of this data is {spec.task}")
        check_sizes(hidden_sizes, "model.hidden_sizes")
        sizes = [math.prod(spec.input_shape), *hidden_sizes, spec.output_size]
        for number, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes), start=1):
            self.add_module(f"fc{number}", nn.Linear(fan_in, fan_out))
        self.num_layers = len(sizes) - 1
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        self.output = output

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, [batch, hidden_sizes[-1]]."""
        x = x.flatten(1)
        for number in range(1, self.num_layers):
            x = self.dropout(self.activation(self.get_submodule(f"fc{number}")(x)))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return OUTPUTS[self.output](self.get_submodule(f"fc{self.num_layers}")(self.features(x)))


class CNN(nn.Module):
    """Blocks of convolution, ReLU and 2x2 max-pooling, then one linear layer.

    [batch, channels, height, width] -> logits [batch, output_size].
    """

    def __init__(self, spec: DataSpec, *, channels: Sequence[int] = (16, 32), kernel_size: int = 5) -> None:
        super().__init__()
        in_channels, height, width = image_shape(spec, "CNN")
        check_sizes(channels, "model.channels")
        if kernel_size % 2 == 0 or kernel_size < 1:
            raise TaskError(f"model.kernel_size is {kernel_size}; it must be odd, so that an image keeps its size")
        if min(height, width) < 2 ** len(channels):
            raise TaskError(
                f"model.channels has {len(channels)} blocks, each halving the image; "
                f"images of {height}x{width} allow {int(math.log2(min(height, width)))}"
            )
        blocks: list[nn.Module] = []
        for out_channels in channels:
            convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
            blocks += [convolution, nn.ReLU(), nn.MaxPool2d(2)]
            in_channels, height, width = out_channels, height // 2, width // 2
        self.body = nn.Sequential(*blocks, nn.Flatten())
        self.head = nn.Linear(in_channels * height * width, spec.output_size)

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, [batch, channels * height * width after pooling]."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class LSTM(nn.Module):
    """Reads an image as a sequence of rows, from top to bottom, and answers from its last step.

    [batch, channels, height, width] -> logits [batch, output_size].
    """

    def __init__(self, spec: DataSpec, *, hidden_size: int = 64, num_layers: int = 1) -> None:
        super().__init__()
        channels, _, width = image_shape(spec, "LSTM")
        check_sizes([hidden_size, num_layers], "model.hidden_size and model.num_layers")
        self.lstm = nn.LSTM(channels * width, hidden_size, num_layers, batch_first=True)
        self.head = nn.Linear(hidden_size, spec.output_size)

    def features(self, x: Tensor) -> Tensor:
        """The hidden state after the last row, [batch, hidden_size]."""
        rows = x.transpose(1, 2).flatten(2)  # [batch, height, channels * width]
        return self.lstm(rows)[0][:, -1]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation around a shortcut; a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """The residual network for small images of He et al. 2015 (arXiv:1512.03385, section 4.2).

    Stages of `num_blocks` residual blocks, the image halved from stage to stage; 3 blocks of 16, 32, 64 channels are
    their ResNet-20. [batch, channels, height, width] -> logits [batch, output_size].
    """

    def __init__(self, spec: DataSpec, *, channels: Sequence[int] = (16, 32, 64), num_blocks: int = 3) -> None:
        super().__init__()
        in_channels, _, _ = image_shape(spec, "ResNet")
        check_sizes(channels, "model.channels", at_least=1)
        check_sizes([num_blocks], "model.num_blocks")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU()
        )
        in_channels = channels[0]
        blocks = []
        for stage, out_channels in enumerate(channels):
            for block in range(num_blocks):
                blocks.append(ResidualBlock(in_channels, out_channels, stride=2 if stage > 0 and block == 0 else 1))
                in_channels = out_channels
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(in_channels, spec.output_size)

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, [batch, channels[-1]]: the mean over the image's positions."""
        return self.body(self.stem(x)).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class DynamicNet(nn.Module):
    """A layer in, a middle layer used 0 to `max_repeats` times with the same weights, a layer out; ReLU between them.

    How often is drawn anew for each forward pass in training; in evaluation the answer is the mean over all of them, so
    that it is the same each time. [batch, *input_shape] -> [batch, output_size].
    """

    for_one_process = True  # others that trained it too would draw something else

    def __init__(self, spec: DataSpec, *, hidden_size: int = 100, max_repeats: int = 3) -> None:
        super().__init__()
        check_sizes([hidden_size, max_repeats], "model.hidden_size and model.max_repeats")
        self.first = nn.Linear(math.prod(spec.input_shape), hidden_size)
        self.middle = nn.Linear(hidden_size, hidden_size)
        self.last = nn.Linear(hidden_size, spec.output_size)
        self.max_repeats = max_repeats

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x.flatten(1)))
        if self.training:
            for _ in range(int(torch.randint(self.max_repeats + 1, ()))):
                hidden = F.relu(self.middle(hidden))
            return self.last(hidden)
        outputs = [self.last(hidden)]
        for _ in range(self.max_repeats):
            hidden = F.relu(self.middle(hidden))
            outputs.append(self.last(hidden))
        return torch.stack(outputs).mean(dim=0)


def check_sizes(sizes: Sequence[int], key: str, *, at_least: int = 0) -> None:
    """TaskError where a size is below 1, or there are fewer than `at_least` of them."""
    if len(sizes) < at_least or any(size < 1 for size in sizes):
        given = sizes[0] if len(sizes) == 1 else list(sizes)
        raise TaskError(f"{key} is {given}; sizes are whole numbers of at least 1")


def image_shape(spec: DataSpec, network: str) -> tuple[int, int, int]:
    """(channels, height, width) of the data, or a TaskError where its examples are not images."""
    if not is_image(spec):
        raise TaskError(
            f"{network} reads images of shape (channels, height, width); an example of this data has shape "
            f"{spec.input_shape}; choose an image dataset or model=mlp"
        )
    channels, height, width = spec.input_shape
    return channels, height, width


def is_image(spec: DataSpec) -> bool:
    """Whether an example is an image, [channels, height, width]."""
    return len(spec.input_shape) == 3


# ----------------------------------------------------------------------------------------------------------- losses

# What a network's last layer gives, by name (a network says it in its attribute `output`; without one: logits).
OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda logits: logits,
    "softmax": lambda logits: F.softmax(logits, dim=1),
    "log_softmax": lambda logits: F.log_softmax(logits, dim=1),
}


def output_of(model: nn.Module) -> str:
    """Which of OUTPUTS a network gives."""
    return getattr(model, "output", "logits")


def class_probabilities(outputs: Tensor, output: str) -> Tensor:
    """Class probabilities [batch, classes], whichever of OUTPUTS the network gives."""
    if output == "softmax":
        return outputs.float()
    return F.softmax(outputs.float(), dim=1)  # the softmax of log-softmax is the softmax


@dataclass(frozen=True)
class Loss:
    """A loss function: `values(outputs, targets) -> [batch]`, for networks whose last layer gives `output`.

    averaged: the gradient is that of the mean over a batch; else of the sum.
    """

    values: Callable[[Tensor, Tensor], Tensor]
    task: str
    output: str = "logits"
    averaged: bool = True


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits [batch, classes] with targets [batch] -> [batch], in nats."""
    return F.cross_entropy(outputs, targets, reduction="none")


def nll(outputs: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of log-probabilities [batch, classes] -> [batch], in nats."""
    return F.nll_loss(outputs, targets, reduction="none")


def nll_of_probabilities(outputs: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of probabilities [batch, classes] -> [batch], in nats; finite for a probability of 0."""
    return F.nll_loss(outputs.clamp(min=torch.finfo(outputs.dtype).tiny).log(), targets, reduction="none")


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error, mean over the outputs: [batch, outputs] -> [batch]."""
    return (outputs - targets).square().mean(dim=1)


def sum_of_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error, summed over the outputs: [batch, outputs] -> [batch]."""
    return (outputs - targets).square().sum(dim=1)


LOSSES = {
    "cross_entropy": Loss(cross_entropy, task="classification"),
    "nll": Loss(nll, task="classification", output="log_softmax"),
    "nll_of_probabilities": Loss(nll_of_probabilities, task="classification", output="softmax"),
    "mse": Loss(squared_error, task="regression"),
    "sum_of_squares": Loss(sum_of_squares, task="regression", averaged=False),
}


def choose_loss(name: str, spec: DataSpec, output: str) -> Loss:
    """The loss of that name, or with "auto" the one that fits the task and the network's output; TaskError if none."""
    fitting = [key for key, loss in LOSSES.items() if loss.task == spec.task and loss.output == output]
    if name == "auto":
        return LOSSES[fitting[0]]
    if name not in fitting:
        raise TaskError(
            f"trainer.loss={name} does not fit {spec.task} with a network that gives {output}; "
            f"choose {' or '.join(fitting)}"
        )
    return LOSSES[name]


# ---------------------------------------------------------------------------------------------------------- metrics


@dataclass(frozen=True)
class Metric:
    """`values(outputs, targets) -> [batch, quantities]`; `result(means [quantities]) -> float`, from the exact means."""

    values: Callable[[Tensor, Tensor], Tensor]
    result: Callable[[Tensor], float]
    task: str
    higher_is_better: bool


def _is_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(dim=1) == targets).unsqueeze(1)


def _squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """[batch, 2 + outputs]: the squared error, the squared target (each summed over the outputs), the targets."""
    if outputs.device.type != "mps":  # which has no float64; squares far from zero need it
        outputs, targets = outputs.double(), targets.double()
    error = (outputs - targets).square().sum(dim=1, keepdim=True)
    return torch.cat([error, targets.square().sum(dim=1, keepdim=True), targets], dim=1)


def _r2(means: Tensor) -> float:
    """1 - residual variance / variance of the targets, over all outputs; nan where the targets do not vary."""
    variance = means[1] - means[2:].square().sum()
    return float(1 - means[0] / variance) if variance > 0 else math.nan


METRICS = {
    "accuracy": Metric(_is_correct, lambda means: float(means[0]), task="classification", higher_is_better=True),
    "rmse": Metric(
        lambda outputs, targets: squared_error(outputs, targets).unsqueeze(1),
        lambda means: math.sqrt(means[0]),
        task="regression",
        higher_is_better=False,
    ),
    "r2": Metric(_squares, _r2, task="regression", higher_is_better=True),
}


def metrics_for(task: str) -> dict[str, Metric]:
    """The metrics of a task, by name."""
    return {name: metric for name, metric in METRICS.items() if metric.task == task}


def higher_is_better(metric: str) -> bool:
    """The direction of a metric by its full name, "val/accuracy"; a loss is better low."""
    name = metric.split("/")[-1]
    return name in METRICS and METRICS[name].higher_is_better
