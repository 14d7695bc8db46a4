"""What the README tells its readers to do, done literally."""

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
README = (PROJECT / "README.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# ((?:conf/|my_)\S+)\n(.*?)```", README, re.DOTALL))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the README's own additions in it."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    ignore = shutil.ignore_patterns(".*", "experiments", "data", "__pycache__", "tests", "benchmarks")
    shutil.copytree(PROJECT, folder, ignore=ignore)
    shutil.copytree(PROJECT / "conf", folder / "conf", dirs_exist_ok=True)
    for name, content in FILES.items():
        (folder / name).write_text(content)
    return folder


def test_the_readme_adds_a_model_a_dataset_and_an_optimiser() -> None:
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
    ],
)
def test_an_addition_trains(clone: Path, tmp_path: Path, command: str, metric: str, at_least: float) -> None:
    assert f"`python {command}`" in README
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


def test_every_option_of_the_readme_exists_and_none_is_left_out() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", README, re.MULTILINE)
    groups = {
        group: set(re.findall(r"`([a-z_0-9]+)`", text)) for group, text in rows if (PROJECT / "conf" / group).is_dir()
    }
    assert groups.keys() >= {"data", "model", "optimizer", "scheduler", "trainer", "debug"}
    for group, named in groups.items():
        assert named == {path.stem for path in (PROJECT / "conf" / group).glob("*.yaml")}, group
