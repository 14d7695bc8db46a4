"""TensorBoard's events of a run, each of which is on its way to the disk when it has been added.

Apart from logger.py because TensorBoard takes its time to be imported: who writes nothing does without.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

from utils import writing


class EventFile:
    """A new file of TensorBoard's events, each of which is on its way to the disk when `add_event` returns.

    TensorBoard's own writes from another thread: what cannot be written ends there, in a traceback. Its name sorts after
    those of the files that are there, for TensorBoard reads them in that order. Raises Unwritable.
    """

    def __init__(self, directory: Path, suffix: str) -> None:
        seconds = [path.name.split(".")[3] for path in directory.glob("events.out.tfevents.*")]
        second = max([int(time.time()), *(int(text) + 1 for text in seconds if text.isdigit())])
        self.path = directory / f"events.out.tfevents.{second:010}.{platform.node()}.{os.getpid()}{suffix}"
        with writing(self.path):
            directory.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("ab")
        self.records = RecordWriter(self.file)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add_event(self, event: Any) -> None:
        with writing(self.path):
            self.records.write(event.SerializeToString())
            self.file.flush()

    def get_logdir(self) -> str:
        return str(self.path.parent)

    def flush(self) -> None:
        """Nothing waits to be written."""

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of what could not be written, as was told
            self.file.close()


class DirectWriter(FileWriter):
    """PyTorch's writer of summaries without TensorBoard's thread, which its own constructor starts."""

    def __init__(self, directory: Path, suffix: str) -> None:
        self.event_writer = EventFile(directory, suffix)


class EventWriter(SummaryWriter):
    """A SummaryWriter of one new file of events in a directory; suffix: of the file's name."""

    def __init__(self, directory: Path, *, suffix: str = "") -> None:
        self.directory, self.suffix = directory, suffix
        super().__init__(str(directory))

    def _get_file_writer(self) -> Any:
        if self.file_writer is None:
            writer: Any = DirectWriter(self.directory, self.suffix)
            self.file_writer, self.all_writers = writer, {str(self.directory): writer}  # type: ignore[assignment]
        return self.file_writer
