"""One job's trouble is its own, and disturbances do not show in the results."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import Outcome, read, read_lines
from helpers.processes import is_alive, needs_proc, wait_until
from helpers.sweeps import OTHER_MODEL, Sweep, make_job, results, states

from lab.runs.lock import locked
from lab.runs.logger import last_record
from lab.sweeps.pool import Running, run_pool


def test_a_job_takes_nothing_else_down(run_sweep: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "trap").touch()
    arguments = ["model._target_=sweep_networks.Trapped", *OTHER_MODEL, f"+model.trap={tmp_path / 'trap'}"]
    arguments += ["+model.harm=refuse,raise,kill,none", "data.batch_size=15"]
    outcome = run_sweep(*arguments, epochs=3)
    assert outcome.code == 1
    assert outcome.err.strip() == "train.py: 3 of 4 jobs failed"
    run = {harm: next(tmp_path.glob(f"study/*harm-{harm}*/seed-0")) for harm in ("refuse", "raise", "kill", "none")}
    status = {harm: read(directory / "status.json") for harm, directory in run.items()}
    assert {harm: one["state"] for harm, one in status.items()} == dict.fromkeys(run, "failed") | {"none": "finished"}
    assert status["refuse"]["error"] == "AssertionError: this network refuses to be made"
    assert status["raise"]["error"] == "ZeroDivisionError: this network divides by zero"
    assert "SIGKILL" in status["kill"]["error"]
    assert status["kill"]["epoch"] == 1  # 8 steps an epoch; the 10th was the end
    report = outcome.out[outcome.out.index("4 jobs:") :]
    for harm in ("refuse", "raise", "kill"):
        assert f"model.harm={harm}: {status[harm]['error']}" in report
        assert os.path.relpath(run[harm] / "train.log") in report or str(run[harm] / "train.log") in report
    for harm in ("refuse", "raise"):
        assert "Traceback" in (run[harm] / "train.log").read_text()

    (tmp_path / "trap").unlink()
    outcome = run_sweep(*arguments, epochs=3)
    assert outcome.code == 0, outcome.err
    assert "4 jobs: 1 were finished, 3 ran, 0 failed" in outcome.out
    assert states(tmp_path) == ["finished"] * 4
    expected = read_lines(run["none"] / "metrics.jsonl")
    assert all(read_lines(directory / "metrics.jsonl") == expected for directory in run.values())


SLOW = ["model._target_=sweep_networks.Slow"]


def trapped(tmp_path: Path, harm: str) -> list[str]:
    """A job whose network comes to harm at its 10th step, in the second of its epochs of 8."""
    (tmp_path / "trap").touch()
    arguments = ["model._target_=sweep_networks.Trapped", *OTHER_MODEL, f"+model.trap={tmp_path / 'trap'}"]
    return [*arguments, f"+model.harm={harm}", "data.batch_size=15"]


def test_what_a_network_does_to_its_process_keeps_no_other_job_waiting(
    run_sweep: Callable[..., Outcome], tmp_path: Path
) -> None:
    """It ends itself, takes itself for interrupted, or leaves a thread behind, in the only place that there is."""
    outcome = run_sweep(*trapped(tmp_path, "exit,interrupt,thread,none"), "hydra.launcher.n_jobs=1", epochs=3)
    assert outcome.code == 1
    run = {harm: next(tmp_path.glob(f"study/*harm-{harm}*/seed-0")) for harm in ("exit", "interrupt", "thread", "none")}
    status = {harm: read(directory / "status.json") for harm, directory in run.items()}
    assert {harm: one["state"] for harm, one in status.items()} == {
        **{"exit": "failed", "interrupt": "failed", "thread": "finished", "none": "finished"}
    }
    assert status["exit"]["error"] == "SystemExit: this network has enough"
    assert "left behind" in (run["thread"] / "train.log").read_text()


@pytest.mark.parametrize(
    ("harm", "state", "epoch", "words"),
    [
        ("diverge", "diverged", 1, "the loss is nan at epoch 2, step 10"),
        ("kill", "failed", 1, "process 0 of the 2 that trained together has ended (killed (SIGKILL)"),
        ("raise", "failed", 1, "ZeroDivisionError: this network divides by zero"),
    ],
)
def test_the_end_of_a_job_of_two_processes_is_recorded_as_it_was(
    harm: str, state: str, epoch: int, words: str, run_sweep: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = run_sweep(*trapped(tmp_path, harm), "trainer.devices=2", "trainer.log_every=1", epochs=3)
    assert outcome.code == 1, outcome.err
    (run,) = tmp_path.glob("study/*/seed-0")
    status = read(run / "status.json")
    assert (status["state"], status["epoch"]) == (state, epoch)
    assert words in status["error"]


def test_a_job_of_two_processes_that_is_asked_to_stop_says_where_it_was(tmp_path: Path) -> None:
    """As a search asks a trial that is given up: within an epoch, and not where the latest one ended."""
    job = make_job(tmp_path / "run", 0, "trainer.devices=2", "trainer.epochs=500", *SLOW)

    def stop(running: list[Running]) -> None:
        if last_record(job.directory).get("epoch", 0) >= 1:
            running[0].stop()

    (ended,) = run_pool([job], n_jobs=1, on_wait=stop)
    assert (ended.best, ended.error, ended.was_asked) == (None, "interrupted", True)
    status = read(job.directory / "status.json")
    assert status["state"] == "interrupted" and status["step"] >= last_record(job.directory)["step"]
    assert "interrupted after epoch" in (job.directory / "train.log").read_text()


def test_a_picture_over_the_runs_shows_what_did_finish(
    run_sweep: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[set[str]] = []
    monkeypatch.setattr("lab.plots.training.draw_losses", lambda series, **_: drawn.append(set(series)))
    monkeypatch.setattr("lab.plots.figures.save_png", lambda figure, path: path.touch())
    arguments = [
        "+hydra.callbacks.picture._target_=lab.sweeps.callbacks.DrawLosses",
        "optimizer=sgd",
        "trainer.log_every=1",
    ]
    outcome = run_sweep(*arguments, "optimizer.lr=0.01,0.02,1e30")
    assert outcome.code == 1
    assert drawn == [{"0.01", "0.02"}] and (tmp_path / "study" / "losses.png").exists()
    assert f"written: {tmp_path / 'study' / 'losses.png'}" in outcome.out
    assert run_sweep(*arguments, "optimizer.lr=1e30", name="hopeless").code == 1
    assert not (tmp_path / "hopeless" / "losses.png").exists()


def test_a_run_that_another_process_writes_fails_alone(run_sweep: Callable[..., Outcome], tmp_path: Path) -> None:
    directory = run_sweep("seed=0", "dry_run=true").out.split(" starts")[0]
    with locked(Path(directory)):
        outcome = run_sweep("seed=0,1")
    assert outcome.code == 1
    assert "is being written by process" in outcome.out
    assert states(tmp_path) == ["finished"]
    assert run_sweep("seed=0,1").code == 0


@needs_proc
def test_disturbances_do_not_show_in_the_results(run_sweep: Callable[..., Outcome], tmp_path: Path) -> None:
    """The death of a job, Ctrl-C, the death of the sweep; then the same command again."""
    with Sweep(tmp_path) as one:
        (directory, pid), *_ = one.wait_for_running().items()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: read(directory / "status.json")["state"] == "failed")
        assert "SIGKILL" in read(directory / "status.json")["error"]
        jobs = one.wait_for_running()
        assert directory not in jobs, "another has taken its place"
        one.process.send_signal(signal.SIGINT)
        code, out = one.end()
        assert code == 130, out
        stopped, last = out.strip().splitlines()[-2:]
        assert re.fullmatch(r"stopped at \d/6 jobs; the same command goes on from here", stopped)
        assert last == "train.py: interrupted"
        # One that was about to finish may have; not both, and none is left as if it ran.
        found = {read(directory / "status.json")["state"] for directory in jobs}
        assert "interrupted" in found and found <= {"interrupted", "finished"}
        assert not any(map(is_alive, jobs.values()))

    with Sweep(tmp_path) as one:
        jobs = one.wait_for_running()
        one.process.kill()
        wait_until(lambda: not any(map(is_alive, jobs.values())), seconds=3)
        assert [read(directory / "status.json")["state"] for directory in jobs] == ["running"] * 2

    for name in ("study", "calm"):
        assert run_sweep(*Sweep.arguments, "hydra.launcher.n_jobs=2", name=name, epochs=40).code == 0
    assert len(results(tmp_path / "study")) == 6
    assert results(tmp_path / "study") == results(tmp_path / "calm")
    assert states(tmp_path) == ["finished"] * 12


@needs_proc
@pytest.mark.slow
def test_sixty_jobs_killed_at_random_end_as_if_left_alone(tmp_path: Path) -> None:
    rates = ",".join(f"{1e-4 * 1.3**i:.5g}" for i in range(20))
    arguments = ("model=mlp", "trainer.device=cpu", "trainer.epochs=3", f"optimizer.lr={rates}", "seed=0,1,2")
    chance = random.Random(0)
    for folder in ("calm", "disturbed"):
        (tmp_path / folder).mkdir()
    with Sweep(tmp_path / "calm", *arguments) as one:
        assert one.end()[0] == 0
    for number in range(12):
        with Sweep(tmp_path / "disturbed", *arguments) as one:
            deadline = time.monotonic() + chance.uniform(4, 9)
            while one.process.poll() is None and time.monotonic() < deadline:
                time.sleep(chance.uniform(0.05, 0.6))
                for pid in list(one.running().values())[: number % 3]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            jobs = one.running()
            one.process.kill()
            wait_until(lambda jobs=jobs: not any(map(is_alive, jobs.values())), seconds=3)  # type: ignore[misc]
    with Sweep(tmp_path / "disturbed", *arguments) as one:
        assert one.end()[0] == 0
    assert states(tmp_path / "disturbed") == ["finished"] * 60
    assert results(tmp_path / "disturbed") == results(tmp_path / "calm")
