"""Files of a run directory as text and plain data, whoever wrote them: nothing in them hangs, fills memory or executes."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import yaml

from utils import UserError

MOST_BYTES = 2**24  # a configuration or a record is a few thousand
MOST_CURVE_BYTES = 2**28  # of a metrics.jsonl or a train.log, which grow by a line for each epoch or step
MOST_LEVELS = 100  # of nesting; libyaml's own reader ends the process at some ten thousand


def read_bytes(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file of so many bytes at most; OSError, UserError for a pipe, a device, a larger one."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with open(descriptor, "rb") as file:  # noqa: PTH123  a descriptor has no path; O_NONBLOCK: a pipe would wait
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} cannot be read (it is no file)")
        if status.st_size > most:
            raise UserError(f"{path} is not read: it has {status.st_size:,} bytes, and {most:,} are the most")
        return file.read(most)


def read_text(path: Path, *, most: int = MOST_BYTES) -> str:
    """As `read_bytes`, and decoded; ValueError where it is no UTF-8."""
    return read_bytes(path, most=most).decode()


def read_json(path: Path, **fields: type) -> Any:
    """The content of a JSON file; UserError where it is missing or damaged, or has not these fields of these types."""
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error})") from error
    for name, kind in fields.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), kind):
            raise UserError(f"{path} is damaged (it holds no {name}, or not as it was written)")
    return content


class PlainLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A reader of plain data that does not choose between two values of one key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len({*keys}) < len(keys):
            raise ValueError(f"line {node.start_mark.line + 1}: a key stands there twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of plain data; ValueError or yaml.YAMLError where a file holds something else.

    References are refused: none of our files has any, and with them few bytes become many.
    """
    text = read_text(path)
    if "*" in text or " " * MOST_LEVELS in text or sum(map(text.count, "[{-?")) > MOST_LEVELS:  # else it is plain
        check_events(text, path.name)
    values = PlainLoader(text).get_single_data()
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds no configuration")
    return values


def check_events(text: str, name: str) -> None:
    """ValueError where YAML has references or is nested deeper than MOST_LEVELS; this reader of it keeps no tree."""
    level = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{name} holds references")
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > MOST_LEVELS:
            raise ValueError(f"{name} is nested more than {MOST_LEVELS} levels deep")
