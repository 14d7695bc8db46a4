"""An error of the user's own code is shown with their file and line, and without ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import train
from lab.config.mistakes import explain, own_traceback
from model.net import DataSpec

NET = ["~model.hidden_sizes", "~model.activation", "~model.dropout", "~model.output"]


class Broken(nn.Module):
    """A network that has another mistake each time."""

    def __init__(self, spec: DataSpec, *, error: str) -> None:
        super().__init__()
        self.layer, self.error = nn.Linear(64, spec.output_size), error
        if error == "OSError":
            Path("/no/such/file\x1b[31m").read_text()

    def forward(self, x: Tensor) -> Tensor:
        if self.error == "RuntimeError":
            return self.layer(x.flatten(1)[:, 1:])  # raised by PyTorch, of shapes
        raise {"KeyError": KeyError, "AssertionError": AssertionError, "Own": OwnError}[self.error]("of my own")


class OwnError(Exception):
    """An error of a class of the user's."""


@pytest.mark.parametrize("error", ["RuntimeError", "KeyError", "AssertionError", "Own", "OSError"])
def test_an_error_of_ones_own_code_is_shown_with_its_place(
    error: str, run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    words = ["model._target_=test_own_errors.Broken", f"+model.error={error}", f"experiments_dir={tmp_path}"]
    outcome = run_command("train", "trainer.device=cpu", "data.limit=90", *words, *NET)
    assert outcome.code == 1
    lines = outcome.err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert (__file__ in outcome.err and "in forward" in outcome.err) or "in __init__" in outcome.err
    assert {line.split('"')[1] for line in lines if line.startswith("  File ")} == {__file__}
    assert "Error" in lines[-2] and "HYDRA_FULL_ERROR=1" in lines[-1]
    assert all(character.isprintable() for line in lines for character in line)
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_the_whole_traceback_is_there_for_the_asking(
    run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    words = ["model._target_=test_own_errors.Broken", "+model.error=KeyError", f"experiments_dir={tmp_path}"]
    with pytest.raises(KeyError, match="of my own"):
        run_command("train", "trainer.device=cpu", "data.limit=90", *words, *NET)


class BrokenData(Dataset):
    """Examples that cannot be read."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        raise FileNotFoundError("of my own")


def test_an_error_in_a_workers_process_is_shown_with_its_place() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        next(iter(DataLoader(BrokenData(), num_workers=1)))
    lines = own_traceback(caught.value.with_traceback(None)).splitlines()
    assert lines[1].startswith(f'  File "{__file__}", line') and lines[1].endswith("in __getitem__")
    assert lines[-2] == "FileNotFoundError: of my own"
    assert explain(caught.value, "train") is None


def test_with_a_closed_standard_error_something_is_said_all_the_same(tmp_path: Path) -> None:
    script = Path(train.__file__).resolve()
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} {script} name=a/b 2>&-"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout.startswith("train.py: name is 'a/b'")
    assert list(tmp_path.iterdir()) == []
