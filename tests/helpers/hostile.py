"""Run directories from someone else: what is changed in them, and what is done with them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import train
from evaluate import load_run
from helpers.commands import Outcome
from lab.runs.loading import load_config


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs of a small regression."""
    folder = tmp_path_factory.mktemp("honest")
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["data=quadratic", "data.num_examples=20", "trainer.epochs=2", "trainer.images=false", "name=run"]
        patch.setattr(sys, "argv", ["train.py", *arguments, "trainer.device=cpu", f"experiments_dir={folder}"])
        GlobalHydra.instance().clear()
        train.main()
    (directory,) = (folder / "run").iterdir()
    return directory


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    """The run as it came: a folder among one's own experiments."""
    return Path(shutil.copytree(honest, tmp_path / "experiments" / "received" / "run"))


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A file that every payload of these tests would make."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "a payload was executed"


@pytest.fixture
def use(run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], dict[str, Outcome]]:
    """use(run) does with a run directory all that one can do with it: the outcome of each command."""

    def do(run: Path) -> dict[str, Outcome]:
        for checkpoint in ("best", "last"):
            try:
                load_run(run, checkpoint)
            except Exception as error:
                assert getattr(error, "for_user", False) and "\n" not in str(error), error
        outcomes = {
            "evaluate": run_command("evaluate", f"run={run}", "device=cpu"),
            "resume": run_command("train", f"resume={run}", "trainer.epochs=3"),
            "tabulate": run_command("synthesize_results", f"root={run.parent}"),
        }
        for name, outcome in outcomes.items():
            assert_orderly(outcome, name)
        return outcomes

    return do


def assert_orderly(outcome: Outcome, name: str = "") -> None:
    """What was asked for, or one line that says why not; nothing that a terminal acts on."""
    assert outcome.code in (0, 1, 2), (name, outcome.err)
    assert "Traceback" not in outcome.err + outcome.out, name
    assert all(c.isprintable() or c == "\n" for c in outcome.err + outcome.out), (name, outcome.err + outcome.out)
    errors = [line for line in outcome.err.splitlines() if line.strip() and not line.startswith("WARNING")]
    assert len(errors) == (outcome.code != 0), (name, outcome.err)


def change_config(run: Path, **values: Any) -> None:
    """Sets dotted keys (with __ for the dots) of a recorded configuration."""
    config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    for dotted, value in values.items():
        *groups, key = dotted.split("__")
        node: Any = config
        for group in groups:
            node = node[group]
        node[key] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def go_on(run: Path) -> None:
    """What `resume=run trainer.epochs=3` does, without the command line."""
    cfg = load_config(run)
    cfg.trainer.epochs = 3
    train.train(cfg, run)
