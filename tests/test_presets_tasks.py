"""Presets of other tasks than one class for one image: tables, masks, several labels, weights of another run."""

from __future__ import annotations

import os
import signal
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Outcome, assert_one_line, compose, read
from helpers.processes import fork
from helpers.runs import assert_same, outcome_of, whole_run
from helpers.warm import Warm
from PIL import Image

import train
from lab.config.command import checked
from lab.config.schema import TrainConfig
from lab.runs.directory import recorded_part
from lab.runs.run import Run
from lab.sweeps import findings
from model.multilabel import AUROC
from model.segmentation import iou
from model.tabular import baselines, table

DATA_ROOT = Path(os.environ.get("DATA_ROOT", Path(__file__).parents[1] / "data"))
needs_mnist = pytest.mark.skipif(
    not (DATA_ROOT / "MNIST" / "raw" / "train-images-idx3-ubyte").exists(), reason="DATA_ROOT holds no MNIST"
)
TINY = {  # of each preset: what makes it small, and what it shows
    "tabular": (["data.limit=64"], ["predicted_against_true.png"]),
    "segmentation": (["data.num_train=100", "data.num_test=20", "data.batch_size=32"], ["masks.png"]),
    "multilabel": (["data.num_train=100", "data.num_test=20", "data.batch_size=32"], ["pictures.png", "labels.txt"]),
    "finetune": (["data.classes=[cat,dog]", "data.limit=64", "data.batch_size=16"], ["first_filters.png"]),
}
SEARCH = "space: {optimizer.lr: {low: 1e-4, high: 1e-2, log: true}}\n"


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST and CIFAR-10 in few images of noise, in the files that the real ones come in."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    (root / "MNIST" / "raw").mkdir(parents=True)
    for name, number in (("train", 200), ("t10k", 60)):
        pixels = generator.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        labels = np.arange(number, dtype=np.uint8) % 10
        raw = root / "MNIST" / "raw"
        header = np.array([2051, number, 28, 28], dtype=">i4").tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(
            np.array([2049, number], dtype=">i4").tobytes() + labels.tobytes()
        )
    for split, label, number in [
        (s, c, n) for s in ("train", "test") for c in ("cat", "dog", "frog") for n in range(40)
    ]:
        folder = root / split / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return root


def tiny(preset: str, root: Path, *more: str) -> list[str]:
    """The command of a tiny version of a preset."""
    fixed = ["trainer.epochs=2", "trainer.device=cpu", "trainer.log_every=1"]
    return [f"experiment={preset}", f"data.root={root}", *fixed, *TINY[preset][0], *more]


@pytest.mark.parametrize("preset", TINY)
def test_a_preset_goes_on_bit_for_bit_after_a_kill(
    preset: str, small_data: Path, run_command: Callable[..., Outcome], tmp_path: Path
) -> None:
    arguments = tiny(preset, small_data, "trainer.checkpoint_every=1")
    cfg = checked(recorded_part(compose(*arguments)), TrainConfig)
    expected = whole_run(cfg, tmp_path / "whole")
    after_step, step = Run.after_step, expected["lines"][0]["step"] + 1  # the first of the second epoch

    def die(run: Run) -> None:
        if run.progress.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        after_step(run)

    def work() -> None:
        Run.after_step = die  # type: ignore[method-assign]
        train.train(cfg, tmp_path / "killed")

    code = os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])
    assert code == -signal.SIGKILL
    train.train(cfg, tmp_path / "killed")
    assert_same(outcome_of(tmp_path / "killed"), expected)
    for name in ["learning_curves.png", *TINY[preset][1]]:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    evaluated = run_command("evaluate", f"run={tmp_path / 'killed'}")  # with its pictures
    assert evaluated.code == 0, evaluated.err


@pytest.mark.slow
@pytest.mark.parametrize("preset", TINY)
def test_a_preset_is_swept_searched_evaluated_and_trained_on_two_devices(
    preset: str,
    small_data: Path,
    run_command: Callable[..., Outcome],
    warm: Warm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = tiny(preset, small_data, "trainer.images=false", f"experiments_dir={tmp_path}")
    swept = run_command("train", "-m", *arguments, "seed=0,1", "name=swept")
    assert swept.code == 0, swept.err
    runs = [path.parent for path in tmp_path.glob("swept/*/seed-*/metrics.json")]
    assert len(runs) == 2
    metrics = [read(run / "metrics.json")["best"] for run in runs]
    assert metrics[0]["val/loss"] != metrics[1]["val/loss"]
    evaluated = run_command("evaluate", f"run={runs[0]}")
    assert evaluated.code == 0 and "test/loss" in evaluated.out, evaluated.err
    monkeypatch.setattr(findings, "PRESETS", tmp_path / "conf")  # where a search writes the best as a preset
    own = tmp_path / "conf" / "search"
    own.mkdir(parents=True)
    (own / "own.yaml").write_text(SEARCH)
    options = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "search=own", "search.n_trials=1", "search.n_jobs=1"]
    searched = run_command("search_hyperparams", *arguments, *options, "name=searched")
    assert searched.code == 0, searched.err
    assert read(tmp_path / "searched" / "trial-0000" / "status.json")["state"] == "finished"
    together = warm.run("train.py", *arguments, "trainer.devices=2", "data.drop_last=true", "name=together")
    assert together.returncode == 0, together.stderr


def test_a_table_has_columns_of_numbers_and_texts_and_rows_for_the_test(tmp_path: Path) -> None:
    rows = [
        f"{number},{'' if number == 7 else 2 * number},{'red' if number % 2 else 'blue'},{number % 3 == 0}"
        for number in range(50)
    ]
    (tmp_path / "own.csv").write_text("\n".join(["size,weight,colour,kind", *rows, ""]))
    training, test = (table(split, str(tmp_path), file="own.csv") for split in ("train", "test"))
    assert training is not None and test is not None and table("val", str(tmp_path), file="own.csv") is None
    assert (len(training), len(test), list(training.classes)) == (40, 10, ["False", "True"])
    inputs, targets = (torch.cat([getattr(training, name), getattr(test, name)]) for name in ("inputs", "targets"))
    size, weight, blue, red = inputs.T
    assert sorted(size.tolist()) == list(range(50))
    assert torch.equal(red, size % 2) and torch.equal(blue, 1 - red) and torch.equal(targets, (size % 3 == 0).long())
    there = size != 7
    assert torch.equal(weight[there], 2 * size[there])
    known = training.inputs[training.inputs[:, 0] != 7]
    assert weight[~there].item() == pytest.approx(known[:, 1].mean().item())
    values = table("train", str(tmp_path), file="own.csv", target="size")
    assert values is not None and values.targets.shape == (40, 1) and values.inputs.shape == (40, 5)


def test_a_table_that_cannot_be_read_is_one_line(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("a,b\n1,2\n3\n")
    arguments = ["experiment=tabular", f"experiments_dir={tmp_path}", f"data.root={tmp_path}"]
    assert_one_line(
        run_command("train", *arguments, "data.file=own.csv"), "row 2 of own.csv has 1 values, its header 2"
    )
    assert_one_line(run_command("train", *arguments, "data.file=none.csv"), "none.csv does not exist")
    assert_one_line(
        run_command("train", *arguments, "data.target=x"), "data.target is x; diabetes has the columns age,"
    )


def test_metrics_of_standardised_values_are_in_the_units_of_the_data(run_train: Callable[..., Path]) -> None:
    directory = run_train("experiment=tabular", "trainer.epochs=1")
    best = read(directory / "metrics.json")["best"]
    examples = table("train", "")
    assert examples is not None
    deviation = examples.targets.std().item()  # of all training rows, those that validate among them
    assert best["val/rmse"] == pytest.approx(deviation * best["val/loss"] ** 0.5, rel=0.05)


def test_areas_of_masks_and_of_rankings_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import jaccard_score, roc_auc_score

    outputs, targets = torch.randn(40, 6, 5), torch.randint(2, (40, 6, 5))
    metric = iou()
    expected = jaccard_score(targets.flatten(), (outputs > 0).flatten())
    assert metric.result(metric.values(outputs, targets).double().mean(dim=0)) == pytest.approx(expected)
    scores, labels = torch.randn(90, 4).round(decimals=1), torch.randint(2, (90, 4)).float()  # with ties
    auroc, resumed = AUROC(), AUROC()
    auroc.update(scores[:50], labels[:50])
    resumed.load_state_dict(auroc.state_dict())
    resumed.update(scores[50:], labels[50:])
    assert resumed.compute() == pytest.approx(roc_auc_score(labels, scores, average="macro"))


# -------------------------------------------------------------------------------------------------- the full figures


def figures_of(run_command: Callable[..., Outcome], folder: Path, *arguments: str, metric: str) -> list[float]:
    """A metric of the test split for each run of a sweep."""
    outcome = run_command("train", "-m", *arguments, f"experiments_dir={folder}", "name=swept", "trainer.device=cpu")
    assert outcome.code == 0, outcome.err
    found = []
    for path in sorted(folder.glob("swept/*/seed-*/metrics.json")):
        assert run_command("evaluate", f"run={path.parent}").code == 0
        found.append(read(path.parent / "evaluation.json")[metric])
    return found


@pytest.mark.slow
def test_tabular_figures(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    arguments = ["experiment=tabular", "seed=0,1,2,3,4"]
    errors = figures_of(run_command, tmp_path / "values", *arguments, metric="test/rmse")
    others = {name: statistics.mean(values) for name, values in baselines("diabetes").items()}
    assert statistics.mean(errors) < min(58.0, others["mlp"] - 10, others["linear"] + 2)
    shares = figures_of(
        run_command, tmp_path / "classes", *arguments, "data.file=breast_cancer", metric="test/accuracy"
    )
    assert statistics.mean(shares) >= 0.955


@pytest.mark.slow
@needs_mnist
@pytest.mark.parametrize(("preset", "metric"), [("segmentation", "test/iou"), ("multilabel", "test/macro_f1")])
def test_mask_and_label_figures(preset: str, metric: str, run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    (figure,) = figures_of(run_command, tmp_path, f"experiment={preset}", "seed=0", metric=metric)
    assert figure >= 0.9
