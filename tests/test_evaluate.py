"""Evaluation gives the numbers that training recorded, and refuses what cannot be right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import Outcome, assert_one_line, read
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, precision_recall_fscore_support
from torch import nn

from evaluate import Objective, load_run, predict
from lab.config.builders import build_dataset
from lab.runs.checkpoint import load_tensors, save_tensors
from model.batching import Batch
from model.datasets import digits
from model.examples import Examples
from model.losses import cross_entropy
from model.metrics import class_report, count_confusions
from model.net import MLP, DataSpec, ResNet
from model.splits import describe, load_split
from utils import UserError


def test_images_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """The digits' test split as a network of the default run gets it, computed in numpy alone."""
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images * 255 / 16) / 255
    rank = np.zeros(len(labels), dtype=int)
    for label in range(10):
        rank[labels == label] = np.arange((labels == label).sum())
    is_test = rank % 5 == 4
    return pixels[is_test].reshape(-1, 1, 8, 8), labels[is_test]


test_images_and_labels.__test__ = False  # type: ignore[attr-defined]

RUNS = {
    "mlp": ["model.dropout=0.2"],
    "resnet with batch normalisation": [
        "model=resnet",
        "model.num_blocks=1",
        "model.channels=[8,16]",
        "trainer.monitor=val/loss",
    ],
    "bf16": ["model=cnn", "trainer.precision=bf16", "data.eval_batch_size=7"],
    "softmax": ["model.output=softmax", "trainer.monitor=val/loss"],
}
# A learning rate that grows beyond all use: the last epoch is never the best one.
RUINED = ["scheduler=step", "scheduler.step_size=1", "scheduler.gamma=300", "trainer.epochs=3", "data.limit=300"]


@pytest.mark.parametrize("case", RUNS)
def test_evaluation_repeats_what_training_recorded(
    case: str, run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    """To the last digit, for the best epoch and the last one; which are not the same."""
    run = run_train(*RUNS[case], *RUINED)
    recorded = read(run / "metrics.json")
    assert recorded["best"]["epoch"] < recorded["final"]["epoch"] == 3
    for checkpoint, expected in [("best", recorded["best"]), ("last", recorded["final"])]:
        assert run_command("evaluate", f"run={run}", "split=val", f"checkpoint={checkpoint}").code == 0
        found = read(run / f"evaluation_val{'_last' * (checkpoint == 'last')}.json")
        assert found["epoch"] == expected["epoch"]
        assert found["val/loss"] == expected["val/loss"]
        assert found["val/accuracy"] == expected["val/accuracy"]


def test_the_test_report_is_scikit_learns(run_train: Callable[..., Path], run_command: Callable[..., Outcome]) -> None:
    run = run_train("trainer.epochs=2", "model.hidden_sizes=[16]")
    outcome = run_command("evaluate", f"run={run}")
    assert outcome.code == 0, outcome.err
    found = read(run / "evaluation.json")

    images, labels = test_images_and_labels()
    model, cfg = load_run(run)
    assert not model.training
    spec = describe(load_split(build_dataset(cfg), "train", val_fraction=0.1, split_seed=0), None, None)
    inputs = torch.from_numpy((images - spec.mean[0]) / spec.std[0]).float()
    with torch.no_grad():
        probabilities = model(inputs).double().softmax(dim=1).numpy()
    predicted = probabilities.argmax(axis=1)

    assert found["split"] == "test"
    assert found["checkpoint"] == "best"
    assert found["epoch"] == read(run / "metrics.json")["best"]["epoch"]
    assert found["num_examples"] == len(labels)
    assert found["test/accuracy"] == pytest.approx(accuracy_score(labels, predicted), abs=1e-12)
    assert found["test/loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-5)
    assert found["confusion_matrix"] == confusion_matrix(labels, predicted).tolist()
    assert sorted(found["classes"]) == [str(digit) for digit in range(10)]
    expected = precision_recall_fscore_support(labels, predicted, zero_division=0)
    for digit, (precision, recall, f1, support) in enumerate(zip(*expected, strict=True)):
        row = found["classes"][str(digit)]
        assert row["precision"] == pytest.approx(precision) or (row["precision"] is None and precision == 0)
        assert row["recall"] == pytest.approx(recall)
        assert row["f1"] == pytest.approx(f1)
        assert row["support"] == support
    assert f"{found['test/accuracy']:.4f}" in outcome.out
    assert f"{len(labels)} test examples" in outcome.out


def test_class_report_of_random_predictions_and_of_classes_never_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(5, (300,), generator=generator)
    predicted = torch.randint(4, (300,), generator=generator)  # class 4 is never predicted, class 5 never occurs
    confusions = count_confusions(predicted, targets, 6)
    assert confusions.tolist() == confusion_matrix(targets, predicted, labels=range(6)).tolist()
    report = class_report(confusions, "abcdef")
    expected = precision_recall_fscore_support(targets, predicted, labels=range(6), zero_division=np.nan)
    for name, *row in zip("abcdef", *expected, strict=True):
        for key, value in zip(("precision", "recall", "f1", "support"), row, strict=True):
            if np.isnan(value):
                assert report[name][key] is None
            else:
                assert report[name][key] == pytest.approx(value)


def test_each_question_has_a_file_of_its_own(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    """Tables read evaluation.json: the test split with the best weights, and nothing else is ever in it."""
    run = run_train("trainer.epochs=2", *(f"data.{limit}=100" for limit in ("limit", "limit_test")))
    assert run_command("evaluate", f"run={run}").code == 0
    answer = (run / "evaluation.json").read_bytes()
    training_files = {
        path.name: path.read_bytes()
        for path in run.iterdir()
        if path.suffix in (".pt", ".jsonl", ".yaml") and path.name != "test_openings.jsonl"
    }
    for arguments, name in [
        (["split=val"], "evaluation_val.json"),
        (["checkpoint=last"], "evaluation_last.json"),
        (["split=train", "checkpoint=last"], "evaluation_train_last.json"),
    ]:
        assert not (run / name).exists()
        assert run_command("evaluate", f"run={run}", *arguments).code == 0
        found = read(run / name)
        assert found["num_examples"] == (143 if "split=val" in arguments else 100)  # data.limit is of training alone
        assert {key for key in found if key.endswith("/accuracy")} == {f"{found['split']}/accuracy"}
    assert (run / "evaluation.json").read_bytes() == answer
    assert run_command("evaluate", f"run={run}").code == 0
    assert (run / "evaluation.json").read_bytes() == answer  # and the same again
    assert training_files == {name: (run / name).read_bytes() for name in training_files}
    assert {path.name for path in run.glob("*.json")} == {
        *("evaluation.json", "evaluation_val.json", "evaluation_last.json", "evaluation_train_last.json"),
        *("metrics.json", "provenance.json", "status.json"),
    }


def objective_of(model: nn.Module) -> Objective:
    return Objective(model, cross_entropy, torch.device("cpu"))


def batch_of(inputs: torch.Tensor) -> Batch:
    return Batch(inputs, torch.zeros(len(inputs), dtype=torch.int64), len(inputs))


def test_evaluation_leaves_gradients_and_batch_statistics_alone() -> None:
    model = ResNet(DataSpec((1, 8, 8), 10, "classification"), channels=[4], num_blocks=1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [batch_of(torch.randn(6, 1, 8, 8) * 9) for _ in range(3)]
    assert len(list(predict(objective_of(model), batches))) == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


FLAT = DataSpec((13,), 3, "classification", classes=("a", "b", "c"))


def test_predict_leaves_the_mode_and_the_gradients_alone() -> None:
    model = MLP(FLAT, dropout=0.5)
    objective, x = objective_of(model), torch.randn(4, 13)
    for training in (True, False):
        objective.train(training)
        ((losses, outputs, _),) = predict(objective, [batch_of(x)])
        assert model.training is training
        assert not outputs.requires_grad and not losses.requires_grad
        assert all(parameter.grad is None for parameter in model.parameters())
    objective.train()
    ((_, first, _),) = predict(objective, [batch_of(x)])
    assert torch.equal(first, model.eval()(x))  # without dropout


def test_predict_puts_the_mode_back_after_an_error() -> None:
    model = MLP(FLAT).train()
    with pytest.raises(RuntimeError):
        list(predict(objective_of(model), [batch_of(torch.randn(2, 99))]))
    assert model.training


def flip_bit(content: bytes) -> bytes:
    position = len(content) // 2
    return content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit": flip_bit,
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "text": lambda content: b"version https://git-lfs.github.com/spec/v1\n",
}


def test_a_damaged_run_is_refused_in_one_line(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome], tmp_path: Path
) -> None:
    run = run_train("trainer.epochs=1", "data.limit=100")
    whole = (run / "best.pt").read_bytes()
    for damage in DAMAGES.values():
        (run / "best.pt").write_bytes(damage(whole))
        assert_one_line(run_command("evaluate", f"run={run}"), "best.pt", "damaged")
        with pytest.raises(UserError, match="damaged"):
            load_run(run)
        assert load_run(run, "last")[0] is not None
    (run / "best.pt").unlink()
    assert_one_line(run_command("evaluate", f"run={run}"), "best.pt")
    with pytest.raises(UserError, match=r"best\.pt"):
        load_run(run)
    (run / "best.pt").write_bytes(whole)
    config = (run / "config.yaml").read_text()
    for damaged in ("", "a: [1", "just text", "- 1\n- 2\n", config[: len(config) // 2], config.replace("MLP", "MPL")):
        (run / "config.yaml").write_text(damaged)
        assert_one_line(run_command("evaluate", f"run={run}"))
    (run / "config.yaml").write_text(config.replace("- 64", "- 32"))
    assert_one_line(run_command("evaluate", f"run={run}"), "best.pt", "another configuration (model.hidden_sizes)")
    (run / "config.yaml").write_text(config)
    assert not (run / "evaluation.json").exists()
    assert run_command("evaluate", f"run={run}").code == 0


def test_a_run_that_is_not_there(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    assert_one_line(run_command("evaluate", f"run={tmp_path / 'none'}"), str(tmp_path / "none"), "does not exist")
    assert_one_line(run_command("evaluate", f"run={tmp_path}"), str(tmp_path), "no config.yaml")
    assert_one_line(run_command("evaluate"), "run")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="does not exist"):
        load_run(tmp_path / "none")


def test_wrong_questions(run_command: Callable[..., Outcome], run_train: Callable[..., Path]) -> None:
    run = run_train("trainer.epochs=1", "data.max_batches=1", "data.limit=100")
    for argument, parts in {
        "split=tset": ("split", "test"),
        "checkpoint=bst": ("checkpoint", "best or last"),
        "device=gpu": ("gpu", "cpu"),
        "trainer.epochs=3": ("trainer.epochs",),
        "chekpoint=last": ("chekpoint", "did you mean checkpoint"),
    }.items():
        assert_one_line(run_command("evaluate", f"run={run}", argument), *parts)
    assert not list(run.glob("evaluation*"))


def test_training_never_opens_the_test_split(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Selection looks at validation alone."""
    opened: list[str] = []
    monkeypatch.setattr("model.datasets.digits", watched(opened))
    run = run_train("trainer.epochs=1", "data.limit=100")
    assert "test" not in opened
    assert "train" in opened
    assert run_command("evaluate", f"run={run}").code == 0
    assert "test" in opened


def watched(opened: list[str]) -> Callable[..., Any]:
    def watched_digits(split: str, root: str) -> Examples | None:
        opened.append(split)
        return digits(split, root)

    return watched_digits


def test_a_run_from_before_an_option_was_there(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    """It did as the option's default does; what never had a default must be there."""
    run = run_train("data.limit=100", "trainer.epochs=1", "trainer.images=false")
    config = run / "config.yaml"
    text = config.read_text()
    new = ("parallel: ddp", "passes: 1", "limit_val: null", "limit_test: null")
    older = [line for line in text.splitlines() if line.strip() not in new]
    assert len(older) == len(text.splitlines()) - len(new)
    config.write_text("\n".join(older))
    saved = load_tensors(run / "best.pt")
    del saved["configuration"]  # whose keys are those of its time, too
    save_tensors(run / "best.pt", saved)
    assert run_command("evaluate", f"run={run}").code == 0
    assert read(run / "evaluation.json")["num_examples"] == 100  # the limit was that of every split
    config.write_text(text.replace("seed: 0\n", ""))
    outcome = run_command("evaluate", f"run={run}")
    assert outcome.code == 2 and "seed is missing" in outcome.err
