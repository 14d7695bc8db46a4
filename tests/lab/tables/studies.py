"""Run directories as train.py leaves them, made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

MLP = {"_target_": "model.net.MLP", "hidden_sizes": [128, 64], "dropout": 0.0}
CNN = {"_target_": "model.net.CNN", "channels": [16, 32], "dropout": 0.25}


def make_run(
    root: Path,
    value: float = 0.9,
    *,
    path: str | None = None,
    seed: int = 0,
    lr: Any = 0.01,
    model: dict[str, Any] = MLP,
    data: str = "digits",
    state: str = "finished",
    monitor: str = "val/accuracy",
    test: float | None = None,
    minute: int = 0,
    num_epochs: int = 3,
    higher: bool | None = None,
    num_validation: int = 0,
    **keys: Any,
) -> Path:
    """A run directory as train.py leaves it, whose best epoch, the last but one, has this value."""
    directory = root / (path or f"{len(list(root.glob('run*')))}".rjust(4, "0").join(["run", ""]))
    directory.mkdir(parents=True)
    config: dict[str, Any] = {
        "name": "study",
        "seed": seed,
        "resume": None,
        "experiments_dir": str(root),
        "data": {"root": "data", "batch_size": 64, "_target_": f"model.datasets.{data}"},
        "model": model,
        "optimizer": {"_target_": "torch.optim.Adam", "lr": lr, "betas": [0.9, 0.999]},
        "trainer": {"epochs": num_epochs, "monitor": None, "max_grad_norm": float("inf"), "images": True},
    }
    for key, item in keys.items():
        group, _, name = key.partition("__")
        (config[group] if name else config).update({name or key: item})
    (directory / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    status = {"state": state, "epoch": num_epochs, "time": f"2026-01-31T12:{minute:02}:00+00:00", "error": None}
    (directory / "status.json").write_text(json.dumps(status))
    best = max(1, num_epochs - 1)
    offsets = [-0.1 * abs(epoch - best) for epoch in range(1, num_epochs + 1)]
    sign = -1 if monitor.endswith(("loss", "rmse")) else 1
    lines = [
        {"epoch": i, "step": 10 * i, "seconds": 1.0, "val/loss": 1 - value, monitor: value + sign * offset}
        for i, offset in enumerate(offsets, start=1)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if state == "finished":
        record: dict[str, Any] = {"monitor": monitor, "best": lines[best - 1], "final": lines[-1]}
        if higher is not None:
            record["higher_is_better"] = {"loss": False, monitor.removeprefix("val/"): higher}
        (directory / "metrics.json").write_text(json.dumps(record))
    if num_validation:
        (directory / "train.log").write_text(
            f"data    digits: 1,438 training and {num_validation:,} validation examples"
        )
    if test is not None:
        name = monitor.replace("val/", "test/")
        (directory / "evaluation.json").write_text(json.dumps({"split": "test", "epoch": best, name: test}))
    return directory


def make_study(root: Path, rows: dict[float, list[float]], **keys: Any) -> None:
    """For each learning rate, runs with the seeds 0, 1, ... and these values."""
    for lr, values in rows.items():
        for seed, value in enumerate(values):
            make_run(root, value, lr=lr, seed=seed, **keys)


def make_unbegun(root: Path, name: str, error: str | None) -> Path:
    """What is left of a sweep's job that ended before its run began."""
    directory = root / name / "seed-0"
    directory.mkdir(parents=True)
    (directory / "train.log").write_text("Traceback (most recent call last): ...")
    if error is not None:
        status = {"state": "failed", "epoch": 0, "step": 0, "time": "2026-01-31T12:00:00+00:00", "error": error}
        (directory / "status.json").write_text(json.dumps(status))
    return directory
