"""Muon's steps against an independent computation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (16, 16)])
def test_orthogonal_keeps_the_singular_vectors_and_brings_the_values_near_one(shape: tuple[int, int]) -> None:
    left, right = (torch.linalg.qr(torch.randn(size, 10))[0] for size in shape)
    result = orthogonal(left @ torch.logspace(-1, 1, 10).diag() @ right.T)
    assert result.shape == shape and result.dtype == torch.float32
    within = left.T @ result @ right
    assert (within.diag() > 0.6).all() and (within.diag() < 1.3).all()
    assert (within - within.diag().diag()).abs().max() < 0.1


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrix, by singular values."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def test_steps_are_those_of_the_paper_and_of_adam() -> None:
    """Filters by orthogonal Nesterov momentum, which the rounds only approximate; biases exactly as torch's Adam."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 40, 2).to(memory_format=torch.channels_last)
    bias = layer.bias.detach().clone()
    reference = nn.Parameter(bias.clone())
    muon = Muon(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5, vector_lr=0.2)
    adam = torch.optim.Adam([reference], lr=0.02, betas=(0.9, 0.95))
    momentum = torch.zeros(40, 12)
    for _ in range(3):
        layer.weight.grad, layer.bias.grad = torch.randn_like(layer.weight), torch.randn_like(bias)
        reference.grad = layer.bias.grad.clone()
        gradient = layer.weight.grad.flatten(1)
        momentum = 0.9 * momentum + 0.1 * gradient
        step = polar(0.9 * momentum + 0.1 * gradient) * (40 / 12) ** 0.5
        before = layer.weight.detach().clone() * (1 - 0.1 * 0.5)
        muon.step(), adam.step()
        taken = (before - layer.weight.detach()).flatten(1) / 0.1
        assert torch.linalg.matrix_norm(taken - step) < 0.35 * torch.linalg.matrix_norm(step)
        assert (taken * step).sum() > 0.97 * taken.norm() * step.norm()
    torch.testing.assert_close(layer.bias.detach(), reference.detach())


def test_mistakes_are_refused() -> None:
    for keys in ({"momentum": 1.0}, {"weight_decay": -1.0}, {"vector_lr": -0.1}):
        with pytest.raises(ValueError, match="momentum is at least 0"):
            Muon(nn.Linear(2, 2).parameters(), **keys)
