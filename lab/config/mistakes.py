"""What went wrong, for the one who typed it: Hydra's words in one line, an error of their own code with its place."""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lab.config.imports import own_frames
from lab.config.quoting import printable
from lab.config.schema import UnknownKey, nearest_name
from utils import PROJECT

CONF = PROJECT / "conf"
LAUNCHERS_TO_INSTALL = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
}


def explain(error: BaseException, config_name: str) -> tuple[str, int] | None:
    """(what to say in one line, the exit code) of what ended a command; None for a bug, or an error of the user's code."""
    job = "".join(f" (in the job {note})" for note in getattr(error, "__notes__", ()))  # as a sweep's launcher notes it
    text = str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", getattr(error, "exit_code", 130)
    if isinstance(error, UnknownKey):
        return _unknown_key(text, config_name) + job, 2
    if getattr(error, "for_user", False):
        return text + job, getattr(error, "exit_code", 2)
    if own_frames(error):
        return None
    if isinstance(error, (HydraException, OmegaConfBaseException, yaml.YAMLError)):
        return _in_one_line(error, config_name) + job, 2
    if isinstance(error, OSError):
        where = error.filename2 or error.filename
        return f"{where}: {error.strerror}" if where else text, 1
    if "Config group override" in text:  # what Hydra says of `model=null`
        return _wrong_group() + job, 2
    if text.startswith("Only one of --"):  # what it says of `-m --cfg job`
        return text, 2
    if unreadable := _unreadable(error):
        return unreadable, 2
    if isinstance(error, MemoryError) or re.search("can't allocate memory|out of memory", text):
        return f"out of memory ({' '.join(text.split())[:150]})", 1
    return None


def own_traceback(error: BaseException) -> str:
    """The traceback of an error that passed through the user's own code, without what is not theirs; "" of any other."""
    frames = own_frames(error)
    if not frames:
        return ""
    said = "".join(traceback.format_exception_only(error)).rstrip()
    if "Original Traceback" in said:  # of a DataLoader's worker: the last line says what it was
        said = said.split("\n")[-1]
    text = "".join(["Traceback (most recent call last):\n", *traceback.format_list(frames), said])
    note = "Only your own code is shown; HYDRA_FULL_ERROR=1 shows the rest too."
    return "\n".join(printable(line) for line in [*text.split("\n"), note])


def _unreadable(error: BaseException) -> str:
    """What to say of an error that comes out of Hydra or OmegaConf themselves: they were not made for what was typed."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-50:] if isinstance(error, RecursionError) else frames[-1:]  # too deep, they are anywhere
    is_theirs = any(re.search(r"[/\\](hydra|omegaconf|antlr4|yaml)[/\\]", frame.filename) for frame in last)
    has_begun = any((Path(frame.filename).name, frame.name) == ("command.py", "__call__") for frame in frames)
    if not is_theirs or (has_begun and not isinstance(error, (RecursionError, ValueError))):
        return ""
    if "no such option" in (reason := _wrong_group()):
        return reason
    typed = max(sys.argv[1:], key=len, default="")
    reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
    return f"{typed[:60] + '...' * (len(typed) > 60)} cannot be read ({reason})"


def _in_one_line(error: BaseException, config_name: str) -> str:
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
    if twice := re.search(r"Multiple values for (\S+?)\. To override a value use 'override \S+ (\S+)'", text):
        return f"+{twice[1]}={twice[2]} is one {twice[1]} too many; leave out the +: {twice[1]}={twice[2]}"
    if kept := re.search(r"Could not delete from config\. '([^']+)'", text):
        return f"{kept[1]} cannot be left out; where it is null already, or may be: {kept[1]}=null"
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read ({text.removeprefix('Error parsing override ')})"
    key = getattr(error, "full_key", None)
    typed = [argument for argument in sys.argv[1:] if "${" in argument or "???" in argument]
    where = key or ", ".join(typed)
    return f"{where}: {text}" if where and where not in text else text


def _wrong_group() -> str:
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
    if key == "trainer.loss":
        typed = [
            argument.partition("=")[2] for argument in sys.argv if argument.lstrip("+").startswith("trainer.loss=")
        ]
        return f"trainer.loss is a choice of its own now: loss={typed[-1] if typed else 'NAME'}"
    keys = _keys_of(config_name, with_hydra=key.startswith("hydra."))
    names = [name for name in keys if not name.rpartition(".")[2].startswith("_")]
    if key.startswith("search.space."):
        return f"{key} cannot be set: write a space of your own into conf/search/, and choose it with search=NAME"
    if key.startswith("hydra.job.env_set."):
        return f"{key} is not there yet; add it with a +: +{key}=VALUE"
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
