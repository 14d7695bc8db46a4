"""What can be asked of a run directory: whose run it is, how far it has come, whether it can go on.

`run.py` writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from lab.config.builders import load_examples
from lab.config.command import checked, run_directory
from lab.config.quoting import path_typed
from lab.config.schema import TrainConfig
from lab.config.targets import is_share
from lab.devices.launch import num_launched
from lab.runs.code import code_of
from lab.runs.files import read_json
from lab.runs.loading import FREE, find_run, load_config
from lab.runs.logger import last_record
from lab.runs.provenance import code_state
from utils import UserError, flatten, here


class Plan(NamedTuple):
    """A run to make: its configuration, where it goes, and what came out where it has finished as configured."""

    cfg: DictConfig
    directory: Path
    best: dict[str, float] | None


def plan(ask: DictConfig, overrides: Sequence[str]) -> Plan:
    """The run that a checked request is for; UserError where its directory holds another one."""
    recorded: Any = None
    if ask.resume is not None:
        directory = find_run(ask.resume)
        recorded = load_config(directory)
        cfg = resumed(ask.resume, recorded, overrides)
    else:
        cfg = recorded_part(ask)
        directory = run_directory()
        if (directory / "config.yaml").exists():
            recorded = load_config(directory)
    num = num_launched() or cfg.trainer.devices
    if num != cfg.trainer.devices and any(override.startswith("trainer.devices=") for override in overrides):
        raise UserError(f"trainer.devices is {cfg.trainer.devices}, but {num} processes were started; leave it out")
    cfg.trainer.devices = num
    best = finished_result(cfg, directory, recorded)
    if recorded is not None and best is None and not ask.rerun:
        check_stretch(cfg, recorded, directory)
    return Plan(cfg, directory, best)


def is_due(asked: Plan, ask: DictConfig) -> bool:
    """Whether a planned run is to be made now; else says that it has finished, or what a dry run would do."""
    if asked.best is not None and not ask.rerun:
        print(
            f"{here(asked.directory)} has finished already; "
            f"for more epochs: {path_typed('resume', asked.directory)} trainer.epochs=..."
        )
        if is_of_other_code(asked.directory, asked.cfg):
            print("  it was made with other code than there is now; rerun=true starts it anew")
        return False
    if ask.dry_run:
        print(f"{here(asked.directory)} {'starts anew' if ask.rerun else what_is_left(asked.directory)}")
    return not ask.dry_run


def finished_result(cfg: DictConfig, directory: Path, recorded: DictConfig | None = None) -> dict[str, float] | None:
    """The best metrics of a run that has finished as configured, or None where there is work left.

    recorded: its configuration, where that was read already. UserError where the directory holds another run.
    """
    if recorded is None and (directory / "config.yaml").exists():
        recorded = load_config(directory)
    if recorded is None:
        return None
    check_same(cfg, recorded, directory)
    if state_of(directory) != "finished" or recorded.trainer.epochs < cfg.trainer.epochs:
        return None
    return read_json(directory / "metrics.json", best=dict)["best"]


def recorded_part(ask: DictConfig) -> DictConfig:
    """The configuration of a run, without what a request says about how to go about it."""
    return OmegaConf.masked_copy(ask, [key for key in ask if key in get_type_hints(TrainConfig)])


def resumed(resume: str, recorded: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a run to go on with, made of the recorded one.

    Of the keys typed beside `resume`, only the number of epochs (`trainer.epochs=+5`: so many more), the place of the data
    (which must be the same data) and the devices may differ from the record: UserError for any other.
    """
    cfg = recorded.copy()
    parser = OverridesParser.create()
    for override in overrides:
        key, _, text = override.lstrip("+").partition("=")
        value = OmegaConf.create({"value": parser.parse_override(override).value()}).value  # with ${...} filled in
        if key == "trainer.epochs" and text.startswith("+") and isinstance(value, int):
            value += cfg.trainer.epochs
        if key in ("resume", "rerun", "dry_run") or OmegaConf.select(cfg, key) == value:
            continue
        if key not in ("trainer.epochs", "data.root", "trainer.device", "trainer.devices", "trainer.parallel"):
            there = OmegaConf.select(cfg, key)
            shown = there._target_ if OmegaConf.is_dict(there) else there
            raise UserError(
                f"{key} is {shown} in {resume}, but {text} was given; a run goes on with its own "
                f"configuration: leave {key} out, or start a new run"
            )
        OmegaConf.update(cfg, key, value)
    return checked(cfg, TrainConfig)


def check_same(cfg: DictConfig, recorded: DictConfig, directory: Path) -> None:
    """UserError where a directory holds a run of another configuration, or on other data."""
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


def check_stretch(cfg: DictConfig, recorded: DictConfig, directory: Path) -> None:
    """UserError where a run that has begun would get another length, of which its schedule is a share."""
    shares = [f"scheduler.{key}={value}" for key, value in cfg.scheduler.items() if is_share(value)]
    if shares and cfg.trainer.epochs != recorded.trainer.epochs and has_checkpoint(directory):
        raise UserError(
            f"{here(directory)} was started for {recorded.trainer.epochs} epochs, and its schedule is a share of them "
            f"({shares[0]}): {cfg.trainer.epochs} epochs would be another run; start a new one"
        )


def is_of_other_code(directory: Path, cfg: DictConfig) -> bool:
    """Whether a run was started with other code than there is now: of its network, data, loss, metrics and learner."""
    recorded = read_json(directory / "provenance.json", data_sha256=str)
    files = recorded.get("code_sha256")
    if not isinstance(files, dict):  # a run from before they were recorded
        return any(recorded.get(key) != value for key, value in code_state()[0].items())
    return {*map(str, files.values())} != {*code_of(OmegaConf.to_container(cfg)).values()}  # type: ignore[arg-type]


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
