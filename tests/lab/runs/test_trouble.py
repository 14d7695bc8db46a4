"""What goes wrong around a run ends it in one line that helps, and leaves what can go on."""

from __future__ import annotations

import errno
import os
import platform
import resource
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome, read_lines
from test_mistakes import assert_one_line
from test_resume import SHORT, outcome_of
from test_survival import NO_OPTIONS, STEPS_PER_EPOCH, assert_same, fork
from test_train import only_run, read, weights_of
from torch import nn

from evaluate import load_config
from lab.devices import signals as stopping
from lab.runs.checkpoint import FORMAT, load_tensors, save_tensors
from lab.runs.lock import locked
from lab.runs.progress import Measured
from lab.runs.run import Run
from model.net import MLP, DataSpec


@pytest.fixture
def try_short(run_command: Callable[..., Outcome], tmp_path: Path) -> Callable[..., Outcome]:
    """try_short(...) trains 4 epochs of 5 steps below tmp_path/experiments, or not; its outcome."""

    def run(*arguments: str, name: str = "run") -> Outcome:
        fixed = [f"experiments_dir={tmp_path / 'experiments'}", f"name={name}", "trainer.device=cpu"]
        return run_command("train", *fixed, "trainer.images=false", "model.dropout=0.3", *SHORT, *arguments)

    return run


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """What the run of `try_short` comes to, once one has ended; empty before."""
    yield []


def at_step(step: int, happens: Callable[[Run], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets something happen to a run after a step, before what follows it."""
    after_step = Run.after_step

    def disturbed(self: Run) -> None:
        if self.progress.step == step:
            happens(self)
        after_step(self)

    monkeypatch.setattr(Run, "after_step", disturbed)


@pytest.fixture
def goes_on_exactly(
    try_short: Callable[..., Outcome], run_command: Callable[..., Outcome], calm: list[dict[str, Any]], tmp_path: Path
) -> Callable[[], None]:
    """Says whether the run of `try_short`, resumed, comes to what one comes to that nothing happens to."""

    def check() -> None:
        if not calm:
            assert try_short(name="calm").code == 0
            calm.append(outcome_of(next((tmp_path / "experiments" / "calm").iterdir())))
        again = run_command("train", f"resume={only_run(tmp_path)}")
        assert again.code == 0, again.err
        assert_same(outcome_of(only_run(tmp_path)), calm[0])

    return check


# ------------------------------------------------------------------------------------------------------------- signals


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


def send_when_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends SIGTERM in the middle of the next file that is written."""
    sync = os.fsync

    def sync_and_send(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        send(signal.SIGTERM)

    monkeypatch.setattr(os, "fsync", sync_and_send)


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGUSR2, 140)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_signal_ends_a_run_after_its_step(
    signum: signal.Signals,
    code: int,
    try_short: Callable[..., Outcome],
    run_command: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With its checkpoint on the disk, when the handler that was there before is called; the command that it says works."""
    seen = []

    def handle(number: int, _: Any) -> None:
        run = only_run(tmp_path)
        seen.append((number, read(run / "status.json")["state"], load_tensors(run / "last.pt")["progress"]["step"]))

    at_step(7, lambda run: send(signum), monkeypatch)
    before = signal.signal(signum, handle)
    try:
        outcome = try_short()
    finally:
        signal.signal(signum, before)
    monkeypatch.undo()
    assert outcome.code == code
    assert seen == [(signum, "interrupted", 7)]
    assert read(only_run(tmp_path) / "status.json")["step"] == 7
    assert outcome.err.strip() == "train.py: interrupted"
    command = shlex.split(outcome.out.split("go on with: ")[1].splitlines()[0])
    assert command[:2] == ["python", "train.py"]
    assert (
        run_command("train", *command[2:], "dry_run=true").out.strip().endswith("goes on (interrupted after epoch 1)")
    )


def test_a_second_signal_ends_a_run_at_once(
    try_short: Callable[..., Outcome],
    goes_on_exactly: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stopping, "SECONDS_OF_ONE", 0)
    at_step(7, lambda run: (send(signal.SIGUSR1), send(signal.SIGTERM)), monkeypatch)
    outcome = try_short()
    assert outcome.code == 143
    status = read(only_run(tmp_path) / "status.json")
    assert (status["state"], status["step"]) == ("interrupted", 7)
    assert load_tensors(only_run(tmp_path) / "last.pt")["progress"]["step"] == STEPS_PER_EPOCH
    monkeypatch.undo()
    goes_on_exactly()


def test_a_second_signal_during_the_checkpoint_of_the_first_does_no_harm(
    try_short: Callable[..., Outcome],
    goes_on_exactly: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stopping, "SECONDS_OF_ONE", 0)

    def disturb(run: Run) -> None:
        send(signal.SIGTERM)
        send_when_it_writes(monkeypatch)

    at_step(7, disturb, monkeypatch)
    assert try_short().code == 143
    assert load_tensors(only_run(tmp_path) / "last.pt")["progress"]["step"] == STEPS_PER_EPOCH
    assert not list(only_run(tmp_path).glob(".*.tmp"))
    monkeypatch.undo()
    goes_on_exactly()


def test_a_signal_during_a_periodic_checkpoint_is_not_forgotten(
    try_short: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(6, lambda run: send_when_it_writes(monkeypatch), monkeypatch)
    assert try_short("trainer.checkpoint_every=6").code == 143
    assert load_tensors(only_run(tmp_path) / "last.pt")["progress"]["step"] == 7


# --------------------------------------------------------------------------------------------- files that cannot be written


@pytest.fixture
def unlimited() -> Iterator[None]:
    """Puts the largest size of a file back to what it was."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def limit_size(size: int) -> None:
    """Makes every file end at a size, as a full disk would."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def refuse(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets no file be made any more."""
    open_path: Callable[..., Any] = Path.open

    def refused(self: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        if mode.startswith("w"):
            raise OSError(number, os.strerror(number))
        return open_path(self, mode, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", refused)


DISKS: dict[str, tuple[Callable[[Run, pytest.MonkeyPatch], Any], list[str]]] = {
    "full for the checkpoint": (lambda run, patch: limit_size(100_000), ["last.pt", "File too large"]),
    "full for TensorBoard": (lambda run, patch: limit_size(6_000), ["events.out.tfevents", "File too large"]),
    "full for all": (lambda run, patch: limit_size(1), ["File too large"]),
    "read-only": (lambda run, patch: refuse(errno.EROFS, patch), ["metrics.json", "Read-only file system"]),
    "forbidden": (lambda run, patch: refuse(errno.EACCES, patch), ["metrics.json", "Permission denied"]),
}


@pytest.mark.parametrize("disk", DISKS)
def test_a_disk_that_takes_no_more_leaves_the_checkpoint(
    disk: str,
    try_short: Callable[..., Outcome],
    goes_on_exactly: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unlimited: None,
) -> None:
    happens, parts = DISKS[disk]
    at_step(7, lambda run: happens(run, monkeypatch), monkeypatch)
    outcome = try_short()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.undo()
    assert_one_line(Outcome(outcome.code, "", outcome.err), *parts, "MiB are free there", "can go on", code=1)
    assert load_tensors(only_run(tmp_path) / "last.pt")["progress"]["step"] == STEPS_PER_EPOCH
    assert not list(only_run(tmp_path).glob(".*.tmp"))
    goes_on_exactly()


def test_a_folder_that_vanishes_is_said_to_be_gone(
    try_short: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(7, lambda run: shutil.rmtree(run.directory), monkeypatch)
    outcome = try_short()
    assert_one_line(Outcome(outcome.code, "", outcome.err), "/experiments/run/", "is gone", code=1)
    assert list((tmp_path / "experiments" / "run").iterdir()) == []


# --------------------------------------------------------------------------------------------------------------- damage


def flip(path: Path) -> None:
    """Changes a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


@pytest.fixture
def stopped(try_short: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was asked to stop after step 12, with the checkpoint of step 10 before that one."""
    at_step(12, lambda run: send(signal.SIGTERM), monkeypatch)
    assert try_short().code == 143
    monkeypatch.undo()
    return only_run(tmp_path)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


@pytest.mark.parametrize("harm", [flip, Path.unlink, lambda path: path.write_bytes(b"")], ids=["flip", "gone", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    harm: Callable[[Path], Any],
    stopped: Path,
    goes_on_exactly: Callable[[], None],
    run_command: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harm(stopped / "last.pt")
    (stopped / ".last.pt.tmp").write_bytes(b"what a kill has left")
    at_step(11, lambda run: send(signal.SIGTERM), monkeypatch)
    outcome = run_command("train", f"resume={stopped}")
    monkeypatch.undo()
    assert "WARNING" in outcome.err and "last.pt" in outcome.err and "the checkpoint before it" in outcome.err
    assert "WARNING" not in outcome.out and (stopped / "train.log").read_text().count("the checkpoint before it") == 1
    assert "going on after epoch 2, step 10" in outcome.out
    assert load_tensors(stopped / "before.pt")["progress"]["step"] == 10, (
        "the one that it went back to, not the damaged one"
    )
    assert not list(stopped.glob(".*.tmp"))
    goes_on_exactly()


def test_without_a_whole_checkpoint_nothing_is_changed(stopped: Path, run_command: Callable[..., Outcome]) -> None:
    for name in ("last.pt", "before.pt"):
        flip(stopped / name)
    before = contents(stopped)
    assert_one_line(run_command("train", f"resume={stopped}"), "last.pt is damaged", "before.pt is damaged")
    assert contents(stopped) == before


def test_damaged_best_weights_are_warned_of(
    stopped: Path, run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(stopped / "best.pt")
    at_step(13, lambda run: send(signal.SIGTERM), monkeypatch)
    outcome = run_command("train", f"resume={stopped}")
    assert "WARNING" in outcome.err and "best.pt is damaged" in outcome.err
    assert_one_line(run_command("evaluate", f"run={stopped}"), "best.pt is damaged")


def test_a_file_that_was_asked_for_is_not_replaced_by_another(
    stopped: Path, run_command: Callable[..., Outcome]
) -> None:
    assert run_command("evaluate", f"run={stopped}", "checkpoint=last").code == 0
    flip(stopped / "last.pt")
    before = contents(stopped)
    assert_one_line(run_command("evaluate", f"run={stopped}", "checkpoint=last"), "last.pt is damaged")
    assert contents(stopped) == before


def test_a_checkpoint_of_a_newer_version_is_refused(stopped: Path, run_command: Callable[..., Outcome]) -> None:
    save_tensors(stopped / "last.pt", load_tensors(stopped / "last.pt") | {"format": FORMAT + 1})
    before = contents(stopped)
    assert_one_line(run_command("train", f"resume={stopped}"), f"has the format {FORMAT + 1}", "newer version")
    assert contents(stopped) == before


def test_a_run_is_written_by_one_process_at_a_time(stopped: Path, run_command: Callable[..., Outcome]) -> None:
    """Another is refused, and told who writes it; the lock of a process that was killed does not count."""
    reader, writer = os.pipe()

    def hold() -> None:
        with locked(stopped):
            os.write(writer, b"held")
            signal.pause()

    pid = fork(hold)
    try:
        assert os.read(reader, 4) == b"held"
        before = contents(stopped)
        assert_one_line(run_command("train", f"resume={stopped}"), f"by process {pid} on {platform.node()}")
        assert contents(stopped) == before
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert (stopped / ".lock.owner").exists()
    assert run_command("train", f"resume={stopped}").code == 0


# ---------------------------------------------------------------------------------------------- numbers that are not finite


class Spoil(torch.autograd.Function):
    """Its input, or zeros for it; its gradient is some number."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gradient: float, is_dead: bool) -> torch.Tensor:
        ctx.gradient = gradient
        return torch.zeros_like(x) if is_dead else x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return torch.full_like(gradients[0], ctx.gradient), None, None


class Spoiled(MLP):
    """A network one of whose weights gets a gradient of nan (or inf) in the 7th step, while the loss stays a number.

    is_dead: nothing depends on that weight, so that no loss ever shows it.
    """

    def __init__(self, spec: DataSpec, *, infinite: bool = False, is_dead: bool = False) -> None:
        super().__init__(spec)
        self.bias, self.is_dead, self.num_steps = nn.Parameter(torch.zeros(1)), is_dead, 0
        self.gradient = float("inf" if infinite else "nan")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_steps += self.training and torch.is_grad_enabled()
        bias = Spoil.apply(self.bias, self.gradient, self.is_dead) if self.num_steps == 7 else self.bias
        return super().forward(x) + (0 if self.is_dead and self.num_steps != 7 else bias)


SPOILED = ["model._target_=test_trouble.Spoiled", *NO_OPTIONS, "optimizer=sgd"]
STEP_7, STEP_8 = (f"epoch 2, step {step} (batch {step - STEPS_PER_EPOCH} of the epoch)" for step in (7, 8))
# What is asked for -> what is said, and the step of the checkpoint that is left.
DIVERGED: dict[str, tuple[list[str], str, int]] = {
    "nan, seen in a checkpoint": (["trainer.checkpoint_every=1"], f"a weight is not finite at {STEP_7}", 6),
    "inf, seen in a checkpoint": (["+model.infinite=true", "trainer.checkpoint_every=1"], f"not finite at {STEP_7}", 6),
    "nan, seen in the next loss": ([], f"the loss is nan at {STEP_8}", 5),
    "inf, seen in the next loss": (["+model.infinite=true"], f"the loss is nan at {STEP_8}", 5),
    "seen in no loss": (["+model.is_dead=true"], "a weight is not finite at the end of epoch 2, step 10", 5),
}


@pytest.mark.parametrize("case", DIVERGED)
def test_a_gradient_that_is_not_finite_ends_a_run_before_it_is_kept(
    case: str, try_short: Callable[..., Outcome], tmp_path: Path
) -> None:
    arguments, said, step = DIVERGED[case]
    outcome = try_short(*SPOILED, *arguments, "trainer.log_every=50")
    run = only_run(tmp_path)
    assert_one_line(Outcome(outcome.code, "", outcome.err), said, "optimizer.lr", code=1)
    assert read(run / "status.json")["state"] == "diverged"
    assert said in read(run / "status.json")["error"]
    assert load_tensors(run / "last.pt")["progress"]["step"] == step
    assert read(run / "metrics.json")["best"]["epoch"] == 1
    for path in run.glob("*.pt"):
        assert all(tensor.isfinite().all() for tensor in weights_of(path).values()), path.name


def test_a_loss_that_is_not_finite_becomes_no_checkpoint(
    try_short: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, calls = Measured.add, []

    def spoiled(self: Measured, losses: torch.Tensor, *rest: Any, **keywords: Any) -> None:
        calls.append(1)
        add(self, losses * (float("nan") if len(calls) == 7 else 1), *rest, **keywords)

    monkeypatch.setattr(Measured, "add", spoiled)
    outcome = try_short("trainer.checkpoint_every=1", "trainer.log_every=50")
    assert_one_line(Outcome(outcome.code, "", outcome.err), f"the loss is nan at {STEP_7}", code=1)
    assert load_tensors(only_run(tmp_path) / "last.pt")["progress"]["step"] == 6


# --------------------------------------------------------------------------------------------------------------- memory


class Greedy(MLP):
    """A network that asks for a petabyte in its 7th training step."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.num_steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_steps += self.training and torch.is_grad_enabled()
        return super().forward(x) + (torch.empty(2**50).sum() if self.num_steps == 7 else 0)


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_out_of_memory_says_what_to_turn_down(
    where: str, try_short: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(run: Run) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee the documentation")

    if where == "gpu":
        at_step(7, exhaust, monkeypatch)
    outcome = try_short(*["model._target_=test_trouble.Greedy", *NO_OPTIONS] * (where == "cpu"))
    status = read(only_run(tmp_path) / "status.json")
    assert_one_line(Outcome(outcome.code, "", outcome.err), "out of memory", "data.batch_size (it is 64)", code=1)
    assert status["state"] == "failed"
    assert "turn down data.batch_size (it is 64)" in status["error"] and "\n" not in status["error"]
    assert load_tensors(only_run(tmp_path) / "last.pt")["progress"]["step"] == STEPS_PER_EPOCH


# ---------------------------------------------------------------------------------------------------------- more epochs


def test_so_many_more_epochs(
    try_short: Callable[..., Outcome],
    goes_on_exactly: Callable[[], None],
    run_command: Callable[..., Outcome],
    tmp_path: Path,
) -> None:
    assert try_short("trainer.epochs=2").code == 0
    again = run_command("train", f"resume={only_run(tmp_path)}", "trainer.epochs=+2", "dry_run=true")
    assert again.out.strip().endswith("goes on (finished after epoch 2)")
    assert run_command("train", f"resume={only_run(tmp_path)}", "trainer.epochs=+1").code == 0
    assert load_config(only_run(tmp_path)).trainer.epochs == 3
    assert run_command("train", f"resume={only_run(tmp_path)}", "trainer.epochs=+1").code == 0
    goes_on_exactly()
    assert [record["epoch"] for record in read_lines(only_run(tmp_path) / "metrics.jsonl")] == [1, 2, 3, 4]


def test_more_epochs_of_a_schedule_that_is_a_share_of_them_are_refused(
    try_short: Callable[..., Outcome], run_command: Callable[..., Outcome], tmp_path: Path
) -> None:
    assert try_short("trainer.epochs=1", "scheduler=cosine").code == 0
    before = contents(only_run(tmp_path))
    outcome = run_command("train", f"resume={only_run(tmp_path)}", "trainer.epochs=+3")
    assert_one_line(outcome, "started for 1 epochs", "scheduler.T_max=100%", "4 epochs would be another run")
    assert contents(only_run(tmp_path)) == before
