"""What the tests share: commands run in this process, and small data."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.Image
import pytest
import torch
from helpers.commands import Outcome, read_lines  # noqa: F401
from helpers.reading_once import copy_notes_plainly, parse_each_text_once
from helpers.warm import Warm
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra

import evaluate
import search_hyperparams
import synthesize_results
import train

pytest_plugins = ["helpers.disturbed", "helpers.hostile", "helpers.sweeps"]  # more fixtures

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a shell; the tests' own commands listen
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # tiny networks: threads would only wait for each other, and for other tests
os.fsync = lambda descriptor: None  # nothing waits for the disk: what the kernel has survives the death of a process
parse_each_text_once()
copy_notes_plainly()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """What is imported by now stays: a search for garbage would make each forked process copy all of it."""
    gc.collect()
    gc.freeze()


COMMANDS = {
    "train": train.main,
    "evaluate": evaluate.main,
    "search_hyperparams": search_hyperparams.main,
    "synthesize_results": synthesize_results.main,
}


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


@pytest.fixture
def try_train(run_command: Callable[..., Outcome], tmp_path: Path) -> Callable[..., Outcome]:
    """try_train(...) trains below tmp_path/experiments like run_train, but may fail; its outcome."""

    def run(*arguments: str) -> Outcome:
        folder = tmp_path / "experiments"
        fixed = [f"experiments_dir={folder}", "name=run", "trainer.images=false", "trainer.device=cpu"]
        flags = [argument for argument in arguments if argument.startswith("-")]
        return run_command("train", *flags, *fixed, *(a for a in arguments if a not in flags))

    return run


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """warm.run("train.py", "model=cnn", ...) is a real process, but for the second that it takes to import PyTorch."""
    process = Warm(tmp_path_factory.mktemp("warm") / "socket")
    yield process
    process.close()


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
