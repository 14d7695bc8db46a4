"""Turns a function of a checked configuration into a command: Hydra's command line in, one line for a mistake out."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import operator
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, get_type_hints

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.config_source import ConfigLoadError
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lab.config.schema import SearchConfig, TrainConfig, TrainRequest, UnknownKey, check, check_value, nearest_name
from lab.config.targets import SLOTS, check_slot
from utils import PROJECT, UserError

CONF = PROJECT / "conf"
PLUGINS = PROJECT / "lab" / "sweeps" / "plugins"  # Hydra finds launchers in packages called hydra_plugins
if str(PLUGINS) not in sys.path:
    sys.path.append(str(PLUGINS))
LAUNCHERS_TO_INSTALL = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
}
MULTIRUN = ("-m", "--multirun")
NOT_IN_A_NAME = ("seed", "name", "experiments_dir", "rerun", "dry_run")  # of a variant


def sweep_folder(experiments_dir: str, name: str, dry_run: bool) -> str:
    """Where Hydra records a sweep, which it does before anything is checked; a dry run's is gone when it ends."""
    check_value(name, get_type_hints(TrainConfig, include_extras=True)["name"], where="name")
    return passing_folder().name if dry_run is True else f"{experiments_dir}/{name}"


@functools.cache
def passing_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that vanishes with this process."""
    return tempfile.TemporaryDirectory()


OmegaConf.register_new_resolver("project_dir", lambda: str(PROJECT), replace=True)
OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)


def command(config_name: str, schema: type) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Decorates `function(cfg)`: composes conf/<config_name>.yaml, checks it against `schema`, calls the function.

    A mistake of the user's (any exception with `for_user`, and whatever Hydra refuses) ends in one line and exit code 2;
    trouble with files or an interruption in one line and exit code 1 or 130; anything else is a bug, with its traceback.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def run() -> None:
            if not gc.isenabled():  # as a script begins, until all is imported
                gc.freeze()  # what is imported stays, and need not be searched for garbage again and again
                gc.enable()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here; Hydra would print and exit itself
            flags = [argument for argument in sys.argv[1:] if argument in MULTIRUN]
            # Hydra's parser takes a flag before or after the overrides, but not among them.
            sys.argv[1:] = flags + [argument for argument in sys.argv[1:] if argument not in flags]
            try:
                _refuse_what_has_no_effect(schema)
                _give_launchers_our_defaults()
                with _without_hydras_own_report():
                    hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(task)()
            except KeyboardInterrupt as error:
                _stop("interrupted", code=getattr(error, "exit_code", 130))
            except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
                _stop(_explain(error, config_name) + _job_of(error), code=2)
            except UnknownKey as error:
                _stop(_unknown_key(str(error), config_name) + _job_of(error), code=2)
            except BrokenPipeError:  # the reader of our output left, as in `... | head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(1)
            except OSError as error:
                where = error.filename2 or error.filename
                _stop(f"{where}: {error.strerror}" if where else str(error), code=1)
            except Exception as error:
                if "Config group override" in str(error):  # what Hydra says of `model=null`
                    _stop(_explain_group() + _job_of(error), code=2)
                if str(error).startswith("Only one of --"):  # what it says of `-m --cfg job`
                    _stop(str(error), code=2)
                if getattr(error, "for_user", False):
                    _stop(str(error) + _job_of(error), code=getattr(error, "exit_code", 2))
                if unreadable := _unreadable(error):
                    _stop(unreadable, code=2)
                if isinstance(error, MemoryError) or re.search("can't allocate memory|out of memory", str(error)):
                    _stop(f"out of memory ({' '.join(str(error).split())[:150]})", code=1)
                raise

        task = run.task = TaskFunction(run, function, schema)  # type: ignore[attr-defined]
        return run

    return decorate


class TaskFunction:
    """What a command does with a composed configuration, as Hydra and its launchers call it.

    Any process can unpickle it, as part of the command that it belongs to.
    """

    def __init__(self, run: Callable[[], None], function: Callable[[DictConfig], Any], schema: type) -> None:
        functools.update_wrapper(self, function)
        self.run, self.function, self.schema = run, function, schema

    def __call__(self, cfg: DictConfig) -> Any:
        return self.function(checked(cfg, self.schema))

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.attrgetter("task"), (self.run,)


def _refuse_what_has_no_effect(schema: type) -> None:
    """UserError for what Hydra would take and nothing here heed: its own folders, and launchers of what is no training."""
    trains = issubclass(schema, TrainConfig)
    if schema is not TrainRequest:
        refuse_launchers()
    for argument in sys.argv[1:]:
        key, _, value = argument.lstrip("+").partition("=")
        if issubclass(schema, SearchConfig) and key in (*MULTIRUN, "resume", "rerun", "dry_run"):
            raise UserError(
                f"{key} has no effect here: a search goes on by itself with what is left of it; leave it out"
            )
        if key in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"):
            instead = "runs go to experiments_dir/name/...; set experiments_dir or name" if trains else "leave it out"
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


def run_directory(cfg: DictConfig, overrides: Sequence[str]) -> Path:
    """Where a new run goes: <name>/<timestamp>, or in a sweep <name>/<variant>/seed-<n>, below `experiments_dir`."""
    experiment = Path(cfg.experiments_dir).absolute() / cfg.name
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return experiment / variant_name(overrides, cfg.name) / f"seed-{cfg.seed}"
    return experiment / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")[:-3]


def variant_name(overrides: Sequence[str], name: str) -> str:
    """A short readable folder name for what was typed, apart from seed and experiment: "lr-1e-3_model-cnn"."""
    parts = []
    for key, _, value in (override.lstrip("+~").partition("=") for override in sorted(overrides)):
        if key not in NOT_IN_A_NAME and (key, value) != ("experiment", name):
            parts.append(f"{key.rpartition('.')[2]}-" + re.sub(r"[^A-Za-z0-9.]+", "-", value.strip("[]")).rstrip("-"))
    variant = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts)) or "default"
    if len(variant) > 120:
        variant = f"{variant[:111]}-{hashlib.sha256(variant.encode()).hexdigest()[:8]}"
    return variant


def _job_of(error: Exception) -> str:
    """In a sweep: which of its jobs the error is about, as the launcher notes it."""
    return "".join(f" (in the job {note})" for note in getattr(error, "__notes__", ()))


def _stop(message: str, *, code: int) -> None:
    """Ends the process with one line, in which what a terminal would act on is spelled out."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message.strip())
    print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
    sys.exit(code)


def _unreadable(error: Exception) -> str:
    """What to say of an error that comes out of Hydra or OmegaConf themselves: they were not made for what was typed."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-50:] if isinstance(error, RecursionError) else frames[-1:]  # too deep, they are anywhere
    is_theirs = any(re.search(r"[/\\](hydra|omegaconf|antlr4|yaml)[/\\]", frame.filename) for frame in last)
    has_begun = any(frame.name == "job" and frame.filename == __file__ for frame in frames)
    if not is_theirs or (has_begun and not isinstance(error, (RecursionError, ValueError))):
        return ""
    if "no such option" in (reason := _explain_group()):
        return reason
    typed = max(sys.argv[1:], key=len, default="")
    reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
    return f"{typed[:60] + '...' * (len(typed) > 60)} cannot be read ({reason})"


def _explain(error: Exception, config_name: str) -> str:
    """What Hydra or OmegaConf says over several lines, in one that says what was given and what is allowed."""
    text = " ".join(str(error).split()).split(" See https://hydra.cc")[0]
    if (cause := error.__cause__) is not None and isinstance(cause, OmegaConfBaseException):
        text += ": " + " ".join(str(cause).split())
    text = re.sub(r"\s*(full_key|object_type|reference_type)[:=] ?\S*", "", text)
    if ambiguous := re.search(r"Ambiguous value for argument '([^=]+)=(.*?)' 1\.", text):
        key, value = ambiguous[1], ambiguous[2]
        return f"{key}={value} is several values: add -m to try each of them, or write '{key}=[{value}]' for one list"
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(unknown[1], config_name)
    if missing := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, option = missing[1], missing[2]
        if group == "hydra/launcher" and option in LAUNCHERS_TO_INSTALL:
            return f"{group}={option} is not installed: pip install {LAUNCHERS_TO_INSTALL[option]}"
        options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        if not options and (others := re.search(r"Available options in '[^']+': (.*?)( Config search path|$)", text)):
            options = others[1].split()  # a group of Hydra's, such as hydra/launcher
        return f"{group}={option}: there is no such option; " + _suggest(option, options)
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read ({text.removeprefix('Error parsing override ')})"
    key = getattr(error, "full_key", None)
    typed = [argument for argument in sys.argv[1:] if "${" in argument or "???" in argument]
    where = key or ", ".join(typed)
    return f"{where}: {text}" if where and where not in text else text


def _explain_group() -> str:
    """Which of the arguments gives a group something that is no option's name."""
    groups = {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in CONF.iterdir() if path.is_dir()}
    for argument in sys.argv[1:]:
        group, _, option = argument.partition("=")
        if groups.get(group) and option not in groups[group]:
            return f"{argument}: there is no such option; {_suggest(option, groups[group])}"
        if not group:
            return f"{argument} names no key; it takes KEY=VALUE"
    return "a group takes the name of one of its options"


def _unknown_key(key: str, config_name: str) -> str:
    keys = _keys_of(config_name, with_hydra=key.startswith("hydra."))
    names = [name for name in keys if not name.rpartition(".")[2].startswith("_")]
    if key.startswith("search.space."):
        return f"{key} cannot be set: write a space of your own into conf/search/, and choose it with search=NAME"
    if inside := [name for name in names if name.startswith(f"{key}.")]:
        return f"{key} has no options to choose from here; its keys are {', '.join(inside)}"
    if key in names and "." in key:
        group = key.partition(".")[0]
        return f"{key} is a key of another {group} than the {group}._target_ that was chosen; leave it out with ~{key}"
    groups = _groups_of(config_name)
    parent, _, last = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == parent}
    anywhere = {name.rpartition(".")[2]: name for name in reversed(names)}
    choices = siblings | ({} if parent else {group: group for group in sorted(groups)})
    for candidates in (choices,) if key.startswith("hydra.") else (choices, anywhere):
        if near := nearest_name(last, candidates):
            return f"{key} is not a key of this configuration; did you mean {candidates[near]}?"
    where = "the keys there are" if siblings else "the keys are"
    shown = ", ".join(siblings or dict.fromkeys(name.split(".")[0] for name in names))
    return f"{key} is not a key of this configuration; {where} {shown}"


def _suggest(name: str, names: list[str]) -> str:
    near = nearest_name(name, names)
    return (f"did you mean {near}? " if near else "") + f"the options are {', '.join(names)}"


def _groups_of(config_name: str) -> list[str]:
    """The groups of which a configuration takes options: conf/<group>/."""
    if config_name in ("evaluate", "synthesize_results"):
        return []
    return [path.name for path in CONF.iterdir() if path.is_dir() and any(path.glob("*.yaml"))]


def _keys_of(config_name: str, *, with_hydra: bool = False) -> list[str]:
    """The dotted keys of the configuration with the groups that were chosen on the command line."""
    chosen = [argument for argument in sys.argv[1:] if argument.partition("=")[0] in _groups_of(config_name)]
    groups = [argument for argument in chosen if (CONF / argument.replace("=", "/")).with_suffix(".yaml").exists()]
    if with_hydra:
        groups += [a for a in sys.argv[1:] if re.fullmatch(r"hydra/\w+=\w+", a)]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        composed = OmegaConf.to_container(hydra.compose(config_name, groups, return_hydra_config=with_hydra))
    keys: list[str] = []

    def collect(node: Any, prefix: str) -> None:
        for name, value in node.items():
            keys.append(f"{prefix}{name}")
            if isinstance(value, dict):
                collect(value, f"{prefix}{name}.")

    collect(composed, "")
    return keys
