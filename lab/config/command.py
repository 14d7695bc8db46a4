"""Turns a function of a checked configuration into a command: Hydra's command line in, one line for a mistake out."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import env_override
from hydra.plugins.config_source import ConfigLoadError
from omegaconf import DictConfig, OmegaConf

from lab.config.directories import run_directory, variant_name
from lab.config.help import help_text
from lab.config.like import add_likeness
from lab.config.mistakes import CONF, explain, own_traceback
from lab.config.quoting import printable
from lab.config.schema import SearchConfig, TrainConfig, TrainRequest, check
from lab.config.targets import SLOTS, check_slot
from utils import PROJECT, UserError

__all__ = [
    "CONF",
    "PLUGINS",
    "checked",
    "command",
    "refuse_launchers",
    "run_directory",
    "typed_overrides",
    "variant_name",
]

PLUGINS = PROJECT / "lab" / "sweeps" / "plugins"  # Hydra finds launchers in packages called hydra_plugins
if str(PLUGINS) not in sys.path:
    sys.path.append(str(PLUGINS))
MULTIRUN = ("-m", "--multirun")
TAKING_A_VALUE = ("-cn", "--config-name", "-cd", "--config-dir")  # flags of Hydra's


def command(config_name: str, schema: type) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Decorates `function(cfg)`: composes conf/<config_name>.yaml, checks it against `schema`, calls the function.

    A mistake of the user's (any exception with `for_user`, and whatever Hydra refuses) ends in one line and exit code 2;
    trouble with files or an interruption in one line and exit code 1 or 130; an error of the user's own code in its part
    of the traceback and exit code 1; anything else is a bug, with all of it.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def run() -> None:
            if not gc.isenabled():  # as a script begins, until all is imported
                gc.freeze()  # what is imported stays, and need not be searched for garbage again and again
                gc.enable()
            _make_output_safe()
            is_full = os.environ.get("HYDRA_FULL_ERROR") == "1"
            sys.argv[1:] = _flags_first(sys.argv[1:])
            try:
                _refuse_what_has_no_effect(schema)
                _give_launchers_our_defaults()
                if schema is TrainRequest:
                    add_likeness()
                if {"--help", "-h"} & {*sys.argv}:
                    print(help_text(config_name, [one for one in sys.argv[1:] if not one.startswith("-")]))
                    return
                if any(argument.startswith("hydra.verbose=") for argument in sys.argv):
                    logging.basicConfig(format="[%(asctime)s][%(name)s][%(levelname)s] - %(message)s")
                with env_override({"HYDRA_FULL_ERROR": "1"}), _without_hydras_own_report():  # errors come here
                    hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(task)()
            except BrokenPipeError:  # the reader of our output left, as in `... | head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(1)
            except (Exception, KeyboardInterrupt) as error:
                if is_full and not getattr(error, "for_user", False) and not isinstance(error, KeyboardInterrupt):
                    raise
                said = explain(error, config_name)
                if said is not None:
                    print(f"{Path(sys.argv[0]).name}: {printable(said[0].strip())}", file=sys.stderr)
                    sys.exit(said[1])
                if not (text := own_traceback(error)):
                    raise
                print(text, file=sys.stderr)
                sys.exit(1)

        task = run.task = TaskFunction(function, schema)  # type: ignore[attr-defined]
        return run

    return decorate


class TaskFunction:
    """What a command does with a composed configuration, as Hydra and its launchers call it.

    It is pickled by reference, and found again in any process as the `task` of the function that the command is.
    """

    def __init__(self, function: Callable[[DictConfig], Any], schema: type) -> None:
        functools.update_wrapper(self, function)  # whose module names the job
        self.function, self.schema = function, schema

    def __call__(self, cfg: DictConfig) -> Any:
        return self.function(checked(cfg, self.schema))

    def __reduce__(self) -> str:
        return f"{self.function.__name__}.task"


def _make_output_safe() -> None:
    """Sees to it that something can be printed whatever the terminal's encoding, and if standard error is closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed; the next file to be opened would take its place, and what is printed
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or sys.stdout
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flags_first(arguments: list[str]) -> list[str]:
    """The arguments with Hydra's flags before the overrides, since its parser does not take them among these."""
    flags, rest = [], []
    waiting = iter(arguments)
    for argument in waiting:
        name, _, value = argument.partition("=")
        if argument in MULTIRUN or (name in TAKING_A_VALUE and value):
            flags.append(argument)
        elif argument in TAKING_A_VALUE:
            flags += [argument, *[one for one in [next(waiting, None)] if one is not None]]
        else:
            rest.append(argument)
    return flags + rest


def _refuse_what_has_no_effect(schema: type) -> None:
    """UserError for what Hydra would take and nothing here heed."""
    trains = issubclass(schema, TrainConfig)
    if schema is not TrainRequest:
        refuse_launchers()
    for argument in sys.argv[1:]:
        key, _, value = argument.lstrip("+").partition("=")
        if issubclass(schema, SearchConfig) and key in (*MULTIRUN, "resume", "like", "rerun", "dry_run"):
            raise UserError(
                f"{key} has no effect here: a search goes on by itself with what is left of it; leave it out"
            )
        if key == "run" and value.startswith("glob("):  # of the options of a group, of which there are none
            raise UserError(f"{argument} matches no run directory; write a pattern: run='experiments/study/*/*'")
        if key == "hydra.run.dir" and schema is not TrainRequest:
            instead = "trials go to experiments_dir/name; set these" if trains else "leave it out"
            raise UserError(f"{key} has no effect here: {instead}")
        if key == "hydra/launcher" and value != "basic" and not trains:
            raise UserError(f"{argument} has no effect here: launchers are for the sweeps of train.py; leave it out")


def refuse_launchers() -> None:
    """UserError in one of several processes that torchrun, or a launcher like it, has started to train together."""
    if "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("torchrun is for single runs of train.py; leave it out (a sweep takes trainer.devices=2)")


def _give_launchers_our_defaults() -> None:
    """Puts conf/hydra/launcher_defaults/ over the options of the launchers that are installed, under their own names.

    As files of conf/hydra/launcher/ they would replace the options, of which there are many, and their types.
    """
    Plugins.instance()  # finds launchers, which then store their options
    store = ConfigStore.instance()
    for path in (CONF / "hydra" / "launcher_defaults").glob("*.yaml"):
        with contextlib.suppress(ConfigLoadError):
            options = OmegaConf.merge(store.load(f"hydra/launcher/{path.name}").node, OmegaConf.load(path))
            store.store(group="hydra/launcher", name=path.stem, node=options)


@contextlib.contextmanager
def _without_hydras_own_report() -> Iterator[None]:
    """Keeps back the line "Error executing job with overrides", which Hydra writes before it raises what a job raised."""
    write = sys.stderr.write
    sys.stderr.write = lambda text: 0 if text.startswith("Error executing job with overrides") else write(text)  # type: ignore
    try:
        yield
    finally:
        sys.stderr.write = write  # type: ignore[method-assign]


def checked(cfg: DictConfig, schema: type) -> DictConfig:
    """`cfg` with every interpolation resolved, after checking all of it; UserError names the first key that is wrong."""
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    check(plain, schema)  # type: ignore[arg-type]
    if issubclass(schema, TrainConfig):
        for slot in SLOTS:
            check_slot(slot, plain[slot])
        for node, key in ((plain["data"], "root"), (plain, "experiments_dir")):  # recorded, and read from other folders
            node[key] = str(Path(node[key]).absolute())
    return OmegaConf.create(plain)


def typed_overrides() -> list[str]:
    """What the user typed for this job (in a sweep: with this job's values)."""
    return list(HydraConfig.get().overrides.task)
