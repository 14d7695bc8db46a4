"""The pool by itself: jobs from a generator, each with its share of the machine; what is seen of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.commands import read
from helpers.sweeps import make_job

from lab.sweeps import pool
from lab.sweeps.pool import Job, Running, run_pool


def test_a_generator_of_jobs_waits_for_what_came_out(tmp_path: Path) -> None:
    events: list[str] = []

    def propose() -> Iterator[Job]:
        for seed in range(4):
            events.append(f"propose {seed}")
            yield make_job(tmp_path / str(seed), seed)

    ended = run_pool(
        propose(),
        n_jobs=1,
        on_start=lambda one: events.append(f"start {one.job.directory.name}"),
        on_end=lambda one: events.append(f"end {one.job.directory.name}"),
    )
    assert events == [f"{what} {seed}" for seed in range(4) for what in ("propose", "start", "end")]
    for one in ended:
        metrics = read(one.job.directory / "metrics.json")
        assert one.error is None
        assert one.best == {key: value for key, value in metrics["best"].items() if key != "epoch"}


def test_each_job_sees_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7,5")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpus = pool.visible_gpus()
    assert gpus == ["3", "GPU-7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert pool.visible_gpus() == ["0", "1"]

    seen: dict[str, str] = {}

    def read_environment(one: Running) -> None:
        assert len(one.gpus) == 1
        seen[one.job.directory.name] = one.gpus[0]

    jobs = [make_job(tmp_path / str(seed), seed) for seed in range(4)]
    assert all(one.error is None for one in run_pool(jobs, n_jobs=4, gpus=gpus, on_start=read_environment))
    assert sorted(seen.values()) == ["3", "3", "GPU-7", "GPU-7"]
