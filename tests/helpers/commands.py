"""What a command left, and what stands in the files that it wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).resolve().parents[2] / "conf"


@dataclass
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def assert_one_line(outcome: Outcome, *parts: str, code: int = 2) -> None:
    """A command ended in one line that holds these parts, and said nothing else."""
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert len([line for line in outcome.err.splitlines() if line.strip()]) == 1, outcome.err
    assert not outcome.out.strip()
    for part in parts:
        assert part in outcome.err, outcome.err


def compose(*overrides: str) -> DictConfig:
    """What train.py would be told, resolved but not checked."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = hydra.compose("train", overrides=["name=run", *overrides])
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))


def read(path: Path) -> Any:
    """The content of a .json file."""
    return json.loads(path.read_text())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file, without their times."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("seconds", "examples_per_second")} for record in records]
