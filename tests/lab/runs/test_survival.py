"""A run that is killed goes on as if it had not been, wherever that was; and the tests that say so would notice."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import mmap
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401  these here, so that no forked process imports them for itself
import torch
import torch._dynamo
import torch.utils.tensorboard
from conftest import read_lines
from helpers.processes import is_alive, needs_proc, wait_until
from omegaconf import DictConfig
from test_resume import SHORT, VARIANTS, Killed, kill_after, outcome_of, same
from test_train import compose

import train
from evaluate import Means, load_config
from lab.config.command import checked
from lab.config.schedule import Schedule
from lab.config.schema import TrainConfig
from lab.plots import pictures
from lab.runs import provenance
from lab.runs.directory import recorded_part
from lab.runs.logger import RunLogger
from lab.runs.progress import Measured, Progress
from lab.runs.run import Run
from model.net import MLP, DataSpec
from utils import Damaged, RandomState, load_tensors, read_whole

NO_OPTIONS = ["~model.hidden_sizes", "~model.activation", "~model.dropout", "~model.output"]
STEPS_PER_EPOCH = 5  # of 300 examples, 64 at a time


def configuration(*overrides: str) -> DictConfig:
    fixed = ["trainer.images=false", "trainer.device=cpu", *SHORT]
    return checked(recorded_part(compose(*fixed, *overrides)), TrainConfig)


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the disk: what a process gave to the kernel survives its death, if not the machine's."""
    code = provenance.code_state()
    monkeypatch.setattr(provenance, "code_state", lambda: code)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def whole_run(cfg: DictConfig, directory: Path) -> dict[str, Any]:
    """What a run comes to that nothing happens to."""
    train.train(cfg, directory)
    return outcome_of(directory)


def assert_same(outcome: dict[str, Any], expected: dict[str, Any]) -> None:
    assert outcome.keys() == expected.keys()
    for what in expected:
        assert same(outcome[what], expected[what]), what


# ------------------------------------------------------------------------------- the test of equality is known to see


class Moody(MLP):
    """A network that draws from every generator when it trains, and is best at the end of the second epoch."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec, dropout=0.3)
        self.register_buffer("num_steps", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_steps += int(self.training and torch.is_grad_enabled())
        noise = (random.random() + np.random.random()) * self.training
        sign = 1 if self.num_steps <= 2 * STEPS_PER_EPOCH else -1
        return super().forward(x + noise) * sign


MOODY = ["model._target_=test_survival.Moody", *NO_OPTIONS, "optimizer.lr=0.01", "scheduler=cosine"]
MOODY += ["trainer.precision=fp16", "trainer.animate=true"]


def never(*_: Any, **__: Any) -> Any:
    raise Killed


# How a run of 4 epochs ends: what it is told about checkpoints, and what kills it.
ENDS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "in epoch 4": ("17", lambda patch: kill_after(19, patch)),  # logs step 18 after its checkpoint
    "before it measures epoch 1": ("5", lambda patch: patch.setattr(train, "validate", never)),
    "before its last words": ("17", lambda patch: patch.setattr(train, "check_outcome", never)),
}
# What is left out of the state that is restored -> what restores it.
PARTS: dict[str, type] = {
    "model": torch.nn.Module,
    "optimizer": torch.optim.Optimizer,
    "schedule": Schedule,
    "scaler": torch.amp.GradScaler,
    "snapshots": pictures.Snapshots,
    "log": RunLogger,
    "measured": Measured,
    "measured.means": Means,
    "measured.recent": Measured,
    "measured.sizes": Measured,
    "random": RandomState,
    "random.python": RandomState,
    "random.numpy": RandomState,
    "random.torch": RandomState,
    **{f"progress.{field.name}": Progress for field in dataclasses.fields(Progress)},
}
END_OF = {"progress.learning_rate": "before it measures epoch 1", "progress.final": "before its last words"}


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """moody(end): (a run that has ended so, what it would have come to)."""
    folder = tmp_path_factory.mktemp("moody")
    expected: dict[str, Any] = {}

    def stopped(end: str) -> tuple[Path, dict[str, Any]]:
        if not expected:
            expected.update(whole_run(configuration(*MOODY), folder / "whole"))
        directory, (every, kill) = folder / end.replace(" ", "-"), ENDS[end]
        if not directory.exists():
            torch.manual_seed(0)
            with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
                kill(patch)
                train.train(configuration(*MOODY, f"trainer.checkpoint_every={every}"), directory)
        return directory, expected

    return stopped


def restored_without(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves a part of the state, or a field of it, as it is in a run that starts."""
    load, (_, _, field) = PARTS[part].load_state_dict, part.partition(".")

    def load_rest(self: Any, state: dict[str, Any], *rest: Any) -> Any:
        if field and part != "measured.means":
            return load(self, state | {field: self.state_dict()[field]}, *rest)
        return None

    monkeypatch.setattr(PARTS[part], "load_state_dict", load_rest)


def go_on(stopped: Path, directory: Path, *overrides: str) -> dict[str, Any]:
    """What a copy of a run comes to when it goes on, in a process whose generators have been used."""
    shutil.copytree(stopped, directory)
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(12345)
    train.train(load_config(directory), directory, overrides)
    return outcome_of(directory)


@pytest.mark.parametrize("end", ENDS)
def test_a_run_with_every_part_goes_on_exactly(end: str, moody: Callable[..., Any], tmp_path: Path) -> None:
    stopped, expected = moody(end)
    assert expected["metrics"]["best"]["epoch"] == 2
    assert_same(go_on(stopped, tmp_path / "again"), expected)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_not_restored_is_missed(
    part: str, moody: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, expected = moody(END_OF.get(part, "in epoch 4"))
    restored_without(part, monkeypatch)
    with pytest.raises((AssertionError, LookupError, ValueError)):  # it ends otherwise, or cannot even go on
        assert_same(go_on(stopped, tmp_path / "again"), expected)


def test_every_part_of_a_checkpoint_was_left_out(moody: Callable[..., Any]) -> None:
    state = load_tensors(moody("in epoch 4")[0] / "last.pt")
    saved = state.keys() - {"format", "spec", "configuration", "processes"} | state["processes"]["states"][0].keys()
    assert saved == {part.partition(".")[0] for part in PARTS}
    assert state["progress"].keys() == {part.partition(".")[2] for part in PARTS if "progress" in part}


# ------------------------------------------------------------------------------------------------------------- SIGKILL


def fork(task: Callable[[], Any]) -> int:
    """Does a task in a new process, which says nothing and whose exit code is 0 if it comes to its end; its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
        task()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)


@dataclasses.dataclass
class Kills:
    """What came of killing runs."""

    kills: int = 0
    runs: int = 0
    most_lost: int = 0  # steps that a kill has cost
    without_checkpoint: int = 0  # kills before the first one


def survive(
    cfg: DictConfig, directory: Path, kills: Kills, *, chance: random.Random, seconds: float, at_most: int
) -> None:
    """Trains in processes that are killed after up to so many seconds, one after the other, until the run finishes."""
    reached = mmap.mmap(-1, 8)  # the latest step, which outlives the process that took it
    epoch = read_lines(directory.parent / "whole" / "metrics.jsonl")[0]["step"]
    bound = min(cfg.trainer.checkpoint_every or epoch, epoch)
    after_step = Run.after_step

    def count(run: Run) -> None:
        reached[:8] = run.progress.step.to_bytes(8, "little")
        after_step(run)

    def work() -> None:
        Run.after_step = count  # type: ignore[method-assign]
        train.train(cfg, directory)

    for number in range(1000):
        pid = fork(work)
        if number < at_most:
            time.sleep(chance.uniform(0, seconds))
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code != -signal.SIGKILL:
            break
        kills.kills += 1
        whole = (directory / "last.pt").exists()
        step = load_tensors(directory / "last.pt")["progress"]["step"] if whole else 0
        kills.without_checkpoint += not whole
        lost = int.from_bytes(reached[:8], "little") - step
        assert 0 <= lost <= bound
        kills.most_lost = max(kills.most_lost, lost)
        reached[:8] = step.to_bytes(8, "little")
    kills.runs += 1
    assert code == 0
    assert not list(directory.glob(".*.tmp"))


def processes_in(session: int) -> list[int]:
    """The processes of a session that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            found += [int(path.parent.name)] * (int(fields[3]) == session and fields[0] != "Z")
    return found


def kill_often(cfg: DictConfig, folder: Path, kills: Kills, *, chance: random.Random, num_kills: int) -> None:
    """Kills runs of a configuration so many times in all, each of which must come to what an undisturbed one does."""
    started = time.perf_counter()
    os.waitpid(fork(lambda: train.train(cfg, folder / "whole")), 0)
    seconds = time.perf_counter() - started
    expected, wanted = outcome_of(folder / "whole"), kills.kills + num_kills
    for number in range(num_kills * 20):
        left = wanted - kills.kills
        if left <= 0:
            break
        survive(cfg, folder / str(number), kills, chance=chance, seconds=seconds, at_most=left)
        assert_same(outcome_of(folder / str(number)), expected)


@pytest.mark.parametrize("variant", ["mlp with dropout", "regression, sgd, passes"])
def test_runs_killed_at_random_end_as_if_left_alone(variant: str, tmp_path: Path) -> None:
    kills = Kills()
    cfg = configuration(*VARIANTS[variant], "trainer.checkpoint_every=2")
    kill_often(cfg, tmp_path, kills, chance=random.Random(0), num_kills=3)
    assert kills.kills == 3


@needs_proc
def test_a_killed_run_leaves_no_process_behind_that_holds_it(
    image_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes that decode images notice within seconds that they are alone; until then they block nothing."""
    monkeypatch.setattr(torch.utils.data._utils.worker, "MP_STATUS_CHECK_INTERVAL", 1.0)
    cfg = configuration(*VARIANTS["image folder, 2 workers"], f"data.root={image_root}")
    expected = whole_run(cfg, tmp_path / "whole")
    pid = fork(lambda: train.train(cfg, tmp_path / "killed"))
    wait_until((tmp_path / "killed" / "last.pt").exists)
    orphans = [process for process in processes_in(pid) if process != pid]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    train.train(cfg, tmp_path / "killed")
    assert_same(outcome_of(tmp_path / "killed"), expected)
    assert len(orphans) == 4, "two for training, two for validation"
    wait_until(lambda: not any(map(is_alive, orphans)), seconds=10)


# ------------------------------------------------------------------------------- a kill at every operation on a file


class Torn:
    """A file that counts each write as two operations: half of what is written, and the rest."""

    def __init__(self, file: Any, count: Callable[[], None]) -> None:
        self.file, self.count = file, count

    def write(self, content: Any) -> None:
        self.count()
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        self.count()
        self.file.write(content[len(content) // 2 :])

    def __enter__(self) -> Torn:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def die_at(number: int, directory: Path) -> Callable[[], None]:
    """In a process to be killed: lets it die before its so-manyth operation that changes a file of a directory.

    What it returns is called to start the counting.
    """
    left = -1  # not counting
    open_path = Path.open

    def count() -> None:
        nonlocal left
        if left > 0:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        is_file = isinstance(arguments[0], (str, Path)) if arguments else False
        writes = event in ("open", "os.rename", "os.link", "os.remove", "os.truncate") and not reads
        if writes and is_file and str(directory) in str(arguments[0]):
            count()

    def open_torn(self: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        file = open_path(self, mode, *arguments, **keywords)
        return file if mode.startswith("r") else Torn(file, count)

    def start() -> None:
        nonlocal left
        left = number

    sys.addaudithook(watch)
    Path.open = open_torn  # type: ignore[method-assign, assignment]
    os.fsync = lambda descriptor: count()
    return start


def kill_at_every_operation(
    cfg: DictConfig,
    stopped: Path,
    folder: Path,
    expected: dict[str, Any],
    start_at: Callable[[Callable[[], None]], None],
) -> int:
    """Kills a copy of a run at each operation on its files after `start_at`; how many there were.

    Each copy must have a checkpoint that loads, and come to what is expected.
    """
    for number in range(1, 1000):
        directory = folder / str(number)
        if stopped.exists():
            shutil.copytree(stopped, directory)

        def work(number: int = number, directory: Path = directory) -> None:
            start_at(die_at(number, directory))
            train.train(cfg, directory)

        code = os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])
        if code == 0:
            return number - 1
        assert code == -signal.SIGKILL
        if stopped.exists():
            load_tensors(directory / "last.pt")
        train.train(cfg, directory)
        assert_same(outcome_of(directory), expected)
        assert not list(directory.glob(".*.tmp"))
        shutil.rmtree(directory)
    raise AssertionError("it never came to its end")


QUADRATIC = ["data=quadratic", "data.passes=2", "data.batch_size=100", "trainer.epochs=2", "trainer.log_every=1"]


def in_the_second_save(start: Callable[[], None]) -> None:
    """Starts something with the second checkpoint of this process, which ends with it."""
    save, calls = Run.save, []

    def counted(self: Run) -> None:
        calls.append(1)
        if len(calls) == 2:
            start()
        save(self)
        if len(calls) == 2:
            os._exit(0)

    Run.save = counted  # type: ignore[method-assign]


def test_a_kill_at_any_operation_of_a_save_leaves_a_checkpoint(tmp_path: Path) -> None:
    cfg = configuration(*QUADRATIC, "trainer.checkpoint_every=1")
    expected = whole_run(cfg, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_after(2, patch)  # the saves of the next process have both last.pt and before.pt to take care of
        train.train(cfg, tmp_path / "stopped")
    num_operations = kill_at_every_operation(
        cfg, tmp_path / "stopped", tmp_path / "killed", expected, in_the_second_save
    )
    # Two logs are synced; last.pt is opened, written in halves, synced, linked, renamed; status.json, but for the link.
    assert num_operations > 15


@pytest.mark.slow
def test_a_kill_at_any_operation_of_a_run_leaves_it_resumable(tmp_path: Path) -> None:
    cfg = configuration(*QUADRATIC, "trainer.checkpoint_every=1")
    expected = whole_run(cfg, tmp_path / "whole")
    nothing = tmp_path / "nothing"
    num_operations = kill_at_every_operation(cfg, nothing, tmp_path / "killed", expected, lambda start: start())
    print(f"killed at {num_operations} operations")
    assert num_operations > 150


# ---------------------------------------------------------------------------------------------------------- bit flips


def test_a_thousand_flipped_bits_are_noticed(tmp_path: Path) -> None:
    train.train(configuration("trainer.epochs=1", "model.hidden_sizes=[16]"), tmp_path)
    chance = random.Random(0)
    for name in ("best.pt", "last.pt"):
        with (tmp_path / name).open("r+b", buffering=0) as file:
            size = len(read_whole(tmp_path / name))
            for _ in range(500):
                position, bit = chance.randrange(size), 1 << chance.randrange(8)
                file.seek(position)
                (byte,) = file.read(1)
                for value in (byte ^ bit, byte):
                    file.seek(position)
                    file.write(bytes([value]))
                    if value != byte:
                        with pytest.raises(Damaged):
                            read_whole(tmp_path / name)
        load_tensors(tmp_path / name)  # put right again


# ------------------------------------------------------------------------------------------------- the long campaign


EVERY = itertools.cycle(["null", "2", "3", "4", "1", "2"])
CAMPAIGN = [
    *([*variant, f"trainer.checkpoint_every={every}"] for variant, every in zip(VARIANTS.values(), EVERY, strict=False)),
    ["experiment=dynamic_net", "trainer.checkpoint_every=2"],
    ["experiment=two_layer_by_hand"],
    ["experiment=gaussians", "trainer.images=true", "trainer.checkpoint_every=1"],
    ["experiment=digits_mlp", "trainer.checkpoint_every=7"],
]  # fmt: skip


@pytest.mark.slow
def test_two_hundred_kills(image_root: Path, tmp_path: Path) -> None:
    """A mix of presets, killed 200 times: as many exact resumptions, and no more lost than the bound."""
    kills, chance = Kills(), random.Random(0)
    for number, overrides in enumerate(CAMPAIGN):
        cfg = configuration(f"data.root={image_root}", *overrides, *SHORT, "trainer.epochs=8")
        share = 200 * (number + 1) // len(CAMPAIGN) - kills.kills
        kill_often(cfg, tmp_path / str(number), kills, chance=chance, num_kills=share)
        print(f"{number + 1}/{len(CAMPAIGN)} {kills}", flush=True)
    assert kills.kills == 200
