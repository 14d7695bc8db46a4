"""Whose code a file is, and the one place where a name that a configuration gives is imported.

Importing executes, so what is installed or one's own is all that can be: nothing of Python's own library, nothing that
lies among data or runs, nothing that came with a run.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import sysconfig
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lab.config.schema import nearest_name
from utils import PROJECT, UserError

SCRIPTS = ("train.py", "evaluate.py", "search_hyperparams.py", "synthesize_results.py", "utils.py")
OURS = ("lab", "model", "benchmarks", *SCRIPTS)  # what lies in the project's folder and is no user's own
NO_CODE = ("data", "experiments")


def find(path: str, where: str, wanted: str) -> Any:
    """What a dotted name names; UserError, which says what is `wanted` at the key `where`, for what is not to be had."""
    module_name, _, name = path.rpartition(".")
    if module_name.split(".")[0] in sys.stdlib_module_names:  # not even imported
        raise UserError(f"{where}._target_ is {path}, of Python's standard library; it takes the name of a {wanted}")
    for place in places_of(module_name):
        if any(place.is_relative_to((PROJECT / folder).resolve()) for folder in NO_CODE):
            raise UserError(
                f"{where}._target_ is {path}, of {place}; code among data or runs is not executed; "
                f"move it beside train.py"
            )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{where}._target_ is {path}, but {module_name} cannot be imported ({_import_error(error)})"
        ) from error
    if not hasattr(module, name):
        nearest = nearest_name(name, vars(module))
        raise UserError(
            f"{where}._target_ is {path}, but {module_name} has no {name}"
            + (f"; did you mean {nearest}?" * bool(nearest))
        )
    return getattr(module, name)


def _import_error(error: BaseException) -> str:
    """What went wrong in a module, and where in it."""
    if isinstance(error, (ImportError, SyntaxError)) or error.__traceback__ is None:
        return " ".join(str(error).split())
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())}, in {place.filename}, line {place.lineno}"


def places_of(module_name: str) -> list[Path]:
    """The files and folders that a module would be imported from; nothing is imported to find out."""
    top, *rest = module_name.split(".")
    try:
        spec = find_spec(top) if top else None
    except (ImportError, ValueError):  # no module by that name, or one that is not a file, such as __main__
        return []
    if spec is None:
        return []
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    within = [Path(folder, *rest).with_suffix(".py") for folder in folders if rest]
    files = [Path(spec.origin)] if spec.origin and spec.has_location else []
    return [place.resolve() for place in (*folders, *within, *files)]


def refuse_foreign(path: str, where: str, directory: Path) -> None:
    """UserError where a `_target_` would import a file that may have come with the run directory it stands in.

    That is one in the run directory, in a package around it, or on a search path around it that is neither the project's
    nor named in PYTHONPATH: a run from someone else brings no code.
    """
    run = directory.resolve()
    named = [Path(folder).resolve() for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    for place in places_of(path.rpartition(".")[0]):
        is_around = run.is_relative_to(place.parent) and not PROJECT.is_relative_to(place.parent)
        if (is_around and place.parent not in named) or run.is_relative_to(place) or place.is_relative_to(run):
            raise UserError(
                f"{where}._target_ is {path}, of {place}, which may have come with the run, and is not executed; "
                f"if you trust it, move it beside train.py"
            )


def is_installed(file: str) -> bool:
    """Whether a file is of a package that was installed, or of Python itself."""
    path = Path(file)
    library = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    return bool({"site-packages", "dist-packages"} & {*path.parts}) or any(path.is_relative_to(one) for one in library)


def is_own(file: str) -> bool:
    """Whether a file is the user's own: neither installed nor of this project."""
    path = Path(file)
    if not path.is_file() or is_installed(file):
        return False
    return not path.is_relative_to(PROJECT) or path.relative_to(PROJECT).parts[0] not in OURS


def own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Where in the user's own code an error was raised, or passed through; the outermost place first.

    Of an error in a DataLoader's worker, its text alone tells where that was.
    """
    frames = list(traceback.extract_tb(error.__traceback__))
    if "Original Traceback" in (text := str(error)):
        told = re.findall(r'^  File "(.+)", line (\d+), in (.+)$', text, re.MULTILINE)
        frames += [traceback.FrameSummary(file, int(number), name) for file, number, name in told]
    return [frame for frame in frames if is_own(frame.filename)]
