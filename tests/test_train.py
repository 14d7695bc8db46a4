"""The command that trains: runs that do not end well, debugging, sweeps, and going on."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.commands import Outcome, read, read_lines
from helpers.runs import (
    equal_weights,
    only_run,
    weights_of,
)
from torch import nn

from lab.runs.loading import load_config
from lab.runs.lock import locked
from lab.runs.logger import RunLogger
from model.net import DataSpec


@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_bf16_trains(model: str, run_train: Callable[..., Path]) -> None:
    run = run_train(
        f"model={model}", "trainer.precision=bf16", "optimizer.lr=0.01", "data.limit=300", "trainer.epochs=4"
    )
    records = read_lines(run / "metrics.jsonl")
    assert records[-1]["val/accuracy"] > 0.5
    assert all(tensor.dtype == torch.float32 for tensor in weights_of(run / "best.pt").values())


@pytest.mark.long
def test_a_compiled_run_is_the_run_and_loads_without_compiling(run_train: Callable[..., Path]) -> None:
    options = ["model.hidden_sizes=[16]", "data.limit=128", "trainer.epochs=2"]
    eager = run_train(*options, name="eager")
    compiled = run_train(*options, "trainer.compile=true", name="compiled")
    assert weights_of(compiled / "last.pt").keys() == weights_of(eager / "last.pt").keys()
    for name, tensor in weights_of(compiled / "last.pt").items():
        torch.testing.assert_close(tensor, weights_of(eager / "last.pt")[name], rtol=1e-3, atol=1e-4)


def test_a_run_that_diverges_says_where_and_keeps_nothing_broken(
    try_train: Callable[..., Outcome], tmp_path: Path
) -> None:
    named = []
    for log_every in (1, 50):  # the step is named whether or not somebody looked just then
        outcome = try_train(
            *("optimizer=sgd", "optimizer.lr=1e6", "model.activation=relu", "loss=cross_entropy"),
            *("trainer.epochs=40", f"trainer.log_every={log_every}", f"name=every{log_every}"),
        )
        assert outcome.code == 1
        assert len(outcome.err.strip().splitlines()) == 1
        (run,) = (tmp_path / "experiments" / f"every{log_every}").iterdir()
        status = read(run / "status.json")
        assert status["state"] == "diverged"
        assert status["error"] in outcome.err
        place = re.search(r"epoch (\d+), step (\d+)", outcome.err)
        assert place is not None
        epoch, step = map(int, place.groups())
        assert math.ceil(step / 21) == epoch  # 1,296 training examples: 21 steps an epoch
        named.append((epoch, step))
        for path in run.glob("*.pt"):
            assert all(torch.isfinite(tensor).all() for tensor in weights_of(path).values())
    assert named[0] == named[1]


class Broken(nn.Module):
    """A network whose loss is not a number from its 10th training step on."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(spec.input_shape), spec.output_size)
        self.num_steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_steps += self.training and torch.is_grad_enabled()
        return self.layer(x.flatten(1)) + (math.nan if self.num_steps >= 10 else 0.0)


@pytest.mark.parametrize("log_every", [1, 3, 50])
def test_the_first_step_that_is_no_number_is_named(
    log_every: int, try_train: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = try_train(
        "model._target_=test_train.Broken",
        *("~model.hidden_sizes", "~model.activation", "~model.dropout", "~model.output"),
        *("data.limit=200", f"trainer.log_every={log_every}", "trainer.epochs=9"),
    )
    assert outcome.code == 1, outcome.err
    assert "epoch 3, step 10" in outcome.err  # 4 steps an epoch
    run = only_run(tmp_path)
    assert [record["epoch"] for record in read_lines(run / "metrics.jsonl")] == [1, 2]
    assert read(run / "metrics.json")["final"]["epoch"] == 2
    assert read(run / "status.json")["epoch"] == 2


def test_an_interruption_is_recorded_and_says_how_to_go_on(
    try_train: Callable[..., Outcome],
    run_command: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log_epoch = RunLogger.epoch

    def interrupt(self: RunLogger, record: Any, *, num_epochs: int) -> None:
        if record["epoch"] == 3:
            raise KeyboardInterrupt
        log_epoch(self, record, num_epochs=num_epochs)

    monkeypatch.setattr(RunLogger, "epoch", interrupt)
    outcome = try_train("trainer.epochs=4", "data.limit=100")
    monkeypatch.undo()
    run = only_run(tmp_path)
    assert outcome.code == 130
    assert "interrupted" in outcome.err
    assert read(run / "status.json")["state"] == "interrupted"
    assert f"resume={run}" in outcome.out
    again = run_command("train", f"resume={run}")
    assert again.code == 0, again.err
    assert [record["epoch"] for record in read_lines(run / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_bug_is_recorded_as_failed(
    try_train: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.runs.run.time", SimpleNamespace(perf_counter=lambda: 1.0))  # a clock that stands still
    with pytest.raises(ZeroDivisionError):
        try_train("trainer.epochs=1", "data.limit=100")
    status = read(only_run(tmp_path) / "status.json")
    assert status["state"] == "failed"
    assert "ZeroDivisionError" in status["error"] and "division by zero" in status["error"]


def test_a_bug_in_what_one_has_written_oneself_is_told_with_its_place(
    try_train: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug of one's own")

    monkeypatch.setattr(RunLogger, "epoch", fail)
    outcome = try_train("trainer.epochs=1", "data.limit=100")
    assert outcome.code == 1
    assert "test_train.py" in outcome.err and "a bug of one's own" in outcome.err
    assert "lab/runs" not in outcome.err
    status = read(only_run(tmp_path) / "status.json")
    assert (status["state"], status["error"]) == ("failed", "ZeroDivisionError: a bug of one's own")


def test_debug_tiny_is_a_few_steps_of_everything(try_train: Callable[..., Outcome], tmp_path: Path) -> None:
    assert try_train("debug=tiny").code == 0
    records = read_lines(only_run(tmp_path) / "metrics.jsonl")
    assert records[-1]["step"] <= 10


def test_debug_overfit_tells_a_network_that_learns_from_one_that_cannot(try_train: Callable[..., Outcome]) -> None:
    assert try_train("debug=overfit").code == 0
    outcome = try_train("debug=overfit", "optimizer.lr=1e-12", "trainer.epochs=3")
    assert outcome.code == 1
    assert len(outcome.err.strip().splitlines()) == 1
    assert "training loss" in outcome.err


def test_debug_profile_says_where_the_time_goes(try_train: Callable[..., Outcome], tmp_path: Path) -> None:
    assert try_train("debug=profile", "data.max_batches=3").code == 0
    run = only_run(tmp_path)
    assert any("linear" in event.get("name", "") for event in read(run / "trace.json")["traceEvents"])
    assert "aten::addmm" in (run / "profile.txt").read_text()


QUICK = ["trainer.epochs=1", "data.limit=100"]


def test_the_same_sweep_again_does_only_what_is_missing(try_train: Callable[..., Outcome], tmp_path: Path) -> None:
    sweep = ["-m", "model=mlp,lstm", "seed=0,1", *QUICK]
    assert try_train(*sweep).code == 0
    folder = tmp_path / "experiments" / "run"
    runs = sorted(path.parent for path in folder.glob("**/config.yaml"))
    assert len(runs) == 4
    found = set()
    for run in runs:
        cfg = load_config(run)
        found.add((cfg.model._target_, cfg.seed))
        assert run.name == f"seed-{cfg.seed}"
        assert run.parent.parent == folder
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,120}", run.parent.name)
    assert found == set(itertools.product(("model.net.MLP", "model.net.LSTM"), (0, 1)))
    assert len({run.parent for run in runs}) == 2

    def snapshot() -> dict[Path, tuple[int, bytes]]:
        return {
            path: (path.stat().st_mtime_ns, path.read_bytes())
            for run in runs
            for path in run.iterdir()
            if path.is_file()
        }

    before = snapshot()
    outcome = try_train(*sweep)
    assert outcome.code == 0
    assert outcome.out.count("has finished already") == 4
    assert snapshot() == before

    weights = (runs[2] / "last.pt").read_bytes()
    for path in runs[2].iterdir():
        path.unlink()
    outcome = try_train(*sweep)
    assert outcome.out.count("has finished already") == 3
    after = snapshot()
    untouched = [path for path in before if path.parent != runs[2]]
    assert {path: after[path] for path in untouched} == {path: before[path] for path in untouched}
    assert equal_weights(runs[2] / "last.pt", runs[2] / "best.pt")
    assert read(runs[2] / "status.json")["state"] == "finished"
    assert len((runs[2] / "last.pt").read_bytes()) == pytest.approx(len(weights), rel=0.1)


def test_a_job_of_a_sweep_is_the_run_alone(
    try_train: Callable[..., Outcome], run_train: Callable[..., Path], tmp_path: Path
) -> None:
    """Jobs of a sweep share a process; what one leaves behind must not reach the next."""
    assert try_train("-m", "model=lstm,mlp", "seed=0,1", *QUICK).code == 0
    (swept,) = (tmp_path / "experiments" / "run").glob("*mlp*/seed-1")
    alone = run_train("model=mlp", "seed=1", *QUICK, name="alone")
    assert read_lines(swept / "metrics.jsonl") == read_lines(alone / "metrics.jsonl")
    assert equal_weights(swept / "last.pt", alone / "last.pt")


def test_a_finished_run_goes_on_with_more_epochs(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    options = ["model.dropout=0.2", "data.limit=150"]
    run = run_train(*options, "trainer.epochs=2", name="longer")
    whole = run_train(*options, "trainer.epochs=4", name="whole")
    before = (run / "last.pt").read_bytes()
    again = run_command("train", f"resume={run}")
    assert again.code == 0
    assert "finished already" in again.out
    assert (run / "last.pt").read_bytes() == before
    assert run_command("train", f"resume={run}", "trainer.epochs=4").code == 0
    assert read_lines(run / "metrics.jsonl") == read_lines(whole / "metrics.jsonl")
    assert equal_weights(run / "last.pt", whole / "last.pt")
    assert equal_weights(run / "best.pt", whole / "best.pt")
    assert load_config(run).trainer.epochs == 4


def test_a_run_does_not_go_on_as_another(run_train: Callable[..., Path], run_command: Callable[..., Outcome]) -> None:
    run = run_train(*QUICK)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    for change in ("optimizer.lr=0.5", "seed=9", "model.hidden_sizes=[3]", "data.batch_size=7", "model=cnn"):
        outcome = run_command("train", f"resume={run}", "trainer.epochs=3", change)
        assert outcome.code == 2
        assert len(outcome.err.strip().splitlines()) == 1
        assert change.split("=")[0] in outcome.err
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_resuming_with_a_damaged_checkpoint_is_refused(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    run = run_train(*QUICK)
    content = bytearray((run / "last.pt").read_bytes())
    content[len(content) // 2] ^= 16
    (run / "last.pt").write_bytes(content)
    metrics = (run / "metrics.jsonl").read_bytes()
    outcome = run_command("train", f"resume={run}", "trainer.epochs=2")
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert "last.pt is damaged" in outcome.err
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_a_run_that_another_process_writes_is_left_alone(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    run = run_train(*QUICK)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with locked(run):
        outcome = run_command("train", f"resume={run}", "trainer.epochs=2")
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert "is being written by process" in outcome.err
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    assert run_command("train", f"resume={run}", "trainer.epochs=2").code == 0
