"""A run imports only what it needs: start-up stays short, and what is left out for it changes no number."""

from __future__ import annotations

import copy
import inspect
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch.optim.optimizer import _use_grad_for_differentiable

from lab.devices.device import spare_the_compiler
from model.datasets import digits

PROJECT = Path(__file__).resolve().parent.parent
# What only other commands need, or pictures, compilation and several devices; each costs 0.1 to 0.8 s.
UNNEEDED = ["matplotlib", "torchvision", "sklearn", "scipy", "pandas", "optuna", "submitit", "torch._dynamo"]
REPORT = "import runpy, sys; runpy.run_path(sys.argv[0], run_name='__main__'); print('imported', *sys.modules)"


def test_a_run_without_pictures_imports_what_it_needs_alone(tmp_path: Path) -> None:
    arguments = ["trainer.images=false", "trainer.epochs=1", "trainer.device=cpu", f"experiments_dir={tmp_path}"]
    code = f"import sys; sys.argv = ['train.py', *sys.argv[1:]]; sys.path.insert(0, '.'); {REPORT}"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=PROJECT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    imported = done.stdout.partition("\nimported ")[2].split()
    assert "torch" in imported
    assert [name for name in UNNEEDED if name in imported] == []


def test_digits_are_those_that_scikit_learn_loads() -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    splits = [split for name in ("train", "test") if (split := digits(name, "")) is not None]
    for label in range(10):  # a class keeps its order, and every fifth of it is tested
        own = torch.from_numpy(images[labels == label]).mul(255 / 16).round().byte().view(-1, 1, 8, 8)
        is_test = torch.arange(len(own)) % 5 == 4
        for split, expected in zip(splits, (own[~is_test], own[is_test]), strict=True):
            assert torch.equal(split.inputs[split.targets == label], expected)


def test_an_optimiser_without_the_compiler_takes_the_same_steps() -> None:
    class Spared(torch.optim.Adam):
        step = _use_grad_for_differentiable(inspect.unwrap(torch.optim.Adam.step))  # as before other tests trained

    decorated = Spared.step
    spare_the_compiler(Spared)
    assert Spared.step is not decorated
    weights = []
    for kind in (torch.optim.Adam, Spared):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        optimizer = kind(layer.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        weights.append(layer.weight.detach())
    assert torch.equal(*weights)
