"""What a terminal, a shell and Hydra's own grammar would act on, written so that none of them does."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from utils import nearest

PLAIN = re.compile(r"(\.{0,2}/|[A-Za-z_])[A-Za-z0-9_./+-]*")
NO_TEXT = (
    "null",
    "true",
    "false",
    "yes",
    "no",
    "on",
    "off",
    "nan",
    "inf",
)  # words that would be read as something else


def printable(text: str) -> str:
    """A text in which whatever would move a terminal's cursor or colour is spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def as_typed(key: str, value: Any) -> str:
    """`key=value` as one types it in a shell, so that Hydra reads that very value."""
    return shlex.quote(f"{key}={as_value(value)}")


def path_typed(key: str, path: Path) -> str:
    """`key=path` as one types it in a shell, so that Hydra reads that path from the current directory."""
    return as_typed(key, nearest(path))


def as_value(value: Any) -> str:
    """A value of plain data in Hydra's grammar."""
    if isinstance(value, str):
        return as_text(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{as_text(str(key))}:{as_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(as_value(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


def as_text(text: str) -> str:
    """A text in Hydra's grammar: in quotes, unless no part of it means anything there."""
    if PLAIN.fullmatch(text) and text.lower() not in NO_TEXT:
        return text
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # which OmegaConf would fill in
    return QuotedString(text=escaped, quote=Quote.single).with_quotes()
