"""Every optimiser goes with every schedule, and the rate of each step is the closed form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import CONF, compose, read_lines
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lab.config.builders import build_schedule
from lab.config.targets import build

OPTIMIZERS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))


SCHEDULERS = sorted(path.stem for path in (CONF / "scheduler").glob("*.yaml"))


@pytest.fixture
def used_rates() -> Iterator[list[float]]:
    """The learning rate of every step that any optimiser takes."""
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(float(optimizer.param_groups[0]["lr"])))
    yield rates
    hook.remove()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_learns_with_its_own_defaults(optimizer: str, run_train: Callable[..., Path]) -> None:
    records = read_lines(run_train(f"optimizer={optimizer}", "data.limit=300", "trainer.epochs=6") / "metrics.jsonl")
    assert records[-1]["train/loss"] < 0.8 * records[0]["train/loss"]
    assert records[-1]["val/accuracy"] > 0.4


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_schedule_learns(scheduler: str, run_train: Callable[..., Path]) -> None:
    run = run_train(f"scheduler={scheduler}", "optimizer.lr=0.005", "data.limit=300", "trainer.epochs=6")
    records = read_lines(run / "metrics.jsonl")
    assert records[-1]["train/loss"] < 0.8 * records[0]["train/loss"]
    assert records[-1]["val/accuracy"] > 0.4


@pytest.mark.parametrize(("optimizer", "scheduler"), [*itertools.product(OPTIMIZERS, SCHEDULERS)])
def test_every_optimizer_goes_with_every_schedule(optimizer: str, scheduler: str) -> None:
    cfg = compose(f"optimizer={optimizer}", f"scheduler={scheduler}", "trainer.epochs=3")
    model = nn.Linear(2, 2)
    built = build("optimizer", cfg.optimizer, model.parameters())
    schedule = build_schedule(cfg, built, num_steps_per_epoch=4, higher=True)
    for _ in range(3):
        for _ in range(4):
            model(torch.ones(1, 2)).sum().backward()
            built.step()
            schedule.after_step()
        schedule.after_epoch(0.5)
    assert 0 <= built.param_groups[0]["lr"] <= cfg.optimizer.lr


def cosine(rate: float, total: int) -> list[float]:
    return [rate / 2 * (1 + math.cos(math.pi * t / total)) for t in range(total)]


def one_cycle(rate: float, total: int) -> list[float]:
    """Smith and Topin's cycle with cosine ramps: from rate/25 up to rate in three tenths, and down to rate/25/10,000."""

    def ramp(start: float, end: float, share: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    top = 0.3 * total - 1
    return [
        ramp(rate / 25, rate, t / top) if t <= top else ramp(rate, rate / 250_000, (t - top) / (total - 1 - top))
        for t in range(total)
    ]


EPOCHS, STEPS = 6, 4  # 200 examples in batches of 64


def each_epoch(rates: list[float]) -> list[float]:
    return [rate for rate in rates for _ in range(STEPS)]


TOTAL = EPOCHS * STEPS
RATES: dict[str, tuple[list[str], list[float]]] = {
    "constant": (["scheduler=constant"], [0.1] * TOTAL),
    "cosine, steps": (["scheduler=cosine"], cosine(0.1, TOTAL)),
    "cosine, epochs": (["scheduler=cosine", "scheduler.interval=epoch"], each_epoch(cosine(0.1, EPOCHS))),
    "cosine, half": (["scheduler=cosine", "scheduler.T_max=50%"], None),
    "onecycle, steps": (["scheduler=onecycle"], one_cycle(0.1, TOTAL)),
    "onecycle, epochs": (["scheduler=onecycle", "scheduler.interval=epoch"], each_epoch(one_cycle(0.1, EPOCHS))),
    "step, thirds": (["scheduler=step"], each_epoch([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])),
    "step, own size": (
        ["scheduler=step", "scheduler.step_size=1", "scheduler.gamma=0.5"],
        each_epoch([0.1 * 0.5**epoch for epoch in range(EPOCHS)]),
    ),
    "step, steps": (
        ["scheduler=step", "scheduler.interval=step", "scheduler.step_size=50%"],
        [0.1] * (TOTAL // 2) + [0.01] * (TOTAL // 2),
    ),
}
RATES["cosine, half"] = (RATES["cosine, half"][0], [0.05 * (1 + math.cos(math.pi * t / 12)) for t in range(TOTAL)])


@pytest.mark.parametrize("case", RATES)
def test_the_learning_rate_of_every_step(case: str, run_train: Callable[..., Path], used_rates: list[float]) -> None:
    overrides, expected = RATES[case]
    run = run_train(*overrides, "optimizer=momentum", "optimizer.lr=0.1", "data.limit=200", f"trainer.epochs={EPOCHS}")
    np.testing.assert_allclose(used_rates, expected, rtol=1e-6, atol=1e-9)
    recorded = [record["lr"] for record in read_lines(run / "metrics.jsonl")]
    if "steps" not in case and "half" not in case:
        np.testing.assert_allclose(recorded, expected[::STEPS], rtol=1e-6)


@pytest.mark.parametrize(("monitor", "direction"), [("val/accuracy", 1), ("val/loss", -1)])
def test_a_plateau_lowers_the_rate(
    monitor: str, direction: int, run_train: Callable[..., Path], used_rates: list[float]
) -> None:
    run = run_train(
        *("scheduler=plateau", "scheduler.patience=1", "scheduler.factor=0.5", f"trainer.monitor={monitor}"),
        *("optimizer=momentum", "optimizer.lr=0.3", "data.limit=200", "trainer.epochs=14"),
    )
    rate, best, num_bad, expected = 0.3, -math.inf, 0, []
    for record in read_lines(run / "metrics.jsonl"):
        expected.append(rate)
        value = direction * record[monitor]
        is_better = value > best + 1e-4 * abs(best) if math.isfinite(best) else True
        best, num_bad = (value, 0) if is_better else (best, num_bad + 1)
        if num_bad > 1:
            rate, num_bad = rate / 2, 0
    assert len(set(expected)) > 1, "the rate should have fallen at least once, or this shows nothing"
    np.testing.assert_allclose(used_rates, each_epoch(expected))


def test_plain_sgd_stays_plain_under_a_cycle() -> None:
    cfg = compose("optimizer=sgd", "scheduler=onecycle")
    optimizer = build("optimizer", cfg.optimizer, nn.Linear(2, 2).parameters())
    build_schedule(cfg, optimizer, num_steps_per_epoch=4, higher=True)
    assert optimizer.param_groups[0]["momentum"] == 0
