"""Muon, an optimiser for networks of matrices and filters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # takes singular values from nothing to about 1 in few rounds
BETAS = 0.9, 0.95  # of the averages in Adam's steps


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonal matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    A weight [out, ...] of two or more dimensions is read as a matrix [out, rest]. Its step is `lr` times the Nesterov
    momentum of its gradient with all singular values brought near 1 (a tall matrix's longer by sqrt(out / rest)), and
    `lr * weight_decay` of the weight is taken off. Vectors, that is biases and scales, take Adam's steps, of
    `lr * vector_lr`, without decay.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        vector_lr: float = 0.1,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "vector_lr": vector_lr}
        if not 0 <= momentum < 1 or weight_decay < 0 or vector_lr < 0:
            raise ValueError("momentum is at least 0 and below 1; weight_decay and vector_lr are at least 0")
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    step = self._step_matrix if weight.dim() > 1 else self._step_vector
                    step(weight, weight.grad, group)

    def _step_matrix(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, momentum = self.state[weight], group["momentum"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        matrix = gradient.lerp(average, momentum).flatten(1)
        stretch = math.sqrt(max(1, matrix.shape[0] / matrix.shape[1]))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_(orthogonal(matrix).view(weight.shape), alpha=group["lr"] * stretch)

    def _step_vector(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())  # a tensor, as in PyTorch's own Adam: checkpoints keep it as it is
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        step = float(state["step"])
        mean = state["exp_avg"].lerp_(gradient, 1 - BETAS[0]) / (1 - BETAS[0] ** step)
        square = state["exp_avg_sq"].lerp_(gradient.square(), 1 - BETAS[1]) / (1 - BETAS[1] ** step)
        weight.sub_(mean / (square.sqrt() + 1e-8), alpha=group["lr"] * group["vector_lr"])


def orthogonal(matrix: Tensor, *, rounds: int = 5) -> Tensor:
    """A matrix with the same singular vectors, and all singular values between about 0.7 and 1.2; of its own dtype.

    By rounds of a polynomial of Newton-Schulz, in bf16, which is precise enough for it, but for processors that have none.
    """
    a, b, c = NEWTON_SCHULZ
    has_native_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    dtype = torch.bfloat16 if matrix.device.type != "cpu" or has_native_bf16() else torch.float32
    wide = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).to(dtype)
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(rounds):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * square @ square) @ wide
    return (wide if matrix.shape[0] <= matrix.shape[1] else wide.T).to(matrix.dtype)
