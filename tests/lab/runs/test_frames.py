"""Runs for a notebook: a frame of runs and one of epochs, typed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from studies import CNN, MLP, make_run, make_study

from lab.runs import read_table
from utils import UserError


def test_the_frames_hold_every_run_and_every_epoch_with_their_types(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    make_study(tmp_path, {0.1: [0.8, 0.9]}, test=0.7)
    make_run(tmp_path, model=CNN, lr=1, state="failed", path="bad")
    (make_run(tmp_path, model=MLP, path="worse") / "config.yaml").write_text("[")
    runs, curves = read_table(tmp_path)
    runs = runs.set_index("run")
    assert runs.loc["run0001", "val/accuracy"] == 0.9 and runs.loc["run0001", "test/accuracy"] == 0.7
    assert runs["state"].to_dict() == {
        "run0000": "finished",
        "run0001": "finished",
        "bad": "failed",
        "worse": "unreadable",
    }
    assert pd.api.types.is_float_dtype(runs["optimizer.lr"]) and pd.api.types.is_integer_dtype(runs["seed"])
    assert pd.api.types.is_bool_dtype(runs["trainer.images"]) and pd.api.types.is_string_dtype(runs["model._target_"])
    assert pd.isna(runs.loc["bad", "val/accuracy"]) and pd.isna(runs.loc["worse", "seed"])
    epochs = curves[curves["run"] == "run0001"]
    assert epochs["epoch"].tolist() == [1, 2, 3] and epochs["step"].tolist() == [10, 20, 30]
    assert epochs["val/accuracy"].tolist() == pytest.approx([0.8, 0.9, 0.8])
    assert pd.api.types.is_integer_dtype(curves["epoch"]) and pd.api.types.is_float_dtype(curves["val/accuracy"])


def test_without_pandas_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        read_table(tmp_path)
