"""The numbers of the pictures: each row once, in the panel of its dataset, connected with what it may be compared with."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from studies import CNN, MLP, make_run, make_study

from lab.tables.curves import best_curves, effects_of, forest_row, panels_of
from lab.tables.summary import summarize


def test_rows_stand_in_the_panel_of_their_data_without_its_name(tmp_path: Path) -> None:
    for data, (model, shift), seed in product(["digits", "mnist"], [(MLP, 0.0), (CNN, 0.1)], [0, 1]):
        make_run(tmp_path, 0.7 + shift + seed / 1000, model=model, data=data, seed=seed)
    summary = summarize(tmp_path)
    panels = panels_of(summary)
    assert {data: [name for name, _ in rows] for data, rows in panels.items()} == {
        "digits": ["CNN", "MLP"],
        "mnist": ["CNN", "MLP"],
    }
    name, mean, half, values, standing = forest_row(*panels["mnist"][0], summary.metric)
    assert (name, mean, standing) == ("CNN", pytest.approx(0.8005), "best") and half and len(values) == 2
    curves = best_curves(summary)
    epochs, means, _, runs = curves["digits"]["MLP"]
    assert epochs == [1, 2, 3] and means == pytest.approx([0.6005, 0.7005, 0.6005])
    assert [ys[1] for _, ys in runs] == pytest.approx([0.7, 0.701])


def test_rows_that_differ_in_what_is_done_with_the_data_have_names_of_their_own(tmp_path: Path) -> None:
    for data, batch_size in product(["digits", "mnist"], [32, 64]):
        make_run(tmp_path, data=data, data__batch_size=batch_size)
    for rows in panels_of(summarize(tmp_path)).values():
        assert {name for name, _ in rows} == {"batch_size 32", "batch_size 64"}


def test_only_rows_that_agree_in_all_other_keys_are_connected(tmp_path: Path) -> None:
    """CNN was tried at other learning rates than MLP: no mean over a key would compare like with like."""
    make_study(tmp_path, {0.1: [0.5], 0.01: [0.6]}, model=MLP)
    make_study(tmp_path, {0.01: [0.7], 0.001: [0.4]}, model=CNN)
    effects = effects_of(summarize(tmp_path))
    assert effects["lr"] == [("CNN", {"0.01": 0.7, "0.001": 0.4}), ("MLP", {"0.01": 0.6, "0.1": 0.5})]
    assert effects["model"][0] == ("0.01", {"CNN": 0.7, "MLP": 0.6}) and len(effects["model"]) == 3


def test_a_row_of_one_run_makes_no_claim_in_the_picture_either(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.5], 0.01: [0.6]})
    summary = summarize(tmp_path)
    ((_, rows),) = panels_of(summary).items()
    assert [forest_row(*row, summary.metric)[-1] for row in rows] == ["best", "other"]
