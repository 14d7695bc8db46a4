"""The command: its files, its mistakes, pivots and curves, and the whole from training to the table."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome
from studies import CNN, MLP, make_run, make_study
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils import PROJECT


@pytest.fixture
def synthesize(
    run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """synthesize(...) does what `python synthesize_results.py root=<tmp_path> ...` would."""
    return lambda *arguments: run_command("synthesize_results", f"root={tmp_path}", *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["metric=val/acuracy"], ["metric is val/acuracy", "there is val/loss, val/accuracy", "mean val/accuracy?"]),
        (["metric=accuracy"], ["did you mean val/accuracy?"]),
        (["group_by=[lrr]"], ["group_by has lrr", "did you mean lr?"]),
        (["group_by=[modle]"], ["group_by has modle"]),
        (["group_by=lr"], ["group_by is 'lr'", "a list"]),
        (["group_by=[root]", "+x=1"], ["x is not a key"]),
        (["pivot=[model]"], ["pivot is [model]", "two keys", "pivot=[model,data]"]),
        (["pivot=[model,model]"], ["two keys"]),
        (["pivot=[lr,model,data]"], ["two keys"]),
        (["pivot=model,data"], ["pivot=[model,data]"]),
        (["group_by=[size]"], ["size", "data.size or model.size", "in full"]),
        (["tensorboard=3"], ["tensorboard is 3"]),
        (["plan=-1"], ["plan is -1", "above 0"]),
        (["seeds_for_choosing=[x]"], ["seeds_for_choosing"]),
        (["seeds_for_choosing=[77]"], ["no run has finished with one of these seeds"]),
        (["higher_is_better=false"], ["higher_is_better is false", "leave it out"]),
        (["diff=[a]"], ["diff is [a]", "diff=[<run>,<run>]"]),
        (["diff=[a,b]"], ["diff has a, which is no run directory"]),
        (["root=null"], ["root is missing", "root=experiments/lr_study"]),
        (["rooot=1"], ["rooot", "did you mean root?"]),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, synthesize: Callable[..., Outcome], arguments: list[str], words: list[str]
) -> None:
    make_run(tmp_path, model=MLP | {"size": 1}, data__size=2)
    outcome = synthesize(*arguments)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    assert all(word in outcome.err for word in words), outcome.err


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("lr_studdy", "did you mean"),
        ("nowhere/at/all", "which is no folder"),
        ("lr_study/file", "which is no folder"),
        ("''", "which is no folder"),
        ("empty", "there are no runs below"),
    ],
)
def test_a_root_without_runs_is_one_line(
    tmp_path: Path, synthesize: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, root: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "lr_study").mkdir()
    (tmp_path / "lr_study" / "file").touch()
    outcome = synthesize(f"root={root}")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and words in outcome.err, outcome.err


# --------------------------------------------------------------------------------------------------- pivots and curves


def test_the_pivot_table_is_models_by_datasets(tmp_path: Path, synthesize: Callable[..., Outcome]) -> None:
    for (model, shift), data, lr, seed in product([(MLP, 0.0), (CNN, 0.1)], ["digits", "mnist"], [0.1, 0.01], [0, 1]):
        value, test = 0.7 + shift + lr + seed / 100, 0.6 + shift - lr
        make_run(tmp_path, value, test=test, model=model, data=data, lr=lr, seed=seed)
    outcome = synthesize("pivot=[model,data]")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    start = lines.index("val/accuracy, each the best of its rows by val/accuracy")
    assert [re.split(" {2,}", line) for line in (lines[start + 1], *lines[start + 3 : start + 5])] == [
        ["model / data", "digits", "mnist"],
        ["CNN", "0.9050 ± 0.0635", "0.9050 ± 0.0635"],
        ["MLP", "0.8050 ± 0.0635", "0.8050 ± 0.0635"],
    ]
    assert lines[start + 6].startswith("test/accuracy")
    assert lines[start + 9].split()[:2] == ["CNN", "0.6000"]  # of the learning rate that validation chose
    assert (
        r"CNN & $\mathbf{0.9050} \pm 0.0635$ & $\mathbf{0.9050} \pm 0.0635$ \\"
        in (tmp_path / "results.tex").read_text()
    )


def test_mean_curves_for_tensorboard_replace_older_ones_and_no_run(
    tmp_path: Path, synthesize: Callable[..., Outcome]
) -> None:
    make_study(tmp_path, {0.1: [0.8, 0.9], 0.01: [0.5]})
    run = make_run(tmp_path, path="mean/a-run", lr=0.01, seed=1)
    (run / "events.out.tfevents.1").write_text("kept")
    for _ in range(2):
        assert synthesize("tensorboard=true").code == 0
    assert (run / "events.out.tfevents.1").read_text() == "kept"
    (folder,) = (tmp_path / "mean").glob("*lr-0.1")
    assert len(list(folder.iterdir())) == 1
    events = EventAccumulator(str(folder)).Reload().Scalars("val/accuracy")
    assert [(event.step, round(event.value, 6)) for event in events] == [(10, 0.75), (20, 0.85), (30, 0.75)]


# ----------------------------------------------------------------------------------------------------------- the whole


def test_from_training_to_the_table(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome], synthesize: Callable[..., Outcome]
) -> None:
    small = ("trainer.epochs=1", "data.limit=200", "model.hidden_sizes=[8]")
    runs = [run_train(*small, f"optimizer.lr={lr}", f"seed={seed}") for lr, seed in ((0.001, 0), (0.001, 1), (0.03, 0))]
    assert run_command("evaluate", f"run={runs[0]}").code == 0
    outcome = synthesize()
    assert outcome.code == 0, outcome.err
    values = [json.loads((run / "metrics.json").read_text())["best"]["val/accuracy"] for run in runs]
    test = json.loads((runs[0] / "evaluation.json").read_text())["test/accuracy"]
    assert f"{np.mean(values[:2]):.4f} ± " in outcome.out and f"{values[2]:.4f}" in outcome.out
    assert f"{test:.4f} (n = 1)" in outcome.out and "3 runs below" in outcome.out


def test_a_thousand_runs_take_seconds(tmp_path: Path, synthesize: Callable[..., Outcome]) -> None:
    random = np.random.default_rng(0)
    for lr in random.uniform(1e-4, 1e-1, 50):
        for model in (MLP, CNN):
            for seed in range(10):
                value = float(random.normal(0.9, 0.01))
                path = f"{model['_target_']}_{lr}/seed-{seed}"
                make_run(tmp_path, value, path=path, lr=float(lr), model=model, seed=seed, num_epochs=20)
    started = time.perf_counter()
    outcome = synthesize()
    assert outcome.code == 0 and "1000 runs below" in outcome.out
    assert time.perf_counter() - started < 10


def test_the_table_alone_needs_no_matplotlib_and_no_model() -> None:
    code = "import synthesize_results, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    unneeded = {"matplotlib", "lab.plots", "model.net", "scipy.stats", "tensorboard", "jinja2", "pandas"}
    assert not unneeded & set(loaded.stdout.split())
