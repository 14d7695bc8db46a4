"""What can be asked of a run directory: whose run it is, how far it has come, whether it can go on.

`recording.py` writes it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from evaluate import find_run, load_config, load_examples
from lab.config.command import checked, run_directory
from lab.config.directories import COMPUTES_NOTHING
from lab.config.schema import TrainConfig
from lab.config.targets import is_share
from lab.devices.launch import num_launched
from lab.runs.logger import last_record
from utils import PROJECT, UserError, flatten, read_json

# What may differ while a run goes on: more epochs are more work, and places and devices may change.
FREE = (
    "trainer.epochs",
    "trainer.device",
    "trainer.devices",
    "trainer.parallel",
    "resume",
    "experiments_dir",
    "data.root",
    *COMPUTES_NOTHING,
)


def plan(ask: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, Path]:
    """(the configuration, the directory) of the run that a checked request is for."""
    if ask.resume is not None:
        cfg, directory = resumed(ask.resume, overrides)
    else:
        cfg = recorded_part(ask)
        directory = run_directory()
    num = num_launched() or cfg.trainer.devices
    if num != cfg.trainer.devices and any(override.startswith("trainer.devices=") for override in overrides):
        raise UserError(f"trainer.devices is {cfg.trainer.devices}, but {num} processes were started; leave it out")
    cfg.trainer.devices = num
    return cfg, directory


def recorded_part(ask: DictConfig) -> DictConfig:
    """The configuration of a run, without what a request says about how to go about it."""
    return OmegaConf.masked_copy(ask, [key for key in ask if key in get_type_hints(TrainConfig)])


def resumed(resume: str, overrides: Sequence[str]) -> tuple[DictConfig, Path]:
    """(the recorded configuration, the directory) of a run to go on with.

    Of the keys typed beside `resume`, only the number of epochs (`trainer.epochs=+5`: so many more), the place of the data
    (which must be the same data) and the devices may differ from the record: UserError for any other.
    """
    directory = find_run(resume)
    cfg = load_config(directory)
    parser = OverridesParser.create()
    for override in overrides:
        key, _, text = override.lstrip("+").partition("=")
        value = OmegaConf.create({"value": parser.parse_override(override).value()}).value  # with ${...} filled in
        if key == "trainer.epochs" and text.startswith("+") and isinstance(value, int):
            value += cfg.trainer.epochs
        if key in ("resume", "rerun", "dry_run") or OmegaConf.select(cfg, key) == value:
            continue
        if key not in ("trainer.epochs", "data.root", "trainer.device", "trainer.devices", "trainer.parallel"):
            recorded = OmegaConf.select(cfg, key)
            shown = recorded._target_ if OmegaConf.is_dict(recorded) else recorded
            raise UserError(
                f"{key} is {shown} in {resume}, but {text} was given; a run goes on with its own "
                f"configuration: leave {key} out, or start a new run"
            )
        OmegaConf.update(cfg, key, value)
    return checked(cfg, TrainConfig), directory


def check_continuation(directory: Path, cfg: DictConfig, data_sha256: str, *, is_new: bool) -> None:
    """UserError where a run cannot go on as asked: without its checkpoint, with other training data, or stretched."""
    if is_new:
        metrics = directory / "metrics.json"
        if metrics.exists() and read_json(metrics, final=dict)["final"].get("epoch") not in (0, 1):
            raise UserError(
                f"{here(directory)} lacks last.pt, and cannot go on without it; start a new run, or rerun=true"
            )
        return
    epochs = load_config(directory).trainer.epochs
    shares = [f"scheduler.{key}={value}" for key, value in cfg.scheduler.items() if is_share(value)]
    if shares and cfg.trainer.epochs != epochs:
        raise UserError(
            f"{here(directory)} was started for {epochs} epochs, and its schedule is a share of them ({shares[0]}): "
            f"{cfg.trainer.epochs} epochs would be another run; start a new one"
        )
    try:
        recorded = read_json(directory / "provenance.json", data_sha256=str)["data_sha256"]
    except UserError as error:
        raise UserError(
            f"{error}, and it alone says which data the run was on; start a new run, or rerun=true"
        ) from error
    if recorded != data_sha256:
        raise UserError(
            f"the training data is not what {here(directory)} was started with (its fingerprint differs); "
            f"bring that data back, or start a new run"
        )


def finished_result(cfg: DictConfig, directory: Path) -> dict[str, float] | None:
    """The best metrics of a run that has finished as configured, or None where there is work left.

    UserError where the directory holds a run of another configuration.
    """
    if not (directory / "config.yaml").exists():
        return None
    recorded = load_config(directory)
    asked, there = flatten(OmegaConf.to_container(cfg)), flatten(OmegaConf.to_container(recorded))  # type: ignore[arg-type]
    if different := [key for key in asked | there if key not in FREE and asked.get(key) != there.get(key)]:
        raise UserError(
            f"{here(directory)} holds a run of another configuration ({', '.join(different)} differ); "
            f"choose another name, or remove it"
        )
    record = directory / "provenance.json"
    has_moved = asked["data.root"] != there["data.root"] and record.exists()
    if has_moved and load_examples(cfg, "train").fingerprint() != read_json(record, data_sha256=str)["data_sha256"]:
        raise UserError(
            f"{here(directory)} holds a run on other data: that of {there['data.root']}, not of {asked['data.root']}; "
            f"choose another name"
        )
    if state_of(directory) != "finished" or recorded.trainer.epochs < cfg.trainer.epochs:
        return None
    return read_json(directory / "metrics.json", best=dict)["best"]


def fixed_part(cfg: DictConfig) -> dict[str, Any]:
    """{dotted key: value} of a configuration, without what may change while a run goes on."""
    values = flatten(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
    return {key: value for key, value in values.items() if key not in ("name", *FREE)}


def is_of_other_code(directory: Path, code: Mapping[str, str | None]) -> bool:
    """Whether a run was started with other code than that, which `code_state` describes."""
    recorded = read_json(directory / "provenance.json", data_sha256=str)
    return any(recorded.get(key) != value for key, value in code.items())


def state_of(directory: Path) -> str:
    """What status.json says of a run's state; "" where there is none, "unknown" where it cannot be read."""
    path = directory / "status.json"
    try:
        return read_json(path, state=str)["state"] if path.exists() else ""
    except UserError:  # the checkpoints tell how far the run has come
        return "unknown"


def has_checkpoint(directory: Path) -> bool:
    """Whether a run that stopped can go on from where it was."""
    return (directory / "last.pt").exists() or (directory / "before.pt").exists()


def what_is_left(directory: Path) -> str:
    """What is to be done with a run that has not finished, in words."""
    state = state_of(directory).replace("running", "interrupted")  # its process was killed, or else holds the lock
    if has_checkpoint(directory):
        return f"goes on ({state} after epoch {last_record(directory).get('epoch', 0)})"
    return f"starts again ({state} in its first epoch)" if state else "starts"


def here(path: Path) -> str:
    """A path as one types it from the current directory."""
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)


def hint(script: str) -> str:
    """The start of a command that runs one of the project's scripts from the current directory."""
    return f"python {here(PROJECT / script)}"
