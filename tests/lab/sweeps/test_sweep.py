"""Sweeps: what is missing is run, in processes that cannot harm each other, and disturbances do not show in the results."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome, read_lines
from omegaconf import OmegaConf

import train
from lab.runs.logger import last_record
from lab.sweeps import pool
from lab.sweeps.pool import Ended, Job, Running, run_pool
from lab.sweeps.sweep import Overview
from utils import locked

PROJECT = Path(__file__).resolve().parents[3]
QUICK = ["data.limit=120", "trainer.images=false", "trainer.device=cpu"]
OTHER_MODEL = ("~model.hidden_sizes", "~model.activation", "~model.dropout", "~model.output")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture
def run_sweep(run_command: Callable[..., Outcome], tmp_path: Path) -> Callable[..., Outcome]:
    """run_sweep("seed=0,1") runs a sweep of two quick epochs in tmp_path/study; its outcome."""

    def run(*arguments: str, name: str = "study", epochs: int = 2) -> Outcome:
        fixed = [f"experiments_dir={tmp_path}", f"name={name}", f"trainer.epochs={epochs}", *QUICK]
        return run_command("train", "-m", *fixed, *arguments)

    return run


def results(folder: Path) -> dict[str, Any]:
    """What came out of each run below a folder, by its place there."""
    return {str(path.parent.relative_to(folder)): read(path) for path in sorted(folder.rglob("metrics.json"))}


def states(folder: Path) -> list[str]:
    return sorted(read(path)["state"] for path in folder.rglob("status.json"))


def snapshot(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "multirun.yaml"}


# ------------------------------------------------------------------------------------------- only what is missing is run


def test_more_seeds_and_values_run_only_what_is_new(run_sweep: Callable[..., Outcome], tmp_path: Path) -> None:
    assert run_sweep("seed=0,1", "optimizer.lr=0.01").code == 0
    before = snapshot(tmp_path / "study")
    outcome = run_sweep("seed=0,1,2", "optimizer.lr=0.01,0.02")
    assert outcome.code == 0
    assert "6 jobs: 2 were finished, 4 ran, 0 failed" in outcome.out
    assert states(tmp_path) == ["finished"] * 6
    after = snapshot(tmp_path / "study")
    files = [path for path in before if path.is_file()]
    assert {path: after[path] for path in files} == {path: before[path] for path in files}


def test_a_dry_run_says_what_would_run_and_writes_nothing(run_sweep: Callable[..., Outcome], tmp_path: Path) -> None:
    assert run_sweep("seed=0,1").code == 0
    (broken,) = tmp_path.glob("study/*/seed-1")
    status = read(broken / "status.json")
    (broken / "status.json").write_text(json.dumps(status | {"state": "running"}))  # as a killed process leaves it
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    outcome = run_sweep("seed=0,1,2", "dry_run=true")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert re.search(r"seed-0 has finished already$", lines[0])
    assert re.search(r"seed-1 goes on \(interrupted after epoch 2\)$", lines[1])
    assert re.search(r"seed-2 starts$", lines[2])
    assert lines[3] == "3 jobs: 1 have finished, 2 would run"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert run_sweep("seed=0", "dry_run=true", name="other").code == 0
    assert not (tmp_path / "other").exists()


def test_a_dry_run_of_one_run_writes_nothing(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run_command("train", f"experiments_dir={tmp_path / 'new'}", "name=one", "dry_run=true")
    assert outcome.code == 0
    assert "starts" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_other_code_is_noted_and_rerun_starts_anew(run_sweep: Callable[..., Outcome], tmp_path: Path) -> None:
    assert run_sweep("seed=0,1").code == 0
    (run,) = tmp_path.glob("study/*/seed-1")
    assert "other code" not in run_sweep("seed=0,1").out
    (run / "provenance.json").write_text(json.dumps(read(run / "provenance.json") | {"git_commit": "0" * 40}))
    before = snapshot(run)
    outcome = run_sweep("seed=0,1")
    (note,) = [line for line in outcome.out.splitlines() if "other code" in line]
    assert "1 of the 2 finished runs" in note
    assert "rerun=true" in note
    assert snapshot(run) == before

    (run / "old.png").touch()
    expected = results(tmp_path)
    outcome = run_sweep("seed=0,1", "rerun=true")
    assert outcome.code == 0
    assert "2 ran" in outcome.out
    assert results(tmp_path) == expected
    assert not (run / "old.png").exists()
    assert [record["epoch"] for record in read_lines(run / "metrics.jsonl")] == [1, 2]
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    assert "rerun" not in (run / "config.yaml").read_text()
    assert "other code" not in run_sweep("seed=0,1").out


# -------------------------------------------------------------------------------------- mistakes are found before the start


def assert_nothing_started(outcome: Outcome, folder: Path, *parts: str) -> None:
    assert outcome.code == 2
    (line,) = outcome.err.strip().splitlines()
    assert all(part in line for part in parts), line
    assert not list(folder.rglob("seed-*"))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["seed=0,1,2", "optimizer.lr=0.1,-1"], ["optimizer.lr", "-1", "(in the job seed=0 optimizer.lr=-1)"]),
        (["optimizer=sgd,adam", "+optimizer.nesterov=true"], ["nesterov", "in the job optimizer="]),
        (["optimizer=adam,sgd", "optimizer.betas=[0.9,0.9]"], ["optimizer.betas", "in the job optimizer=sgd"]),
        (["seed=0,1", "data=digits,none_such"], ["none_such"]),
        (["seed=3,3"], ["seed-3", "two jobs"]),
        (["seed=0,1", "hydra.launcher.n_jobs=0"], ["hydra.launcher.n_jobs", "0", "at least 1"]),
        (["seed=0,1", "hydra/launcher=pol"], ["pol", "did you mean pool?"]),
    ],
)
def test_a_mistake_in_one_job_starts_none(
    arguments: list[str], parts: list[str], run_sweep: Callable[..., Outcome], tmp_path: Path
) -> None:
    assert_nothing_started(run_sweep(*arguments), tmp_path, *parts)


def test_a_directory_of_another_configuration_is_not_reused(run_sweep: Callable[..., Outcome], tmp_path: Path) -> None:
    assert run_sweep("seed=1").code == 0
    (run,) = tmp_path.glob("study/*/seed-1")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("batch_size: 64", "batch_size: 32"))
    before = snapshot(tmp_path / "study")
    for more in ([], ["rerun=true"]):
        outcome = run_sweep("seed=0,1", *more)
        assert outcome.code == 2
        (line,) = outcome.err.strip().splitlines()
        assert "data.batch_size" in line
        assert "in the job seed=1" in line
    assert snapshot(tmp_path / "study") == before


# ---------------------------------------------------------------------------------------------------- one job's own trouble


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


# ------------------------------------------------------------------------------------------------------------- the results


def test_parallel_jobs_give_what_jobs_give_one_by_one(
    run_sweep: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same metrics, bit for bit, in processes side by side, one after the other, and in this process."""
    values = ["seed=0,1", "model=mlp,cnn"]
    threads = pool.threads_for(2)
    assert run_sweep(*values, "hydra.launcher.n_jobs=2").code == 0
    expected = results(tmp_path / "study")
    assert len(expected) == 4
    assert {read(path)["cpu_threads"] for path in tmp_path.rglob("provenance.json")} == {threads}

    monkeypatch.setattr(pool, "num_cpus", lambda: threads)
    assert run_sweep(*values, "hydra.launcher.n_jobs=1", name="one_by_one").code == 0
    assert results(tmp_path / "one_by_one") == expected

    threads_here = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert run_sweep(*values, "hydra/launcher=basic", name="in_this_process").code == 0
    finally:
        torch.set_num_threads(threads_here)
    assert results(tmp_path / "in_this_process") == expected


def test_the_threads_of_a_job_depend_on_how_many_run_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "num_cpus", lambda: 8)
    assert [pool.threads_for(n_jobs) for n_jobs in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]


# ------------------------------------------------------------------------------------------------------- the pool by itself


def make_job(directory: Path, seed: int, *overrides: str) -> Job:
    import hydra

    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        cfg = hydra.compose("train", overrides=["name=run", "trainer.epochs=1", *QUICK, f"seed={seed}", *overrides])
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    cfg = OmegaConf.create({key: plain[key] for key in plain if key not in ("rerun", "dry_run")})
    return Job(cfg, directory, train=partial(train.start, cfg, directory))


def test_a_generator_of_jobs_waits_for_what_came_out(tmp_path: Path) -> None:
    events: list[str] = []

    def propose() -> Iterator[Job]:
        for seed in range(4):
            events.append(f"propose {seed}")
            yield make_job(tmp_path / str(seed), seed)

    ended = run_pool(
        propose(),
        n_jobs=1,
        on_start=lambda one: events.append(f"start {one.job.directory.name}"),
        on_end=lambda one: events.append(f"end {one.job.directory.name}"),
    )
    assert events == [f"{what} {seed}" for seed in range(4) for what in ("propose", "start", "end")]
    for one in ended:
        metrics = read(one.job.directory / "metrics.json")
        assert one.error is None
        assert one.best == {key: value for key, value in metrics["best"].items() if key != "epoch"}


def test_each_job_sees_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7,5")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpus = pool.visible_gpus()
    assert gpus == ["3", "GPU-7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert pool.visible_gpus() == ["0", "1"]

    seen: dict[str, str] = {}

    def read_environment(one: Running) -> None:
        assert len(one.gpus) == 1
        seen[one.job.directory.name] = one.gpus[0]

    jobs = [make_job(tmp_path / str(seed), seed) for seed in range(4)]
    assert all(one.error is None for one in run_pool(jobs, n_jobs=4, gpus=gpus, on_start=read_environment))
    assert sorted(seen.values()) == ["3", "3", "GPU-7", "GPU-7"]


def test_a_terminal_shows_how_far_each_job_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    overview = Overview(total=10, num_finished=4)
    overview.is_live = True
    job = make_job(tmp_path, 0, "trainer.epochs=4")
    now = overview.started + 60
    monkeypatch.setattr(time, "monotonic", lambda: now)  # or a slow machine would show another second
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 2, "train/loss": 0.9, "val/accuracy": 0.5}\n{"epoch": 3, "tr')
    running: Any = [Running(Job(job.cfg, tmp_path, label="seed=0"), None)]  # type: ignore[arg-type]
    overview.end(Ended(Job(job.cfg, tmp_path, label="seed=1"), {}, None, 1.0))
    overview.end(Ended(Job(job.cfg, tmp_path, label="seed=2"), None, "no luck", 1.0))
    overview.draw(running)
    overview.draw(running)
    out = capsys.readouterr().out
    # 2.5 of 6 jobs in a minute: the other 3.5 take 84 seconds.
    assert out.count("5/10 done, 1 running, 1 failed, about 0:01:24 left\n") == 2
    assert out.count("  seed=0  epoch 2/4  val/accuracy 0.5000\n") == 2
    assert out.count("failed  seed=2: no luck\n") == 1
    assert out.count("\x1b[2F\x1b[J") == 1, "the second time over the first"


# ------------------------------------------------------------------------------------------------------------- disturbances


class Sweep:
    """A sweep as its own command, to be disturbed: six jobs of about two seconds, two at a time."""

    arguments = ("model._target_=sweep_networks.Slow", "seed=0,1,2", "optimizer.lr=0.01,0.02")
    quick = ("trainer.epochs=40", *QUICK)

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.arguments = folder, arguments or (*self.arguments, *self.quick)
        self.number = len(list(folder.glob("*.log")))

    def __enter__(self) -> Sweep:
        fixed = [f"experiments_dir={self.folder}", "name=study", "hydra.launcher.n_jobs=2"]
        self.log = self.folder / f"{self.number}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(PROJECT / "train.py"), "-m", *fixed, *self.arguments],
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    def running(self) -> dict[Path, int]:
        """The processes of its jobs that live, by run directory."""
        found = {}
        for path in self.folder.rglob("status.json"):
            with contextlib.suppress(FileNotFoundError):
                status = read(path)
                if status["state"] == "running" and is_alive(status["pid"]):
                    found[path.parent] = status["pid"]
        return found

    def wait_for_running(self, *, num_epochs: int = 2) -> dict[Path, int]:
        """Waits until two jobs are under way, the older one for so many epochs."""

        def are_under_way() -> bool:
            epochs = [last_record(directory).get("epoch", 0) for directory in self.running()]
            return len(epochs) == 2 and max(epochs) >= num_epochs

        wait_until(are_under_way)
        return self.running()

    def end(self) -> tuple[int, str]:
        code = self.process.wait(timeout=60)
        return code, self.log.read_text()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], *, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it should have happened by now"
        time.sleep(0.01)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


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
