"""What each command takes, and what it answers where it takes something else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Outcome
from helpers.commands import assert_one_line

PROJECT = Path(__file__).resolve().parents[3]


def test_an_evaluation_takes_no_launcher(run_command: Callable[..., Outcome]) -> None:
    outcome = run_command("evaluate", "-m", "hydra/launcher=joblib", "run=x,y")
    assert_one_line(outcome, "hydra/launcher=joblib", "train.py")


@pytest.mark.parametrize("word", ["-m", "dry_run=true", "rerun=true", "resume=x"])
def test_a_search_takes_no_words_of_sweeps_and_runs(
    word: str, run_command: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = run_command("search_hyperparams", word, "search=mlp", f"experiments_dir={tmp_path}")
    assert_one_line(outcome, word.partition("=")[0], "leave it out")
    assert list(tmp_path.iterdir()) == []


def test_a_space_is_no_key(run_command: Callable[..., Outcome]) -> None:
    assert_one_line(run_command("search_hyperparams", "search.space.optimizer.lr=3"), "conf/search/")


@pytest.mark.parametrize(
    ("script", "word", "advice"),
    [
        ("evaluate", "data=mnist", "its keys are data.root"),
        ("evaluate", "model=cnn", "the keys there are run, checkpoint"),
        ("synthesize_results", "trainer=default", "the keys there are root, metric"),
    ],
)
def test_what_reads_runs_takes_no_groups(
    script: str, word: str, advice: str, run_command: Callable[..., Outcome]
) -> None:
    assert_one_line(run_command(script, f"{'run' if script == 'evaluate' else 'root'}=x", word), word[:4], advice)


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2", "RANK": "0"},
        {"WORLD_SIZE": "two", "RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "-1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1234"},
        {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1234"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "abc"},
    ],
    ids=str,
)
def test_what_no_launcher_sets_is_told(
    environment: dict[str, str], run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    outcome = run_command("train", f"experiments_dir={tmp_path}")
    assert_one_line(outcome, *(f"{key}={value}" for key, value in environment.items()), "torchrun")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["train", "-m", "seed=0,1"], "torchrun"),
        (["train", "experiment=optimizers"], "torchrun"),  # a sweep by itself
        (["search_hyperparams", "search=mlp"], "torchrun"),
        (["evaluate", "run=x"], "torchrun"),
        (["train", "trainer.devices=3"], "trainer.devices is 3, but 2 processes were started"),
    ],
    ids=str,
)
def test_launchers_are_for_single_runs(
    words: list[str], answer: str, run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for key, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(key, value)
    place = [f"experiments_dir={tmp_path}"] if words[0] != "evaluate" else []
    assert_one_line(run_command(*words, *place), answer)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_number_of_processes_without_the_number_of_this_one_is_no_launcher(
    run_train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "devices: 1" in (run_train("trainer.epochs=1", "data.limit=90") / "config.yaml").read_text()


@pytest.mark.parametrize("wrong", ["seed=-1,-2", "trainer.epochs=0,-1", "model=mlp,cnnn"])
def test_a_sweep_of_mistakes_starts_no_run(wrong: str, run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run_command("train", "-m", f"experiments_dir={tmp_path / 'experiments'}", "name=ok", wrong)
    assert_one_line(Outcome(outcome.code, "", outcome.err))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["../escape", "a/b", "'a b'"])
def test_a_sweep_of_a_wrong_name_leaves_nothing(name: str, run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run_command("train", "-m", f"experiments_dir={tmp_path / 'experiments'}", f"name={name}", "seed=0")
    assert_one_line(Outcome(outcome.code, "", outcome.err), "name")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_unknown_flag_is_named(run_command: Callable[..., Outcome]) -> None:
    outcome = run_command("train", "--nosuch")
    assert outcome.code == 2
    assert "--nosuch" in outcome.err.splitlines()[-1]


def test_the_flag_of_a_sweep_may_stand_anywhere(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    """argparse takes positional arguments from one place only; a user does not know that."""
    small = ["trainer.epochs=1", "data.limit=90", "trainer.images=false", "trainer.device=cpu"]
    outcome = run_command("train", f"experiments_dir={tmp_path}", "name=x", "-m", "seed=0,1", *small)
    assert outcome.code == 0, outcome.err
    assert len(list(tmp_path.glob("x/*/seed-*/best.pt"))) == 2


def test_resume_of_what_is_no_run(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_one_line(run_command("train", f"resume={tmp_path / 'empty'}"), "empty", "config.yaml")
    (tmp_path / "file").write_text("x")
    assert_one_line(run_command("train", f"resume={tmp_path / 'file'}"), "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_a_folder_that_cannot_be_written_is_one_line(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    outcome = run_command("train", "trainer.epochs=1", "data.limit=90", f"experiments_dir={tmp_path / 'file'}")
    assert_one_line(outcome, str(tmp_path / "file"), code=1)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["trainer.epoch=3"]],
    ids=" ".join,
)
def test_from_another_folder_in_a_process_of_its_own(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(PROJECT / "train.py"), *arguments],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
    if arguments[0].startswith("--"):
        assert (done.returncode, done.stderr) == (0, "")
        assert "hidden_sizes" in done.stdout
    else:
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stderr.startswith("train.py: ")
        assert arguments[0].split("=")[0] in done.stderr


def test_from_another_folder(
    run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run_command("train", "--cfg", "job", "model=cnn")
    assert (shown.code, shown.err) == (0, "") and "model.net.CNN" in shown.out
    assert_one_line(run_command("train", "optimizer.lr=nan", "model=cnn"), "train.py: ", "optimizer.lr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["train", "evaluate", "search_hyperparams", "synthesize_results"])
def test_the_help_fits_a_terminal_and_says_what_each_key_is_for(
    script: str, run_command: Callable[..., Outcome]
) -> None:
    outcome = run_command(script, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 80
    start = lines.index("")  # the end of the sentence that says what it does
    assert sum(line.startswith(f"  python {script}.py ") for line in lines[start + 1 : lines.index("", start + 1)]) >= 2
    own = yaml.safe_load((PROJECT / "conf" / f"{script}.yaml").read_text())
    keys = [key for key in own if key not in ("defaults", "hydra", "data", "model", "optimizer", "search")]
    for key in keys:
        assert [line for line in lines if line.startswith(f"  {key}=")], key
    about = {"train": "clip gradients", "evaluate": "the run's own", "search_hyperparams": "stop trials early"}
    assert about.get(script, "a table of two keys") in outcome.out


def test_the_help_shows_what_was_chosen(run_command: Callable[..., Outcome]) -> None:
    out = run_command("train", "--help", "model=fast_cnn", "trainer.epochs=7").out
    assert "model.mirror=false            in evaluation: the mean" in out
    assert "  trainer.epochs=7\n" in out
    assert "name=digits_fast_cnn" in out
    assert_one_line(run_command("train", "-h", "trainer.epoch=7"), "did you mean trainer.epochs?")
