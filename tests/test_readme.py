"""What the README and the pages of docs/ tell their readers to add, done literally."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PAGES = "\n".join((PROJECT / page).read_text() for page in ("README.md", "docs/configuration.md"))
FILES = dict(re.findall(r"```(?:python|yaml)\n# ((?:conf/|my_)\S+)\n(.*?)```", PAGES, re.DOTALL))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the pages' own additions in it."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    ignore = shutil.ignore_patterns(".*", "experiments", "data", "__pycache__", "tests", "benchmarks")
    shutil.copytree(PROJECT, folder, ignore=ignore)
    shutil.copytree(PROJECT / "conf", folder / "conf", dirs_exist_ok=True)
    for name, content in FILES.items():
        (folder / name).write_text(content)
    return folder


def test_the_pages_add_a_model_a_dataset_and_an_optimiser() -> None:
    assert sorted(FILES) == [
        "conf/data/stripes.yaml", "conf/model/linear.yaml", "conf/optimizer/signsgd.yaml",
        "my_data.py", "my_net.py", "my_optim.py",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "metric", "at_least"),
    [
        ("train.py model=linear model.bias=false", "val/accuracy", 0.85),
        ("train.py data=stripes model=cnn data.noise=0.5", "val/accuracy", 0.95),
        ("train.py optimizer=signsgd", "val/accuracy", 0.85),
        ("train.py loss._target_=torch.nn.CrossEntropyLoss +loss.label_smoothing=0.1", "val/accuracy", 0.85),
    ],
)
def test_an_addition_trains(clone: Path, tmp_path: Path, command: str, metric: str, at_least: float) -> None:
    assert f"`python {command}`" in PAGES
    script, *arguments = command.split()
    # From another folder, as the README promises.
    done = subprocess.run(
        [sys.executable, str(clone / script), *arguments, "name=added", "trainer.images=false", "trainer.device=cpu"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (directory,) = (clone / "experiments" / "added").iterdir()
    best = json.loads((directory / "metrics.json").read_text())["best"]
    assert best[metric] >= at_least
    shutil.rmtree(clone / "experiments")
