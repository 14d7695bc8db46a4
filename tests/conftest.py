"""What the tests share: commands run in this process, and small data."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra

import evaluate
import search_hyperparams
import synthesize_results
import train

pytest_plugins = ["helpers.sweeps"]  # more fixtures

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a shell; the tests' own commands listen
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # tiny networks: threads would only wait for each other, and for other tests

COMMANDS = {
    "train": train.main,
    "evaluate": evaluate.main,
    "search_hyperparams": search_hyperparams.main,
    "synthesize_results": synthesize_results.main,
}


@dataclass
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """run_command("train", "model=cnn", ...) does what the command line would, but in this process."""

    def run(script: str, *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
        GlobalHydra.instance().clear()
        capsys.readouterr()
        code = 0
        with monkeypatch.context() as patch:
            if not any(word in argument for argument in arguments for word in ("experiment=", "hydra")):
                # Hydra composes everything twice, first to see whether it asks for a sweep, as only some presets do.
                patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
            try:
                COMMANDS[script]()
            except SystemExit as stop:
                code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def run_train(run_command: Callable[..., Outcome], tmp_path: Path) -> Callable[..., Path]:
    """run_train("model=cnn", ...) trains below tmp_path without pictures; the run's directory."""

    def run(*arguments: str, name: str = "run") -> Path:
        folder = tmp_path / "experiments"
        before = set(folder.glob(f"{name}/*"))
        outcome = run_command(
            "train",
            f"experiments_dir={folder}",
            f"name={name}",
            "trainer.images=false",
            "trainer.device=cpu",
            *arguments,
        )
        assert outcome.code == 0, outcome.err
        (directory,) = set(folder.glob(f"{name}/*")) - before
        return directory

    return run


@pytest.fixture(scope="session")
def image_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 320 small images in two classes."""
    root = tmp_path_factory.mktemp("images")
    for number in range(320):
        folder = root / "train" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (8, 8, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        PIL.Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return root


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Each test starts from the same random state, and leaves no Hydra behind."""
    torch.manual_seed(0)
    yield
    GlobalHydra.instance().clear()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file, without their times."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("seconds", "examples_per_second")} for record in records]
