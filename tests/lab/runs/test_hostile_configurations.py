"""A configuration from someone else calls nothing, and imports nothing that came with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.commands import Outcome
from helpers.hostile import assert_orderly, change_config
from omegaconf import OmegaConf

from evaluate import load_run
from lab.config.targets import SLOTS
from lab.runs.checkpoint import load_tensors, save_tensors
from lab.runs.loading import load_config
from lab.runs.reading import read_run
from utils import UserError

PROJECT = Path(__file__).resolve().parents[3]


CALLS = [
    *("os.system", "subprocess.Popen", "builtins.exec", "builtins.open", "importlib.import_module", "pickle.load"),
    *("torch.hub.load", "torch.load", "torch.jit.load", "torch.utils.cpp_extension.load_inline", "torch.compile"),
    *(
        "pandas.read_pickle",
        "numpy.load",
        "hydra.utils.instantiate",
        "hydra.utils.get_class",
        "lab.config.targets.build",
    ),
    *("torch.package.PackageImporter", "torch.fx.GraphModule", "torch.distributed.nn.RemoteModule"),
    *("antigravity.fly", "this.s", "pty.spawn", "train.main", "synthesize_results.main", "__main__.x"),
]


@pytest.mark.parametrize("target", CALLS)
def test_no_slot_calls_what_it_cannot_hold(target: str, run: Path, marker: Path) -> None:
    config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    assert isinstance(config, dict)
    for slot in SLOTS:
        for keys in ({}, {"_args_": [f"touch '{marker}'"]}, {"command": f"touch '{marker}'", "shell": True}):
            node = {**config[slot], "_target_": target, **keys}
            (run / "config.yaml").write_text(yaml.safe_dump(config | {slot: node}))
            with pytest.raises(UserError, match=slot) as caught:
                load_run(run)
            assert "\n" not in str(caught.value)
    assert "antigravity" not in sys.modules and "this" not in sys.modules


def test_nodes_within_values_are_not_called(run: Path, marker: Path) -> None:
    call = {"_target_": "os.system", "_args_": [f"touch '{marker}'"], "command": f"touch '{marker}'"}
    whole = (run / "config.yaml").read_text()
    for key in ("model__activation", "model__hidden_sizes", "optimizer__betas", "trainer__loss", "name", "data__root"):
        for value in (call, [call], {"x": call}):
            (run / "config.yaml").write_text(whole)
            change_config(run, **{key: value})
            with pytest.raises(UserError):
                load_run(run)


def test_no_command_calls_a_target(run: Path, use: Callable[[Path], dict[str, Outcome]], marker: Path) -> None:
    change_config(run, model={"_target_": "os.system", "command": f"touch '{marker}'", "init": "default"})
    outcomes = use(run)
    assert (outcomes["evaluate"].code, outcomes["resume"].code) == (2, 2)
    assert "os.system" in outcomes["evaluate"].err and "config.yaml" in outcomes["evaluate"].err


EVIL = """
import pathlib
pathlib.Path({marker!r}).touch()
from model.net import MLP as Net
"""
PLACES = ["run/evil.py", "evil.py", "run/evil/__init__.py", "__init__.py", "run/__init__.py"]


@pytest.mark.parametrize("place", PLACES)
def test_code_that_came_with_the_run_is_not_imported(
    place: str, run: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the project's folder it could be: Python takes folders for packages, whether they say so or not."""
    received = run.parent
    (received / place).parent.mkdir(exist_ok=True)
    (received / place).write_text(EVIL.format(marker=str(marker)))
    parts = Path(place).with_suffix("").parts
    name = ".".join(part for part in parts if part != "__init__")
    module = f"received.{name}".rstrip(".")
    for folder, target in [
        (received.parent.parent, f"experiments.{module}.Net"),
        (received.parent, f"{module}.Net"),
        (received, f"{name or 'run'}.Net"),
        (run, "evil.Net"),
    ]:
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            patch.chdir(folder)
            change_config(run, model___target_=target)
            for path in (run, os.path.relpath(run)):
                with pytest.raises(UserError, match=r"_target_"):
                    load_run(path)


def test_a_module_of_ones_own_is_imported(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_hostile_test_net.py").write_text("from model.net import MLP as Net\n")
    (tmp_path / "my_hostile_test_nets").mkdir()
    (tmp_path / "my_hostile_test_nets" / "small.py").write_text("from model.net import MLP as Net\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("lab.config.imports.PROJECT", tmp_path)  # where one's own modules are
    for target in ("my_hostile_test_net.Net", "my_hostile_test_nets.small.Net"):
        change_config(run, model___target_=target)
        state = load_tensors(run / "best.pt")
        state["configuration"]["model._target_"] = target
        save_tensors(run / "best.pt", state)
        assert type(load_run(run)[0]).__name__ == "MLP"


def test_a_folder_full_of_modules_is_nobodys_search_path(run: Path, marker: Path) -> None:
    """Commands that are started from within the run directory, too."""
    names = [
        "torch",
        "numpy",
        "utils",
        "conf",
        "yaml",
        "sitecustomize",
        "usercustomize",
        "train",
        "conftest",
        "__init__",
    ]
    for name in names:
        (run / f"{name}.py").write_text(EVIL.format(marker=str(marker)))
    (run / "hydra_plugins").mkdir()
    (run / "hydra_plugins" / "evil.py").write_text(EVIL.format(marker=str(marker)))
    done = subprocess.run(
        [sys.executable, str(PROJECT / "evaluate.py"), "run=.", "device=cpu"],
        cwd=run, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:SECRET_OF_THIS_TEST}",
        "${oc.decode:${oc.env:SECRET_OF_THIS_TEST}}",
        "${oc.create:{a:1}}",
        "${project_dir:}",
        "${payload_of_this_test:}",
        "x ${name}",
    ],
)
def test_nothing_is_filled_into_a_recorded_configuration(
    text: str, run: Path, run_command: Callable[..., Outcome], marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = os.urandom(8).hex()
    monkeypatch.setenv("SECRET_OF_THIS_TEST", secret)
    OmegaConf.register_new_resolver("payload_of_this_test", lambda: marker.touch() or "x", replace=True)
    try:
        for key in ("data__root", "trainer__monitor", "model__activation"):
            for escaped in ("$", "\\x24"):
                change_config(run, **{key: "PLACE"})
                quoted = json.dumps(text).replace("$", escaped)
                (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("PLACE", quoted))
                with pytest.raises(UserError, match="no run records"):
                    load_config(run)
        outcome = run_command("train", f"resume={run}", "trainer.epochs=3")
        assert outcome.code == 2
        assert secret not in outcome.err
        assert not [path for path in run.iterdir() if secret.encode() in path.read_bytes()]
    finally:
        OmegaConf.clear_resolver("payload_of_this_test")


YAML = {
    "a call": "seed: !!python/object/apply:os.system [\"touch '{marker}'\"]\n",
    "a call by another tag": "seed: !!python/object/new:subprocess.Popen [[touch, '{marker}']]\n",
    "a name": "seed: !!python/name:os.system\n",
    "a module": "seed: !!python/module:antigravity\n",
    "a path": "seed: !!python/object/apply:pathlib.Path [x]\n",
    "many from few": "a: &a [x, x]\n" + "b: &b [*a, *a, *a, *a]\n" + "c: &c [*b, *b, *b, *b]\nd: [*c, *c, *c]\n",
    "itself": "a: &a [*a]\n",
    "depth": "a: " + "[" * 3000 + "]" * 3000 + "\n",
    "a duplicate key": "seed: 1\nseed: 2\n",
    "a tab": "data:\n\troot: x\n",
    "a list": "- 1\n- 2\n",
    "a number": "3\n",
    "nothing": "",
    "two documents": "a: 1\n---\nb: 2\n",
    "no text": "\x00\x01",
    "a huge number": "seed: " + "9" * 5000 + "\n",
    "an escape": "name: \"\\e[31mred\\a\"\n",
}  # fmt: skip


@pytest.mark.parametrize("case", YAML)
def test_yaml_is_data(case: str, run: Path, run_command: Callable[..., Outcome], marker: Path) -> None:
    (run / "config.yaml").write_text(YAML[case].replace("{marker}", str(marker)))
    outcome = run_command("evaluate", f"run={run}")
    assert_orderly(outcome)
    assert outcome.code == 2 and "config.yaml" in outcome.err
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_run(run)
    assert read_run(run, run.parent).state in ("unreadable", "finished")  # tables show text, and check no ranges


HUGE: dict[str, dict[str, Any]] = {
    "a huge layer": {"model__hidden_sizes": [10**12]},
    "a layer beyond all numbers": {"model__hidden_sizes": [10**30]},
    "workers without end": {"data__num_workers": 10**6},
    "devices without end": {"trainer__devices": 10**6},
    "an epoch beyond all numbers": {"seed": 10**30},
    "infinity": {"optimizer__lr": float("inf")},
    "a share beyond all numbers": {"scheduler__factor": "9" * 400 + "%"},
    "a path that is none": {"data__root": "a\0b"},
}


@pytest.mark.parametrize("case", HUGE)
def test_numbers_without_measure_end_in_one_line(case: str, run: Path, run_command: Callable[..., Outcome]) -> None:
    change_config(run, **HUGE[case])
    for command in (["evaluate", f"run={run}", "device=cpu"], ["train", f"resume={run}", "trainer.epochs=3"]):
        assert_orderly(run_command(*command), command[0])
