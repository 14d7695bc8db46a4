"""What a search chooses from: read, typed, filled evenly, and what a preset makes of it."""

from __future__ import annotations

import json
import math
from typing import Any

import optuna
import pytest
from helpers.sweeps import space
from omegaconf import OmegaConf

from lab.sweeps.findings import best_preset
from lab.sweeps.samplers import NUM_EVEN, even_values
from lab.sweeps.space import as_overrides, default_values, described, read_space, suggest
from utils import UserError


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"low": 1}, "it takes {low: ..., high: ...} or {choices: [...]}"),
        (3, "it takes {low"),
        ({"low": 2, "high": 1}, "low must be below high"),
        ({"low": 0.0, "high": 1.0, "log": True}, "low must be above 0"),
        ({"low": "a", "high": 1}, "they are numbers"),
        ({"low": 0, "high": 1, "step": 2}, "has the key step"),
        ({"choices": [[1, 2]]}, "'[128,64]'"),
        ({"choices": [1, 2], "when": {"model": "mlp"}}, "depends on model"),
        ({"choices": []}, "choices"),
    ],
)
def test_a_space_that_cannot_be_read_is_refused(entry: Any, message: str) -> None:
    with pytest.raises(UserError, match=r"search\.space\.optimizer\.lr") as caught:
        space(optimizer__lr=entry)
    assert message in str(caught.value)


def test_values_lie_in_their_ranges_and_conditions_hold() -> None:
    dimensions = space(
        optimizer={"choices": ["sgd", "momentum"]},
        optimizer__lr={"low": 1e-4, "high": 1e-1, "log": True},
        optimizer__momentum={"low": 0.5, "high": 0.9, "when": {"optimizer": "momentum"}},
        data__batch_size={"low": 8, "high": 64},
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = [suggest(study.ask(), dimensions) for _ in range(60)]
    assert all(1e-4 <= values["optimizer.lr"] <= 1e-1 for values in seen)
    assert 20 < sum(values["optimizer.lr"] < 10**-2.5 for values in seen) < 40, "log-uniform: half below the middle"
    assert all(isinstance(values["data.batch_size"], int) and 8 <= values["data.batch_size"] <= 64 for values in seen)
    assert all(("optimizer.momentum" in values) == (values["optimizer"] == "momentum") for values in seen)
    assert {values["optimizer"] for values in seen} == {"sgd", "momentum"}


def test_groups_are_typed_before_their_keys() -> None:
    assert as_overrides({"optimizer.lr": 0.1, "model": "cnn", "data.flip": True, "trainer.patience": None}) == [
        "model=cnn", "optimizer.lr=0.1", "data.flip=true", "trainer.patience=null"
    ]  # fmt: skip


def test_a_grid_takes_points_on_the_ranges_own_scale() -> None:
    lr, batch, layers = space(
        lr={"low": 1e-3, "high": 1e-1, "log": True, "points": 3},
        batch={"low": 10, "high": 20, "points": 3},
        layers={"low": 1, "high": 3},
    )
    assert lr.grid() == pytest.approx([1e-3, 1e-2, 1e-1])
    assert batch.grid() == [10, 15, 20]
    assert layers.grid() == [1, 2, 3]
    with pytest.raises(UserError, match="points"):
        space(lr={"low": 0.0, "high": 1.0})[0].grid()


def test_a_best_value_near_an_end_is_noticed() -> None:
    (lr,) = space(lr={"low": 1e-4, "high": 1e-1, "log": True})
    assert lr.nears_edge(1.05e-4) == "low"
    assert lr.nears_edge(0.099) == "high"
    assert lr.nears_edge(1e-3) is None


def test_the_preset_holds_groups_as_defaults_and_keys_as_values() -> None:

    cfg = OmegaConf.create({"model": {"a": 1}, "optimizer": {"lr": 0.1}, "trainer": {"epochs": 2}})
    text = best_preset("mine", ["model=cnn", "optimizer.lr=0.03", "trainer.epochs=2"], cfg, "val/accuracy 0.9")
    assert text.startswith("# @package _global_\n# python train.py experiment=mine_best\n# Expect: val/accuracy 0.9")
    preset = OmegaConf.create(text)
    assert preset.defaults == [{"override /model": "cnn"}]
    assert (preset.name, preset.optimizer.lr, preset.trainer.epochs) == ("mine_best", 0.03, 2)
    text = best_preset("mine", ["+model.trap=x", "~model.dropout", "seed=3"], cfg, "val/accuracy 0.9")
    assert "# python train.py experiment=mine_best '~model.dropout'\n" in text
    assert OmegaConf.create(text) == {"name": "mine_best", "model": {"trap": "x"}}


def test_the_first_points_lie_in_all_parts_of_each_range() -> None:
    dimensions = space(
        optimizer__lr={"low": 1e-4, "high": 1e-1, "log": True},
        model__dropout={"low": 0.0, "high": 0.5},
        layers={"low": 1, "high": 4},
        activation={"choices": ["relu", "tanh"]},
    )
    points = [even_values(dimensions, index, seed=3) for index in range(NUM_EVEN)]
    assert sorted(int(math.log10(one["optimizer.lr"] / 1e-4) / 3 * 8) for one in points) == list(range(8))
    assert sorted(int(one["model.dropout"] / 0.5 * 8) for one in points) == list(range(8))
    assert sorted(one["layers"] for one in points) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert [one["activation"] for one in points].count("relu") == 4
    assert points != [even_values(dimensions, index, seed=4) for index in range(NUM_EVEN)]
    assert all(one.holds(values[one.key]) for one in dimensions for values in points)


def test_the_values_that_the_configuration_has_anyway() -> None:
    cfg = OmegaConf.create(
        {"model": {"sizes": [128, 64], "dropout": 0}, "optimizer": {"lr": 0.5}, "data": {"flip": True}}
    )
    dimensions = space(
        optimizer={"choices": ["sgd", "adam"]},
        model__sizes={"choices": ["[32]", "[128,64]"]},
        model__dropout={"low": 0.0, "high": 0.5},
        data__flip={"choices": [True, False]},
        optimizer__lr={"low": 1e-4, "high": 1e-1},
        optimizer__momentum={"low": 0.1, "high": 0.9},
    )
    values = default_values(dimensions, cfg, {"optimizer": "adam", "model": "mlp"})
    assert values == {"optimizer": "adam", "model.sizes": "[128,64]", "model.dropout": 0.0, "data.flip": True}


def test_a_space_is_written_as_its_file_has_it() -> None:
    dimensions = space(
        optimizer={"choices": ["sgd", "momentum"]},
        optimizer__momentum={"low": 0.5, "high": 0.9, "when": {"optimizer": "momentum"}},
        optimizer__lr={"low": 0, "high": 1, "points": 3},
    )
    read = json.loads(described(dimensions))
    assert read_space(read) == dimensions
    assert read["optimizer.lr"] == {"low": 0, "high": 1, "points": 3}
