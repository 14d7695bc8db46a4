"""What PyTorch's layers, functions and optimisers do, written out: to see that there is no more to them.

Networks like those of `model/net.py`, and used in the same way (`conf/model/`, `conf/optimizer/`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from model.net import DataSpec, TaskError, check_sizes


class HandwrittenMLP(nn.Module):
    """A hidden layer from weight matrices: softmax(sigmoid(x w1 + b1) w2 + b2), each of them written out.

    [batch, *input_shape] -> class probabilities [batch, output_size], rows that sum to 1.
    """

    output = "softmax"

    def __init__(self, spec: DataSpec, *, hidden_size: int = 256) -> None:
        super().__init__()
        if spec.task != "classification":
            raise TaskError(f"HandwrittenMLP gives class probabilities; the task of this data is {spec.task}")
        check_sizes([hidden_size], "model.hidden_size")
        input_size = math.prod(spec.input_shape)
        self.w1 = nn.Parameter(torch.randn(input_size, hidden_size) / math.sqrt(input_size))
        self.b1 = nn.Parameter(torch.zeros(hidden_size))
        self.w2 = nn.Parameter(torch.randn(hidden_size, spec.output_size) / math.sqrt(hidden_size))
        self.b2 = nn.Parameter(torch.zeros(spec.output_size))

    def features(self, x: Tensor) -> Tensor:
        """The hidden layer, [batch, hidden_size]."""
        return sigmoid(x.flatten(1) @ self.w1 + self.b1)

    def forward(self, x: Tensor) -> Tensor:
        return softmax(self.features(x) @ self.w2 + self.b2)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), element by element."""
    return 1 / (1 + torch.exp(-x))


def softmax(x: Tensor) -> Tensor:
    """e^x over the sum of its row, for [batch, classes]; the row's maximum is taken off first, so that e^x is finite."""
    powers = torch.exp(x - x.max(dim=1, keepdim=True).values)
    return powers / powers.sum(dim=1, keepdim=True)


class MyReLU(torch.autograd.Function):
    """ReLU with its own gradient: forward clamps at 0, backward lets nothing through where the input was negative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where(x < 0, 0, grad_outputs[0])


class TwoLayer(nn.Module):
    """relu(x w1) w2, from weight matrices drawn from N(0, 1), without biases; ReLU as `clamp` or as `function` (MyReLU).

    [batch, *input_shape] -> [batch, output_size].
    """

    def __init__(self, spec: DataSpec, *, hidden_size: int = 100, relu: str = "clamp") -> None:
        super().__init__()
        if relu not in ("clamp", "function"):
            raise TaskError(f"model.relu is {relu!r}; choose clamp or function")
        check_sizes([hidden_size], "model.hidden_size")
        self.relu = relu
        self.w1 = nn.Parameter(torch.randn(math.prod(spec.input_shape), hidden_size))
        self.w2 = nn.Parameter(torch.randn(hidden_size, spec.output_size))

    def features(self, x: Tensor) -> Tensor:
        """The hidden layer, [batch, hidden_size]."""
        hidden = x.flatten(1) @ self.w1
        return hidden.clamp(min=0) if self.relu == "clamp" else MyReLU.apply(hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x) @ self.w2


class GradientDescent(torch.optim.Optimizer):
    """Weights minus the learning rate times their gradients, and nothing else."""

    def __init__(self, params: Iterable[nn.Parameter], *, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.sub_(group["lr"] * weight.grad)
