"""Which files the numbers of a run depend on: those that its targets come from, and what these import of one's own."""

from __future__ import annotations

import functools
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lab.config.imports import is_installed
from utils import PROJECT

IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+([.\w]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n#;]+)|import[ \t]+([^\n#;]+))", re.MULTILINE
)
IDLE_LINE = re.compile(rb"^[ \t]*(#.*)?\r?\n", re.MULTILINE)  # blank, or a comment alone


def code_of(values: Mapping[str, Any]) -> dict[str, str]:
    """{file: SHA-256 of its code} for the modules that a configuration's targets come from, and for all that they import.

    Without what is installed. Blank lines and lines that are a comment alone count for nothing. Files are named from the
    project's folder, and in full where they lie elsewhere.
    """
    found: dict[Path, str] = {}
    tops: dict[str, Top] = {}
    waiting, seen = list(modules_in(values)), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting += [parent] if (parent := name.rpartition(".")[0]) else []  # imported before it
        if (path := file_of(name, tops)) is not None:
            found[path], imported = read_module(path, name, path.stat().st_mtime_ns)
            waiting += imported
    return {shown(path): found[path] for path in sorted(found)}


def modules_in(value: Any) -> Iterator[str]:
    """The modules of all targets within a configuration."""
    if isinstance(value, Mapping):
        if isinstance(target := value.get("_target_"), str) and "." in target:
            yield target.rpartition(".")[0]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from modules_in(item)


Top = tuple[list[Path], Path | None]  # the folders of a package of one's own, and the file of it or of a module


def top_of(name: str) -> Top:
    """Where a module or package at the top is found; nothing of what is installed or Python's own."""
    if name in sys.stdlib_module_names:
        return [], None
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):  # such as __main__, which is no file by that name
        return [], None
    if spec is None:
        return [], None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    is_file = spec.has_location and (spec.origin or "").endswith(".py") and not is_installed(str(spec.origin))
    return [folder for folder in folders if not is_installed(str(folder))], Path(str(spec.origin)) if is_file else None


def file_of(name: str, tops: dict[str, Top]) -> Path | None:
    """The file of a module of the project's or the user's own; None where it is installed, or there is none."""
    top, *rest = name.split(".")
    if top not in tops:
        tops[top] = top_of(top)
    folders, origin = tops[top]
    if not rest:
        return origin
    places = [folder.joinpath(*rest) for folder in folders]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return next((file for file in files if file.is_file()), None)


@functools.lru_cache(maxsize=1000)
def read_module(path: Path, name: str, changed: int) -> tuple[str, list[str]]:
    """(SHA-256 of a file's code, the modules that it imports, or that may be what it imports from a package).

    changed: when it was changed last, so that it is read again only then.
    """
    content = IDLE_LINE.sub(b"", path.read_bytes() + b"\n")
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    imported = []
    for source, names, modules in IMPORT.findall(content.decode(errors="replace")):
        imported += [one.split()[0] for one in modules.split(",") if one.split()]
        if source:
            level = len(source) - len(source.lstrip("."))
            start = package[: len(package) - level + 1] if level else []
            base = ".".join([*start, *filter(None, [source.lstrip(".")])])
            imported += [base, *(f"{base}.{one.split()[0]}" for one in names.strip("()").split(",") if one.split())]
    return hashlib.sha256(content).hexdigest(), [one for one in imported if one]


def shown(path: Path) -> str:
    """A file as one names it from the project's folder."""
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else str(path)
