"""Data, checkpoints and folders that are not what they should be: one line that says so, and nothing lost or half made."""

from __future__ import annotations

import gzip
import io
import math
import os
import random
import shutil
import sys
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from PIL import Image

import train
from evaluate import load_run
from lab.config.command import CONF, checked
from lab.config.schema import TrainRequest
from lab.devices.distributed import ALONE
from lab.runs.checkpoint import load_tensors, save_tensors
from lab.runs.directory import recorded_part
from model.datasets import mnist
from model.examples import DataError, Examples
from utils import UserError


def assert_one_line(outcome: Outcome, *parts: str, code: int = 2) -> None:
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    for part in parts:
        assert part in outcome.err, outcome.err


def files_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder, but for locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---------------------------------------------------------------------------------------------------------------- data


def pictures(split: str, root: str, *, wrong: str = "") -> Examples | None:
    """Images of three classes, with something wrong with the split that `wrong` begins with."""
    size = {"train": 60, "val": 30, "test": 30}[split]
    inputs, targets, classes = torch.zeros(size, 1, 4, 4, dtype=torch.uint8), torch.arange(size) % 3, ["a", "b", "c"]
    match wrong.split() if wrong.startswith(split) else []:
        case _, "empty":
            inputs, targets = inputs[:0], targets[:0]
        case _, "channels":
            inputs = inputs.expand(-1, 3, -1, -1)
        case _, "larger":
            inputs = torch.zeros(size, 1, 8, 8, dtype=torch.uint8)
        case _, "classes":
            targets, classes = torch.arange(size) % 4, ["a", "b", "c", "d"]
        case _, "names":
            classes = ["a", "b", "x"]
        case _, "regression":
            return Examples(inputs, torch.zeros(size, 3))
        case _, "nan":
            return Examples(torch.full((size, 4), math.nan), targets, classes)
        case _, "infinity":
            return Examples(torch.zeros(size, 4), torch.full((size, 1), math.inf))
        case _, "one":
            targets, classes = targets * 0, ["a"]
        case _, "labels":
            targets = targets + 1
    return Examples(inputs, targets, classes)


WRONG_DATA = {
    "train empty": ["train", "no examples"],
    "val empty": ["val", "no examples"],
    "train nan": ["inputs of 60 of 60 examples", "nan"],
    "train infinity": ["targets of 60 of 60 examples", "infinity"],
    "val nan": ["inputs", "nan"],
    "train one": ["one class a"],
    "train labels": ["labels from 1 to 3", "3 classes"],
    "val labels": ["labels from 1 to 3"],
    "val channels": ["3x4x4", "1x4x4"],
    "val larger": ["1x8x8", "1x4x4"],
    "val classes": ["a, b, c, d", "a, b, c"],
    "val names": ["a, b, x"],
    "val regression": ["regression", "classification"],
}
SMALL = ["data._target_=test_bad_files.pictures", "data.batch_size=20", "trainer.epochs=1", "trainer.device=cpu"]


@pytest.fixture(scope="module")
def asked() -> DictConfig:
    """The configuration of a run on `pictures`."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return recorded_part(checked(compose("train", [*SMALL, "+data.wrong=''", "name=x"]), TrainRequest))


@pytest.mark.parametrize("wrong", WRONG_DATA)
def test_data_with_a_mistake_is_refused_before_anything_is_written(wrong: str, asked: DictConfig) -> None:
    cfg = asked.copy()
    cfg.data.wrong = wrong
    with pytest.raises((DataError, UserError)) as caught:
        train.set_up(cfg, ALONE)
    assert "\n" not in str(caught.value)
    for part in WRONG_DATA[wrong]:
        assert part in str(caught.value), caught.value


def test_data_without_a_mistake_is_not(asked: DictConfig) -> None:
    train.set_up(asked, ALONE).close()


def test_a_mistake_in_the_data_ends_a_command_in_one_line(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run_command("train", *SMALL, "+data.wrong='val channels'", f"experiments_dir={tmp_path / 'x'}")
    assert_one_line(outcome, "3x4x4", "1x4x4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "part"),
    [("empty", "no examples"), ("channels", "3x4x4"), ("classes", "classes"), ("regression", "classes")],
)
def test_a_test_split_unlike_the_training_data_is_refused(
    wrong: str, part: str, run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    run = run_train(*SMALL, f"+data.wrong='test {wrong}'")
    assert_one_line(run_command("evaluate", f"run={run}"), part)
    assert not list(run.glob("evaluation*")) and not list(run.glob("*.png"))


def damage_images(folder: Path) -> dict[str, bytes]:
    """Contents of a file that should be an image."""
    picture = io.BytesIO()
    Image.frombytes("RGB", (8, 8), random.Random(0).randbytes(192)).save(picture, "PNG")
    bomb = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(bomb, "PNG")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(executed) (w) file\n%%EOF\n"
    return {
        "truncated": picture.getvalue()[:150],
        "empty": b"",
        "text": b"no image",
        "a bomb": bomb.getvalue(),
        "a program": postscript,  # which Pillow would hand to Ghostscript
    }


@pytest.mark.parametrize("case", damage_images(Path()))
def test_an_image_that_is_none_is_named(
    case: str, run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        path = tmp_path / "images" / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 10, 10)).save(path)
    path.write_bytes(damage_images(tmp_path)[case])
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    arguments = ["data=image_folder", f"data.root={tmp_path / 'images'}", "data.image_size=8", "data.num_workers=0"]
    outcome = run_command("train", *arguments, "data.batch_size=2", f"experiments_dir={tmp_path / 'x'}")
    assert_one_line(outcome, f"{path} is not an image that can be read")
    assert not (tmp_path / "x").exists()


# ----------------------------------------------------------------------------------------------------------- downloads


def escaping_archive() -> bytes:
    """An archive whose files would land beside the folder that it is unpacked in."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("../escaped", "/tmp/escaped-from-an-archive", "cifar-10-batches-py/data_batch_1"):
            info = tarfile.TarInfo(name)
            info.size = 7
            archive.addfile(info, io.BytesIO(b"escaped"))
    return buffer.getvalue()


DOWNLOADS = {
    "an archive that escapes": ("cifar10", escaping_archive()),
    "an archive of other content": ("mnist", gzip.compress(b"no images")),
    "an archive that is none": ("mnist", b"<!DOCTYPE html><html>404</html>"),
    "nothing": ("cifar100", b""),
}


@pytest.mark.parametrize("case", DOWNLOADS)
@pytest.mark.parametrize("had_folder", [True, False], ids=["folder", "no folder"])
def test_a_download_with_a_wrong_checksum_leaves_nothing(
    case: str, had_folder: bool, run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, content = DOWNLOADS[case]
    served: list[str] = []

    class Response(io.BytesIO):
        length = len(content)
        url = "http://example.invalid/file"

    def urlopen(request: Any, *_: Any, **__: Any) -> Response:
        served.append(str(request))
        return Response(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    root = tmp_path / "there" / "data"
    if had_folder:
        root.mkdir(parents=True)
        (root / "mine").write_text("keep")
    before = sorted(tmp_path.rglob("*"))
    outcome = run_command("train", f"data={data}", f"data.root={root}", f"experiments_dir={tmp_path / 'x'}")
    *bars, last = outcome.err.strip().splitlines()
    assert all("B/s]" in bar or not bar for bar in bars)  # a download shows how far it is
    assert_one_line(Outcome(outcome.code, outcome.out, last), str(root), "downloading it failed")
    assert served
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/escaped-from-an-archive").exists()


def test_an_archive_with_a_wrong_checksum_that_is_there_is_not_unpacked(
    run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no network in a test")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    root = tmp_path / "data"
    root.mkdir()
    (root / "cifar-10-python.tar.gz").write_bytes(escaping_archive())
    before = files_of(tmp_path)
    outcome = run_command("train", "data=cifar10", f"data.root={root}", f"experiments_dir={tmp_path / 'x'}")
    assert_one_line(outcome, "CIFAR10")
    assert files_of(tmp_path) == before


def test_files_of_mnist_that_are_cut_are_named(tmp_path: Path) -> None:
    """As a download that was killed leaves them; torchvision takes them for whole, and downloads nothing."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(
            bytes([0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 28, 0, 0, 0, 28]) + b"x"
        )
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + bytes(9))
    before = files_of(tmp_path)
    with pytest.raises(DataError, match="damaged there") as caught:
        mnist("train", str(tmp_path))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert files_of(tmp_path) == before


# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, and another one whose network is larger, beside it."""
    folder = tmp_path_factory.mktemp("original")
    for name, size in (("run", 8), ("other", 16)):
        with pytest.MonkeyPatch.context() as patch:
            arguments = ["data=quadratic", "data.num_examples=20", "trainer.epochs=2", "trainer.images=false"]
            arguments += [
                "trainer.device=cpu",
                f"experiments_dir={folder}",
                f"name={name}",
                f"model.hidden_sizes=[{size}]",
            ]
            patch.setattr(sys, "argv", ["train.py", *arguments])
            GlobalHydra.instance().clear()
            train.main()
        next((folder / name).iterdir()).rename(folder / f"{name}.run")
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy of the first of them."""
    return Path(shutil.copytree(original / "run.run", tmp_path / "run"))


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "the last byte missing": lambda content: content[:-1],
    "a byte more": lambda content: content + b"\n",
    "zeros": lambda content: bytes(len(content)),
    "a page": lambda content: b"<!DOCTYPE html><html>404 Not Found</html>",
    "a bit of the data": lambda content: flipped(content, len(content) // 2),
    "a bit of a key": lambda content: flipped(content, content.index(b"fc1.weight")),
    "a bit of the checksum": lambda content: flipped(content, len(content) - 5),
    "a pointer": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_nothing_is_lost(
    case: str, run: Path, run_command: Callable[..., Outcome]
) -> None:
    for name in ("best.pt", "last.pt", "before.pt"):
        (run / name).write_bytes(DAMAGES[case]((run / name).read_bytes()))
    before = files_of(run)
    assert_one_line(run_command("evaluate", f"run={run}"), "best.pt is damaged")
    assert_one_line(run_command("train", f"resume={run}", "trainer.epochs=3"), "last.pt is damaged")
    with pytest.raises(UserError, match=r"last\.pt is damaged"):
        load_run(run, "last")
    changed = {name for name, content in files_of(run).items() if before.get(name) != content}
    assert changed <= {"train.log"}  # which says it, too


def test_the_checkpoint_before_is_taken_where_the_last_is_damaged(
    run: Path, run_command: Callable[..., Outcome]
) -> None:
    (run / "last.pt").write_bytes(DAMAGES["a bit of the data"]((run / "last.pt").read_bytes()))
    outcome = run_command("train", f"resume={run}", "trainer.epochs=3")
    assert outcome.code == 0, outcome.err
    assert "WARNING" in outcome.err and "last.pt is damaged" in outcome.err
    assert [line.split('"epoch": ')[1][0] for line in (run / "metrics.jsonl").read_text().splitlines()] == [
        "1",
        "2",
        "3",
    ]


def widen(state: dict[str, Any]) -> None:
    state["model"] = {name: torch.cat([tensor, tensor]) for name, tensor in state["model"].items()}


def reorder(state: dict[str, Any]) -> None:
    state["optimizer"]["param_groups"] *= 2


# What was changed -> in which of the two commands it shows, and what is said.
STATES: dict[str, tuple[Callable[[dict[str, Any]], Any], str, list[str]]] = {
    "weights of other shapes": (widen, "evaluate resume", ["does not fit this configuration: model", "size mismatch"]),
    "weights under other names": (
        lambda state: state["model"].update(renamed=state["model"].pop("fc1.weight")),
        "evaluate resume",
        ["does not fit this configuration: model", "fc1.weight"],
    ),
    "other groups of the optimiser": (reorder, "resume", ["optimizer", "parameter group"]),
    "a newer version": (lambda state: state.update(format=99), "evaluate resume", ["format 99", "newer version"]),
    "an older version": (lambda state: state.pop("schedule"), "resume", ["holds no schedule", "another version"]),
    "other data": (lambda state: state["spec"].update(classes=("a",)), "resume", ["another spec"]),
    "another configuration": (lambda state: state.update(configuration="0"), "resume", ["another configuration"]),
}


@pytest.mark.parametrize("case", STATES)
def test_a_checkpoint_of_something_else_is_refused_and_nothing_is_lost(
    case: str, run: Path, run_command: Callable[..., Outcome]
) -> None:
    change, commands, parts = STATES[case]
    for name in ("best.pt", "last.pt"):
        state = load_tensors(run / name)
        if name == "last.pt" or "evaluate" in commands:
            change(state)
        save_tensors(run / name, state)
    before = files_of(run)
    assert_one_line(run_command("train", f"resume={run}", "trainer.epochs=3"), "last.pt", *parts)
    if "evaluate" in commands:
        assert_one_line(run_command("evaluate", f"run={run}"), "best.pt", *parts)
    assert files_of(run) == before


def test_checkpoints_of_another_run_are_refused(original: Path, run: Path, run_command: Callable[..., Outcome]) -> None:
    for name in ("best.pt", "last.pt"):
        shutil.copy(original / "other.run" / name, run / name)
    assert_one_line(run_command("train", f"resume={run}", "trainer.epochs=3"), "last.pt", "another configuration")
    assert_one_line(run_command("evaluate", f"run={run}"), "best.pt", "does not fit this configuration")


# ------------------------------------------------------------------------------------------------- files of configuration

OPTIONS = {
    "a tab": ("_target_: model.net.MLP\n\thidden_sizes: [3]\n", ["broken.yaml", "line 2"]),
    "a duplicate key": ("_target_: model.net.MLP\n_target_: model.net.CNN\n", ["duplicate key _target_"]),
    "an unclosed list": ("_target_: model.net.MLP\nhidden_sizes: [3\n", ["broken.yaml", "line"]),
    "a list": ("- 1\n- 2\n", ["broken"]),
    "text": ("only text\n", ["model._target_"]),
    "nothing": ("", ["model._target_"]),
    "no target": ("hidden_sizes: [3]\n", ["model"]),
    "binary": ("\0\1", ["broken.yaml"]),
    "code": ("_target_: !!python/object/apply:os.system ['exit']\n", ["python/object/apply"]),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_file_of_configuration_that_cannot_be_read_is_named(
    case: str, run_command: Callable[..., Outcome], tmp_path: Path
) -> None:
    content, parts = OPTIONS[case]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "broken.yaml").write_text(content)
    before = sorted(tmp_path.rglob("*"))
    outcome = run_command("train", "--config-dir", str(tmp_path), "model=broken", f"experiments_dir={tmp_path / 'x'}")
    assert_one_line(outcome, *parts)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "case", ["a tab", "a duplicate key", "an unclosed list", "a list", "text", "nothing", "binary"]
)
def test_a_recorded_configuration_that_cannot_be_read_is_named(
    case: str, run: Path, run_command: Callable[..., Outcome]
) -> None:
    (run / "config.yaml").write_text(OPTIONS[case][0])
    before = files_of(run)
    for command in (["evaluate", f"run={run}"], ["train", f"resume={run}", "trainer.epochs=3"]):
        assert_one_line(run_command(*command), "config.yaml cannot be read")
    assert files_of(run) == before


# --------------------------------------------------------------------------------------------------------------- paths


def test_odd_names_of_folders_are_no_mistake(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    folder = tmp_path / "a folder, with 'quotes' & $HOME #1 (ünï = ✓)"
    quoted = str(folder).replace("'", "\\'")
    small = ["data=quadratic", "trainer.epochs=1", "trainer.images=false", "trainer.device=cpu", "name=x"]
    outcome = run_command("train", *small, f"experiments_dir='{quoted}'")
    assert outcome.code == 0, outcome.err
    (run,) = folder.glob("x/*")
    quoted = str(run).replace("'", "\\'")
    assert run_command("evaluate", f"run='{quoted}'").code == 0
    assert run_command("train", f"resume='{quoted}'", "trainer.epochs=2").code == 0
    assert load_run(run)[1].trainer.epochs == 2


@pytest.mark.parametrize("key", ["experiments_dir", "resume", "data.root"])
def test_a_path_that_is_too_long_is_one_line(key: str, run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    for name in ("x" * 300, "x/" * 3000):
        outcome = run_command(
            "train", "data=image_folder" if key == "data.root" else "seed=0", f"{key}={tmp_path}/{name}"
        )
        assert_one_line(outcome, "too long", code=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["a folder", "proc"])
def test_output_that_is_read_only_is_one_line(place: str, run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    folder = tmp_path / "read-only" if place == "a folder" else Path("/proc/nowhere")
    if place == "a folder":
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        folder.mkdir(mode=0o555)
    elif not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    outcome = run_command("train", "data=quadratic", f"experiments_dir={folder}")
    assert_one_line(outcome, str(folder), code=1)
    assert not folder.exists() or not list(folder.iterdir())


def test_a_run_that_is_read_only_is_evaluated_in_one_line(
    run: Path, run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a read-only file system, also for root."""
    open_file = Path.open

    def refuse(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if "w" in mode and path.is_relative_to(run):
            raise OSError(30, "Read-only file system", str(path))
        return open_file(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert_one_line(run_command("evaluate", f"run={run}"), "evaluation.json", "Read-only file system", code=1)
    assert not list(run.glob("*evaluation*"))


def test_files_where_folders_should_be_are_one_line(
    run: Path, run_command: Callable[..., Outcome], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert_one_line(run_command("evaluate", f"run={file}"), "file", "no config.yaml")
    assert_one_line(run_command("evaluate", f"run={file}/x"), "file/x", "does not exist")
    assert_one_line(run_command("train", f"resume={file}"), "file", "no config.yaml")
    assert_one_line(run_command("train", "data=quadratic", f"experiments_dir={file}"), str(file), code=1)
    assert_one_line(run_command("train", "data=image_folder", f"data.root={file}"), str(file), "train/<class>")
    for name in ("last.pt", "config.yaml", "provenance.json"):
        whole = (run / name).read_bytes()
        (run / name).unlink()
        (run / name).mkdir()
        outcome = run_command("train", f"resume={run}", "trainer.epochs=3")
        assert outcome.code in (1, 2), outcome.err
        (line,) = [line for line in outcome.err.strip().splitlines() if not line.startswith("WARNING")]
        assert name in line
        (run / name).rmdir()
        (run / name).write_bytes(whole)
    assert file.read_text() == "mine"
