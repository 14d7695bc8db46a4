"""The run directory: named, written, checkpointed, logged, resumed, loaded, read."""

from lab.runs.frames import read_table

__all__ = ["read_table"]
