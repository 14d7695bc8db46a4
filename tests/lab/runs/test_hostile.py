"""A run directory from someone else: whatever it holds, nothing of it is executed, and nothing outside of it is written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Outcome
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

import train
from evaluate import evaluate_run, export_run, load_config, load_run
from lab.config.targets import SLOTS
from lab.runs.checkpoint import MARK, load_tensors, save_tensors
from lab.runs.directory import finished_result, is_of_other_code, what_is_left
from lab.runs.logger import last_record
from lab.runs.reading import read_run
from model.cache import decode_once
from model.datasets import image_folder
from utils import UserError, write_file, write_json

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest run."""
    folder = tmp_path_factory.mktemp("original")
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["data=quadratic", "data.num_examples=20", "trainer.epochs=2", "trainer.images=false", "name=run"]
        patch.setattr(sys, "argv", ["train.py", *arguments, "trainer.device=cpu", f"experiments_dir={folder}"])
        GlobalHydra.instance().clear()
        train.main()
    (directory,) = (folder / "run").iterdir()
    return directory


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """The run as it came: a folder among one's own experiments."""
    return Path(shutil.copytree(original, tmp_path / "experiments" / "received" / "run"))


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


def test_what_honest_runs_allow(run: Path, use: Callable[[Path], dict[str, Outcome]], marker: Path) -> None:
    """Or the refusals below would say little."""
    assert [outcome.code for outcome in use(run).values()] == [0, 0, 0]
    assert (run / "evaluation.json").exists() and last_record(run)["epoch"] == 3


# ------------------------------------------------------------------------------------------------------------- pickles


class Payload:
    """Pickled, it is a call of os.system."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.marker}'",)


def zipped(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def tarred(content: bytes) -> bytes:
    """The format of PyTorch's first versions."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


PICKLES: dict[str, Callable[[Payload], bytes]] = {
    "raw": pickle.dumps,
    "raw, old protocol": lambda payload: pickle.dumps({"model": payload}, protocol=0),
    "zip": zipped,
    "zip, within a state": lambda payload: zipped({"model": {"weight": payload}, "progress": {"epoch": 1}}),
    "before zip": lambda payload: zipped(payload, _use_new_zipfile_serialization=False),
    "tar": lambda payload: tarred(pickle.dumps(payload)),
}


def sealed(content: bytes) -> bytes:
    """With the SHA-256 that a whole checkpoint ends with."""
    if content.startswith(b"PK"):
        content = content[:-2] + (len(MARK) + 64).to_bytes(2, "little")
    return content + MARK + hashlib.sha256(content).hexdigest().encode()


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_is_not_executed(kind: str, run: Path, marker: Path) -> None:
    content = PICKLES[kind](Payload(marker))
    for damage in (content, sealed(content)):
        for name in ("best.pt", "last.pt"):
            (run / name).write_bytes(damage)
            with pytest.raises(UserError, match=name):
                load_tensors(run / name)
            with pytest.raises(UserError, match=name):
                load_run(run, name[:-3])


def test_the_payload_is_one(tmp_path: Path) -> None:
    pickle.loads(PICKLES["raw"](Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["raw", "zip, within a state"])
def test_no_command_executes_a_pickle(
    kind: str, run: Path, use: Callable[[Path], dict[str, Outcome]], marker: Path
) -> None:
    metrics = (run / "metrics.jsonl").read_bytes()
    for name in ("best.pt", "last.pt", "before.pt"):
        (run / name).write_bytes(sealed(PICKLES[kind](Payload(marker))))
    outcomes = use(run)
    assert (outcomes["evaluate"].code, outcomes["resume"].code) == (2, 2)
    assert "more than tensors and plain types" in outcomes["evaluate"].err
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_pickles_under_other_names_are_not_looked_at(
    run: Path, use: Callable[[Path], dict[str, Outcome]], marker: Path
) -> None:
    for kind, name in enumerate(
        ["model.pkl", "study.pkl", "model.pt2", "events.out.tfevents.0.x", "uncommitted.patch"]
    ):
        (run / name).write_bytes(list(PICKLES.values())[kind](Payload(marker)))
    (run / ".hydra").mkdir()
    (run / ".hydra" / "config.yaml").write_text(f"_target_: os.system\ncommand: touch '{marker}'\n")
    assert [outcome.code for outcome in use(run).values()] == [0, 0, 0]


# ------------------------------------------------------------------------------------------------------- configurations

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


# ---------------------------------------------------------------------------------------------------------------- links

LINKS = [
    *("metrics.jsonl", "train.log", "status.json", "config.yaml", "provenance.json", "metrics.json", "evaluation.json"),
    *("best.pt", "last.pt", "before.pt", ".lock", ".lock.owner", ".config.yaml.tmp", ".evaluation.json.tmp"),
    *("events.out.tfevents.1.x.2", "learning_curves.png", "projector_config.pbtxt", ".model.safetensors", "00000/x"),
]


@pytest.mark.parametrize("name", LINKS)
def test_nothing_is_written_through_a_link(name: str, run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "thesis"
    path = run / name
    path.parent.mkdir(exist_ok=True)
    content = path.read_bytes() if path.exists() else b"my thesis"
    victim.write_bytes(content)
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    before = {file.name: file.lstat().st_mtime_ns for file in run.iterdir()}
    for write in (
        lambda: go_on(run),
        lambda: evaluate_run(run, device="cpu"),
        lambda: export_run(run, "best", "test", form="torch_export"),
    ):
        with pytest.raises(UserError, match="is no file but a link") as caught:
            write()
        assert str(path) in str(caught.value)
    assert victim.read_bytes() == content and path.is_symlink()
    assert {file.name: file.lstat().st_mtime_ns for file in run.iterdir()} == before
    load_run(run, "best")  # reading does no harm


def go_on(run: Path) -> None:
    """What `resume=run trainer.epochs=3` does, without the command line."""
    cfg = load_config(run)
    cfg.trainer.epochs = 3
    train.train(cfg, run)


def test_nothing_is_written_into_a_folder_that_is_a_link(run: Path, run_command: Callable[..., Outcome]) -> None:
    victim = run.parent.parent / "mine"
    victim.mkdir()
    (run / "00000").symlink_to(victim)
    assert run_command("evaluate", f"run={run}").code == 2
    assert run_command("train", f"resume={run}", "trainer.epochs=3").code == 2
    assert list(victim.iterdir()) == []


def test_a_temporary_file_that_is_a_link_is_replaced(tmp_path: Path) -> None:
    """Also where tables are written, which is no run directory."""
    (tmp_path / "thesis").write_text("my thesis")
    (tmp_path / ".results.md.tmp").symlink_to(tmp_path / "thesis")
    write_file(tmp_path / "results.md", b"a table")
    assert (tmp_path / "thesis").read_text() == "my thesis"
    assert (tmp_path / "results.md").read_text() == "a table"


def test_decoded_images_are_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "a" / "0.png")
    images, cache = image_folder("train", str(tmp_path), image_size=4), tmp_path / "cache"
    (path,) = [decode_once(images, cache).pixels, *cache.glob("*.pixels")][1:]
    path.unlink()
    (tmp_path / "thesis").write_bytes(b"my thesis" * 10)
    (cache / f".{path.name}.tmp").symlink_to(tmp_path / "thesis")
    assert len(decode_once(images, cache).pixels) == 1
    assert (tmp_path / "thesis").read_bytes() == b"my thesis" * 10


@pytest.mark.parametrize("name", ["best.pt", "config.yaml"])
def test_what_never_ends_is_not_read(name: str, run: Path) -> None:
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            load_run(run)


# ----------------------------------------------------------------------------------------------------- the other records

GARBAGE = {
    "empty": b"",
    "cut": b'{"state": "fin',
    "a list": b"[1, 2]",
    "a number": b"3",
    "null": b"null",
    "binary": b"\xff\xfe\x00",
    "depth": b"[" * 100_000,
    "digits": b'{"epoch": ' + b"9" * 5000 + b"}",
    "other types": b'{"state": {"a": 1}, "best": 3, "final": [], "data_sha256": 1, "resumed": 2, "epoch": {}}',
    "types within": b'{"state": "finished", "best": {"epoch": []}, "final": {"epoch": "x"}, "data_sha256": "", "epoch": 1}',
    "infinity": b'{"epoch": 1e999, "val/loss": NaN, "step": -1e999}',
    "escapes": b'{"state": "\\u001b[31m\\u0007", "epoch": 1, "val/\\u001b]0;x": 1}',
}


@pytest.mark.parametrize("content", GARBAGE)
def test_garbage_in_a_record_is_named_or_left_out(content: str, run: Path) -> None:
    cfg = load_config(run)
    for name in ("status.json", "provenance.json", "metrics.json", "metrics.jsonl", "evaluation.json"):
        whole = (run / name).read_bytes() if (run / name).exists() else None
        (run / name).write_bytes(GARBAGE[content])
        for ask in (
            lambda: finished_result(cfg, run),
            lambda: is_of_other_code(run, {"git_commit": "0"}),
            lambda: what_is_left(run),
            lambda: last_record(run),
        ):
            try:
                ask()
            except UserError as error:
                assert name in str(error) and "\n" not in str(error)
        assert read_run(run, run.parent).problem or name in ("provenance.json", "metrics.jsonl", "status.json")
        (run / name).unlink() if whole is None else (run / name).write_bytes(whole)


@pytest.mark.parametrize("name", ["status.json", "provenance.json", "metrics.json", "metrics.jsonl", "overrides.yaml"])
def test_a_run_with_garbage_in_a_record_ends_in_order(
    name: str, run: Path, run_command: Callable[..., Outcome]
) -> None:
    (run / name).write_bytes(GARBAGE["types within"] + b"\n")
    assert_orderly(run_command("train", f"resume={run}", "trainer.epochs=3"), name)


STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no spec": lambda state: state.pop("spec"),
    "a spec of other types": lambda state: state["spec"].update(input_shape="abc"),
    "a spec of an unknown task": lambda state: state["spec"].update(task="x"),
    "a spec of another size": lambda state: state["spec"].update(output_size=10**15),
    "a spec with other keys": lambda state: state["spec"].update(payload=1),
    "a spec that is none": lambda state: state.update(spec=torch.zeros(3)),
    "names without end": lambda state: state["spec"].update(classes=["\x1b[31m"] * 1000),
    "no progress": lambda state: state.pop("progress"),
    "progress of other types": lambda state: state.update(progress={"epoch": "x"}),
    "a format that is none": lambda state: state.update(format="x"),
    "weights of other types": lambda state: state["model"].update({"fc1.weight": "x"}),
    "weights that are none": lambda state: state.update(model=3),
    "an optimizer that is none": lambda state: state.update(optimizer=[1]),
    "a schedule that is none": lambda state: state.update(schedule="x"),
    "random states that are none": lambda state: state["processes"]["states"][0].update(random={"python": 1}),
    "no processes": lambda state: state.update(processes={"states": []}),
    "sizes below nothing": lambda state: state.update(log={"metrics.jsonl": -1}),
    "sizes of other types": lambda state: state.update(log={"metrics.jsonl": "x"}),
    "sizes of files elsewhere": lambda state: state.update(log={"../../thesis": 0, "/etc/passwd": 0}),
}


@pytest.mark.parametrize("case", STATES)
def test_a_whole_checkpoint_that_no_run_wrote(case: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "experiments" / "thesis").write_text("mine")
    state = load_tensors(run / "last.pt")
    STATES[case](state)
    for name in ("best.pt", "last.pt"):
        save_tensors(run / name, state)
    (run / "before.pt").unlink()
    for ask in (lambda: go_on(run), lambda: evaluate_run(run, device="cpu")):
        try:
            ask()
        except Exception as error:
            assert getattr(error, "for_user", False) and "\n" not in str(error), error
    assert (tmp_path / "experiments" / "thesis").read_text() == "mine"


def test_names_are_shown_and_written_as_text(
    run: Path, use: Callable[[Path], dict[str, Outcome]], marker: Path, tmp_path: Path
) -> None:
    hostile = f"<script>alert(1)</script>\x1b]0;x\x07 $(touch '{marker}') `touch '{marker}'` \\input{{x}} | & ; %s"
    for key in ("data__root", "model__activation", "trainer__loss", "experiments_dir"):
        change_config(run, **{key: f"{hostile} {key}"})
    write_json(run / "provenance.json", json.loads((run / "provenance.json").read_text()) | {"command": [hostile]})
    (run / "overrides.yaml").write_text(json.dumps([f"name={hostile}", "$(touch executed)"]))
    (run / "train.log").write_text(hostile)
    outcomes = use(run)
    assert outcomes["tabulate"].code == 0
    for path in (path for path in run.parent.glob("results*") if path.suffix != ".png"):
        assert b"<script>alert" not in path.read_bytes() and b"\x1b" not in path.read_bytes(), path.name
