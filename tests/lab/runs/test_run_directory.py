"""The run directory holds what happened: what was asked, every epoch, the best weights, where it all comes from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from helpers.commands import compose, read, read_lines
from helpers.runs import (
    equal_weights,
)
from omegaconf import OmegaConf

from lab.runs.loading import load_config


def test_patience_stops_after_so_many_epochs_without_a_better_one(run_train: Callable[..., Path]) -> None:
    run = run_train("optimizer.lr=1e-12", "trainer.patience=3", "trainer.epochs=50", "data.limit=100")
    records = read_lines(run / "metrics.jsonl")
    assert len({record["val/accuracy"] for record in records}) == 1  # a rate at which nothing changes
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    status, metrics = read(run / "status.json"), read(run / "metrics.json")
    assert (status["state"], status["epoch"]) == ("finished", 4)
    assert (metrics["best"]["epoch"], metrics["final"]["epoch"]) == (1, 4)


def test_patience_counts_from_the_best_epoch(run_train: Callable[..., Path]) -> None:
    run = run_train("trainer.patience=2", "trainer.epochs=60", "data.limit=60", "data.batch_size=20")
    accuracies = [record["val/accuracy"] for record in read_lines(run / "metrics.jsonl")]
    best = accuracies.index(max(accuracies))
    assert best > 0
    assert len(accuracies) == best + 1 + 2
    waits = [epoch - max(range(epoch + 1), key=lambda e: (accuracies[e], -e)) for epoch in range(len(accuracies) - 1)]
    assert max(waits) < 2  # it had not been due to stop before


def test_a_lower_loss_is_a_better_one(run_train: Callable[..., Path]) -> None:
    run = run_train("trainer.monitor=val/loss", "trainer.epochs=4", "data.limit=100")
    losses = [record["val/loss"] for record in read_lines(run / "metrics.jsonl")]
    assert read(run / "metrics.json")["best"]["epoch"] == losses.index(min(losses)) + 1 == 4


def test_the_run_directory_holds_what_happened(run_train: Callable[..., Path], tmp_path: Path) -> None:
    typed = ["data.limit=200", "trainer.epochs=3", "optimizer=momentum", "optimizer.lr=0.02", "seed=3"]
    run = run_train(*typed)
    assert run.parent == tmp_path / "experiments" / "run"
    assert {path.name for path in run.iterdir() if not path.name.startswith(("events.", "."))} - {
        "uncommitted.patch"
    } == {
        *("config.yaml", "overrides.yaml", "provenance.json", "status.json", "metrics.jsonl", "metrics.json"),
        *("best.pt", "last.pt", "before.pt", "train.log"),
    }
    assert all(path.is_file() for path in run.iterdir())

    overrides = OmegaConf.to_container(OmegaConf.load(run / "overrides.yaml"))
    assert overrides[-len(typed) :] == typed
    recorded = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    composed = OmegaConf.to_container(compose(*overrides))
    assert {key: composed[key] for key in composed if key not in ("rerun", "dry_run", "like")} == recorded
    assert OmegaConf.to_container(load_config(run)) == recorded
    assert (recorded["seed"], recorded["optimizer"]["lr"], recorded["optimizer"]["momentum"]) == (3, 0.02, 0.9)

    records = read_lines(run / "metrics.jsonl")
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 4), (2, 8), (3, 12)]
    metrics = {f"{split}/{name}" for split in ("train", "val") for name in ("loss", "accuracy")}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record.keys() >= {"epoch", "step", "seconds", "lr"} | metrics
        assert record["seconds"] > 0

    summary = read(run / "metrics.json")
    accuracies = [record["val/accuracy"] for record in records]
    best = accuracies.index(max(accuracies))
    assert summary["monitor"] == "val/accuracy"
    assert summary["higher_is_better"] == {"loss": False, "accuracy": True}
    assert summary["best"] == {"epoch": best + 1} | {name: records[best][name] for name in metrics}
    assert summary["final"] == {"epoch": 3} | {name: records[-1][name] for name in metrics}

    status = read(run / "status.json")
    assert (status["state"], status["epoch"], status["step"], status["error"]) == ("finished", 3, 12, None)
    log = (run / "train.log").read_text()
    assert f"{accuracies[best]:.4f}" in log
    assert len(re.findall(r"^epoch +\d/3 ", log, re.MULTILINE)) == 3


def test_provenance_says_where_the_numbers_come_from(run_train: Callable[..., Path]) -> None:
    first, same_data, other_data = (
        run_train(*arguments, "trainer.epochs=1", name=f"run{number}")
        for number, arguments in enumerate((["data.limit=90"], ["data.limit=90", "seed=5"], ["data.limit=80"]))
    )
    records = [read(run / "provenance.json") for run in (first, same_data, other_data)]
    assert records[0]["data_sha256"] == records[1]["data_sha256"] != records[2]["data_sha256"]
    assert "data.limit=90" in records[0]["command"]
    assert records[0]["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert records[0]["device"].startswith("cpu")
    patch = first / "uncommitted.patch"
    if records[0]["git_patch_sha256"]:
        assert hashlib.sha256(patch.read_bytes()).hexdigest() == records[0]["git_patch_sha256"]
    else:
        assert not patch.exists()


def test_the_best_weights_are_those_of_the_best_epoch(run_train: Callable[..., Path]) -> None:
    ruined = ["scheduler=step", "scheduler.step_size=1", "scheduler.gamma=300", "data.limit=200"]
    run = run_train(*ruined, "trainer.epochs=3", name="whole")
    best = read(run / "metrics.json")["best"]["epoch"]
    assert best < 3
    up_to_there = run_train(*ruined, f"trainer.epochs={best}", name="shorter")
    assert equal_weights(run / "best.pt", up_to_there / "last.pt")
    assert not equal_weights(run / "best.pt", run / "last.pt")


def test_a_seed_repeats_a_run_and_another_one_does_not(run_train: Callable[..., Path]) -> None:
    options = ["model.dropout=0.3", "data.crop_padding=1", "data.flip=true", "data.limit=200", "trainer.epochs=2"]
    first = run_train(*options, "seed=7", name="first")
    torch.rand(5)  # what ran before in this process is of no account
    again = run_train(*options, "seed=7", name="again")
    other = run_train(*options, "seed=8", name="other")
    assert read_lines(first / "metrics.jsonl") == read_lines(again / "metrics.jsonl")
    assert equal_weights(first / "last.pt", again / "last.pt")
    assert read_lines(first / "metrics.jsonl") != read_lines(other / "metrics.jsonl")
    assert not equal_weights(first / "last.pt", other / "last.pt")


def test_what_is_logged_does_not_change_what_is_learned(run_train: Callable[..., Path]) -> None:
    options = ["model.dropout=0.3", "data.limit=200", "trainer.epochs=2"]
    quiet = run_train(*options, "trainer.log_every=1000", name="quiet")
    loud = run_train(*options, "trainer.log_every=1", "trainer.images=true", name="loud")
    assert read_lines(quiet / "metrics.jsonl") == read_lines(loud / "metrics.jsonl")
    assert equal_weights(quiet / "last.pt", loud / "last.pt")
    assert list(loud.glob("*.png"))
