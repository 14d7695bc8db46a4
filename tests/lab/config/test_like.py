"""`like=`: an old run's configuration, with what is typed on top."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Outcome
from helpers.commands import assert_one_line

OLD = ["experiment=digits_mlp", "scheduler=onecycle", "trainer.epochs=1", "data.limit=90", "model.hidden_sizes=[5]"]


@pytest.fixture
def old(run_train: Callable[..., Path]) -> Path:
    return run_train(*OLD)


def config(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())


def test_a_run_like_another_differs_in_what_is_typed(old: Path, run_train: Callable[..., Path]) -> None:
    new, before = config(run_train(f"like={old}", "optimizer.lr=0.2", name="new")), config(old)
    assert new["scheduler"].pop("max_lr") == 0.2 != before["scheduler"].pop("max_lr")  # which follows the other
    assert new["optimizer"].pop("lr") == 0.2 != before["optimizer"].pop("lr")
    assert new | {"name": "run"} == before


def test_another_network_takes_nothing_of_the_old_ones(old: Path, run_train: Callable[..., Path]) -> None:
    new = config(run_train(f"like={old}", "model=lstm", name="new"))
    assert new["model"]["_target_"] == "model.net.LSTM"
    assert new["data"] == config(old)["data"] and new["scheduler"] == config(old)["scheduler"]


def test_what_the_run_recorded_holds_whatever_the_defaults_are_now(old: Path, run_train: Callable[..., Path]) -> None:
    text = (old / "config.yaml").read_text().replace("eval_batch_size: 1000", "eval_batch_size: 500")
    (old / "config.yaml").write_text(text)
    assert config(run_train(f"like={old}", name="new"))["data"]["eval_batch_size"] == 500


@pytest.mark.parametrize(
    ("record", "answer"),
    [
        ("- data.root=${oc.env:HOME}\n", "${...}"),
        ("- 3: [\n", "cannot be read"),
        ("model: cnn\n", "no record"),
        ("- model=nosuch\n", "model=nosuch"),
        ("- ~scheduler.pct_start\n", "scheduler.pct_start"),
    ],
)
def test_a_record_that_cannot_be_followed_is_one_line(
    record: str, answer: str, old: Path, run_command: Callable[..., Outcome], tmp_path: Path
) -> None:
    kept = (old / "overrides.yaml").read_text() if record.startswith("- ~") else ""
    (old / "overrides.yaml").write_text(kept + record)
    assert_one_line(run_command("train", f"like={old}", f"experiments_dir={tmp_path / 'x'}"), answer)
    assert not (tmp_path / "x").exists()


def test_like_takes_one_run(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    assert_one_line(run_command("train", "like=nowhere"), "nowhere", "does not exist")
    assert_one_line(run_command("train", f"like={tmp_path}"), "config.yaml is no record")
    assert_one_line(run_command("train", "-m", "like=a,b"), "one run")
    assert_one_line(run_command("search_hyperparams", f"like={tmp_path}"), "like", "leave it out")


def test_code_that_came_with_the_run_is_not_taken_over(
    old: Path, run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    (old / "evil_like.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(old)
    text = (old / "config.yaml").read_text().replace("_target_: model.net.MLP", "_target_: evil_like.Net")
    (old / "config.yaml").write_text(text)
    assert_one_line(run_command("train", f"like={old}"), "evil_like.Net", "come with the run")
