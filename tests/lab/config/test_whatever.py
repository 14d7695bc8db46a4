"""Whatever a configuration holds, and whatever is typed, is a run or one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.config.schema import TrainConfig, check
from lab.config.targets import SLOTS, check_slot
from utils import UserError

# -------------------------------------------------------------------------------------------- whatever a file may hold

KEYS = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=6)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        [
            "",
            "50%",
            "???",
            "${x}",
            "spec:output_size",
            "spec:x",
            "torch.optim.SGD",
            "model.net.MLP",
            "os.system",
            ".",
            "a.b",
            "x" * 99,
        ]
    )
    | st.sampled_from([10**400, -(10**400), 5e-324, 1.8e308, 2**63, math.nan]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=6), children, max_size=3),
    max_leaves=6,
)
OPTIONS = ["batch_size", "interval", "flip", "mean", "transform", "groups", "freeze", "_args_", "_partial_"]
NODES: dict[str, dict[str, Any]] = {
    "data": {"_target_": "test_mistakes.vectors", "root": "x", "num_features": 3},
    "model": {"_target_": "model.net.MLP", "hidden_sizes": [3], "dropout": 0.5},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.1, "betas": [0.9, 0.99], "weight_decay": 0.0},
    "loss": {"_target_": "torch.nn.CrossEntropyLoss", "label_smoothing": 0.1, "weight": [1.0, 2.0]},
    "metrics": {"f1": {"_target_": "torchmetrics.F1Score", "task": "binary"}},
    "learner": {"_target_": "train.Learner"},
    "scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "interval": "epoch", "step_size": 3, "gamma": 0.1},
}


def only_user_errors(function: Callable[..., None], *arguments: Any) -> None:
    try:
        function(*arguments)
    except UserError as error:
        assert str(error).strip()
        assert "\n" not in str(error)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(data=st.data())
def test_any_value_of_any_key_passes_or_is_a_user_error(data: st.DataObject) -> None:
    slot = data.draw(st.sampled_from(sorted(SLOTS)))
    node = dict(NODES[slot])
    key = data.draw(st.sampled_from([*node, *OPTIONS]) | KEYS)
    node[key] = data.draw(PLAIN | PLAIN.map(lambda value: {"_target_": "torch.nn.ReLU", "inplace": value}))
    only_user_errors(check_slot, slot, node)


TOP: dict[str, Any] = {
    "name": "x",
    "seed": 0,
    "resume": None,
    "experiments_dir": "x",
    **{slot: {} for slot in SLOTS},
    "trainer": {},
}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(data=st.data())
def test_any_configuration_passes_or_is_a_user_error(data: st.DataObject) -> None:
    config = {**TOP, "trainer": dict.fromkeys(["epochs", "precision", "compile", "max_grad_norm"], 1)}
    place = data.draw(st.sampled_from([config, config["trainer"]]))
    key = data.draw(st.sampled_from(sorted(place)) | KEYS)
    place[key] = data.draw(PLAIN)
    only_user_errors(check, config, TrainConfig)


# ------------------------------------------------------------------------------------------------ whatever may be typed

TYPED_KEYS = [
    *("name", "seed", "resume", "experiments_dir", "data", "data.root", "data.batch_size", "data.mean", "data.limit"),
    *("model", "model._target_", "model.hidden_sizes", "model.dropout", "optimizer", "optimizer.lr", "optimizer.betas"),
    *("optimizer._target_", "scheduler", "scheduler.T_max", "scheduler.interval", "trainer", "trainer.epochs"),
    *("trainer.device", "trainer.devices", "trainer.monitor", "trainer.max_grad_norm", "trainer.precision", "rerun"),
]
TYPED_VALUES = st.recursive(
    st.integers().map(str)
    | st.floats().map(str)
    | st.text(st.characters(exclude_characters="\0"), max_size=8)
    | st.text(st.characters(exclude_characters="\0'\\"), max_size=8).map(lambda text: f"'{text}'")
    | st.sampled_from(
        ["cnn", "adam", "cosine", "digits", "mnist", "null", "true", "50%", "???", "''", "torch.optim.SGD"]
    )
    | st.sampled_from(
        ["${seed}", "${name}", "${oc.env:HOME}", "${x", "[1,2", "{a:", "a,b", "range(3)", "glob(*)", "int(x)"]
    )
    | st.sampled_from([f"1{'0' * 400}", f"1e{'9' * 30}", "0x1", "1_0", "\udcff", "x" * 300, "[" * 99, "model.net.MLP"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.dictionaries(KEYS, inner, max_size=2).map(lambda d: "{" + ",".join(f"{k}:{v}" for k, v in d.items()) + "}")
    ),
    max_leaves=5,
)
TYPED = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "", "", "+", "++", "~"]),
    st.sampled_from(TYPED_KEYS) | KEYS.filter(lambda key: not key.startswith("-")),
    st.sampled_from(["=", "=", "=", "", "==", " = "]),
    TYPED_VALUES,
)


def check_typed(typed: list[str], run_command: Callable[..., Outcome]) -> None:
    outcome = run_command("train", *typed, "dry_run=true")
    assert outcome.code in (0, 1, 2), (typed, outcome.err)
    assert "Traceback" not in outcome.err + outcome.out, typed
    assert len(outcome.err.splitlines()) == (outcome.code != 0), (typed, outcome.err)
    assert all(character.isprintable() for character in outcome.err.rstrip("\n")), typed


FUZZED = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=60, derandomize=True, **FUZZED)
@given(typed=st.lists(TYPED, min_size=1, max_size=2))
def test_whatever_is_typed_is_a_run_or_one_line(typed: list[str], run_command: Callable[..., Outcome]) -> None:
    check_typed(typed, run_command)


@pytest.mark.slow
@settings(max_examples=3000, **FUZZED)
@given(typed=st.lists(TYPED, min_size=1, max_size=4))
def test_whatever_is_typed_is_a_run_or_one_line_at_length(
    typed: list[str], run_command: Callable[..., Outcome]
) -> None:
    check_typed(typed, run_command)
