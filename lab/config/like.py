"""`like=<run directory>`: a new run, typed as an old one was, with what else is typed after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lab.config.migrate import migrate
from lab.config.mistakes import CONF
from lab.config.quoting import as_value
from lab.config.targets import SLOTS, check_foreign
from utils import PROJECT, UserError

ABOUT_A_REQUEST = ("like", "resume", "rerun", "dry_run", "experiments_dir")
PLACES = ("resume", "experiments_dir", "data.root", "trainer.devices")
MAX_BYTES = 2**20  # of a record of what was typed, or of a configuration


def add_likeness() -> None:
    """Puts what was typed for the run that `like=` names before what is typed now; UserError where that is not that run."""
    found = [number for number, argument in enumerate(sys.argv) if argument.startswith("like=")]
    if not found:
        return
    asked = OverridesParser.create().parse_override(sys.argv[found[-1]])
    run: Any = None if asked.is_sweep_override() else asked.value()
    if not isinstance(run, str) and asked.value() is not None:
        raise UserError(f"{sys.argv[found[-1]]}: like takes one run directory")
    if run is None:
        return
    directory = next((path for path in (Path(run), PROJECT / run) if path.is_dir()), None)
    if directory is None:
        raise UserError(f"{run!r} does not exist; like takes a run directory")
    recorded, typed = read(directory / "config.yaml", dict), read(directory / "overrides.yaml", list)
    old = [str(override) for override in typed if key_of(str(override)) not in ABOUT_A_REQUEST]
    old = [override for override in old if not key_of(override).startswith("hydra")]
    old += corrections(directory, recorded, old)
    now = [argument.partition("=")[0].lstrip("+~") for argument in sys.argv[1:]]
    kept = [one for one in old if not any(key_of(one) == key or key_of(one).startswith(f"{key}.") for key in now)]
    sys.argv[found[0] : found[0]] = kept


def key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def read(path: Path, kind: type) -> Any:
    """A small YAML file of a run; UserError where it is missing or holds something else."""
    try:
        content = yaml.safe_load(path.read_text()) if path.is_file() and path.stat().st_size <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, kind):
        raise UserError(f"{path} is no record of a run")
    return content


def corrections(directory: Path, recorded: dict[str, Any], overrides: list[str]) -> list[str]:
    """What is to be typed besides to get the recorded configuration, where conf/ has changed or the run was prolonged.

    The run may come from someone else: its words fill in nothing of the environment, and bring no code.
    """
    if any("${" in override.replace("${spec:", "") for override in overrides) or "${" in repr(recorded):
        raise UserError(f"{directory} holds ${{...}}, which like does not take over; type it yourself")
    for slot in SLOTS:
        check_foreign(slot, recorded.get(slot), directory)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = hydra.compose("train", overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)  # a name may be made of what was chosen
    now = dict(leaves(OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(recorded)), resolve=True)))
    HydraConfig.instance().cfg = None
    then = dict(leaves(migrate(recorded)))
    for key in (then.keys() ^ now.keys()) - {*PLACES}:
        raise UserError(f"{directory} was made with another conf/ than there is now: {key} is in one of them alone")
    return [f"{key}={as_value(value)}" for key, value in then.items() if key not in PLACES and now[key] != value]


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested plain data."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{prefix}.{key}".lstrip("."))
    else:
        yield prefix, value
