"""How many jobs are doing: on a terminal a few lines that are drawn again and again, elsewhere a line for each event."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.runs.files import read_json
from lab.runs.logger import last_record
from lab.sweeps.pool import Ended, Job, Running
from utils import UserError


class Overview:
    """What is seen of jobs while they run: how many are done, the best of them, how far each of the others is."""

    def __init__(self, *, total: int, num_finished: int, n_jobs: int) -> None:
        self.total, self.num_finished = total, num_finished
        self.num_done = self.num_failed = self.num_drawn = 0
        self.best: tuple[str, float, str] | None = None  # metric, value, whose
        self.started = time.monotonic()
        self.is_live = sys.stdout.isatty()
        finished = f", {num_finished} of them finished already" if num_finished else ""
        self.say(f"{total} jobs, {min(n_jobs, max(1, total - num_finished))} at a time{finished}")

    def say(self, line: str) -> None:
        """A line that stays."""
        self.erase()
        print(line, flush=True)

    def start(self, one: Running) -> None:
        if not self.is_live:
            self.say(f"start   {shorten(one.job.label)}")

    def end(self, one: Ended) -> None:
        self.num_done += one.error is None
        self.num_failed += one.error is not None
        if one.error is not None:
            self.say(f"failed  {one.job.label}: {one.error}")
            return
        self.note(one.job, one.best or {})
        if not self.is_live:
            numbers = shown(one.best or {}, first=judged_by(one.job.directory)[0])
            self.say(f"done    {self.count()}  {numbers}  {one.seconds:.1f} s  {shorten(one.job.label)}")

    def note(self, job: Job, metrics: Mapping[str, float]) -> None:
        """Takes a job for the best one so far, if it is better than all before it."""
        monitor, higher = judged_by(job.directory)
        value = metrics.get(monitor, math.nan)
        if higher is None or math.isnan(value):
            return
        best = self.best[1] if self.best is not None and self.best[0] == monitor else -math.inf if higher else math.inf
        if value > best if higher else value < best:
            self.best = monitor, value, shorten(job.label)

    def count(self) -> str:
        return f"{self.num_finished + self.num_done}/{self.total}"

    def draw(self, running: Sequence[Running]) -> None:
        """Draws the lines of a terminal: the numbers, the best so far, then each running job with its latest epoch."""
        if not self.is_live:
            return
        records = [last_record(one.job.directory) for one in running]
        epochs = [one.job.cfg.trainer.epochs for one in running]
        width, height = shutil.get_terminal_size()
        lines = [f"{self.count()} done, {len(running)} running, {self.num_failed} failed{self.left(records, epochs)}"]
        lines += [f"best so far  {self.best[0]} {three_digits(self.best[1])}  {self.best[2]}"] if self.best else []
        for one, record, num_epochs in zip(running, records, epochs, strict=True):
            epoch = f"epoch {record.get('epoch', 0):>{len(str(num_epochs))}}/{num_epochs}"
            numbers = shown(record, first=judged_by(one.job.directory)[0])
            lines.append("  ".join(filter(None, [f"  {epoch}", numbers, shorten(one.job.label)])))
        self.erase()
        lines = [line[: width - 1] for line in lines[: height - 1]]
        print("\n".join(lines), flush=True)
        self.num_drawn = len(lines)

    def left(self, records: Sequence[dict[str, Any]], epochs: Sequence[int]) -> str:
        """The time that the rest takes if it goes on as it went; nothing before the first epoch's end."""
        ended = self.num_done + self.num_failed
        parts = sum(record.get("epoch", 0) / number for record, number in zip(records, epochs, strict=True))
        if ended + parts == 0:
            return ""
        to_do = self.total - self.num_finished - ended - parts
        seconds = round((time.monotonic() - self.started) / (ended + parts) * to_do)
        return f", about {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"

    def erase(self) -> None:
        if self.num_drawn:
            print(f"\x1b[{self.num_drawn}F\x1b[J", end="", flush=True)
        self.num_drawn = 0


def judged_by(directory: Path) -> tuple[str, bool | None]:
    """(the metric that a run is judged by, whether higher is better) as it has recorded them; ("", None) before that."""
    with contextlib.suppress(UserError):
        record = read_json(directory / "metrics.json", monitor=str)
        directions = record.get("higher_is_better")
        higher = directions.get(record["monitor"].rpartition("/")[2]) if isinstance(directions, dict) else None
        return record["monitor"], higher if isinstance(higher, bool) else None
    return "", None


def shown(record: Mapping[str, Any], *, first: str = "") -> str:
    """The validation metrics of a record with three digits; one of them first."""
    numbers = {name: value for name, value in record.items() if name.startswith("val/")}
    names = sorted(numbers, key=lambda name: name != first)
    return "  ".join(f"{name} {three_digits(numbers[name])}" for name in names)


def three_digits(number: Any) -> str:
    return f"{float(number):#.3g}".rstrip(".")


def shorten(label: str) -> str:
    """A label with the last parts of its keys, where these tell them apart: "optimizer.lr=0.1" is "lr=0.1"."""
    words = label.split(" ")
    short = [word.partition("=")[0].rpartition(".")[2] if "=" in word else word for word in words]
    counts = Counter(short)
    return " ".join(
        name + "".join(word.partition("=")[1:]) if "=" in word and counts[name] == 1 else word
        for name, word in zip(short, words, strict=True)
    )
