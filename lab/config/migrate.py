"""Configurations that earlier versions of the project recorded, as this version has them."""

from __future__ import annotations

from typing import Any

import yaml

from utils import PROJECT, UserError

CONF = PROJECT / "conf"


def migrate(plain: dict[str, Any]) -> dict[str, Any]:
    """A recorded configuration with the slots and options that it is older than: a run without them did as by default.

    `trainer.loss`, the name of a loss, becomes the slot `loss`; UserError where there is none of that name. `data.limit`
    was that of every split.
    """
    new = dict(plain)
    if isinstance(new.get("trainer"), dict) and "loss" in new["trainer"]:
        new["trainer"] = {key: value for key, value in new["trainer"].items() if key != "loss"}
        new.setdefault("loss", node_of("loss", plain["trainer"]["loss"]))
    if isinstance(new.get("data"), dict) and "limit" in new["data"]:
        new["data"] = dict.fromkeys(("limit_val", "limit_test"), new["data"]["limit"]) | new["data"]
    for slot, option in (("loss", "auto"), ("metrics", "auto"), ("learner", "default")):
        new.setdefault(slot, node_of(slot, option))
    if isinstance(new.get("data"), dict) and "limit_val" not in new["data"]:  # when one limit was that of every split
        new["data"] = new["data"] | {key: new["data"].get("limit") for key in ("limit_val", "limit_test")}
    for group, options in default_options().items():
        if isinstance(new.get(group), dict):
            new[group] = options | new[group]
    return new


def default_options() -> dict[str, dict[str, Any]]:
    """The options that every run has beside what its targets take, with their defaults; not where the data is."""
    options = read("train")
    common = {group: options[group] for group in ("data", "model", "optimizer")}
    common["data"] = {key: value for key, value in common["data"].items() if key != "root"}
    return common | {"trainer": read("trainer/default")}


def node_of(group: str, option: str) -> dict[str, Any]:
    """What the file of an option in conf/ holds."""
    if not isinstance(option, str) or option not in {path.stem for path in (CONF / group).glob("*.yaml")}:
        raise UserError(f"trainer.{group} is {option!r}, and there is no such {group} in this version of the project")
    return read(f"{group}/{option}")


def read(name: str) -> dict[str, Any]:
    """A file of conf/."""
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())
