"""`_target_` nodes: checked that their keys and values fit what they name, and called."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from lab.config.imports import own_frames, refuse_foreign
from lab.config.schema import Positive, check_keys, shown
from lab.config.slots import (
    PART,
    SLOTS,
    TRANSFORM,
    gives_itself,
    is_held,
    is_tensor,
    kinds_of,
    own_keys,
    own_parameters,
    resolve_target,
    signature_of,
    slot_at,
    takes_spec,
)
from lab.config.values import Later
from utils import UserError

MARKER = re.compile(r"spec:(\w+)(?:\.(\d+))?")  # what is filled in when the data is known: ${spec:input_shape.0}
OmegaConf.register_new_resolver("spec", lambda name: f"spec:{name}", replace=True)


# ------------------------------------------------------------------------------------------------------- the checks


def check_slot(slot: str, node: Mapping[str, Any]) -> None:
    """Checks a `_target_` node, or for metrics each of them: its target is what the slot holds, its keys fit."""
    if slot != "metrics":
        return check_node(slot, node)
    for name, one in node.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", str(name)) or name == "loss":
            raise UserError(f"metrics.{name} is no name for a metric; it takes letters, digits, '_' and '-', not loss")
        if not isinstance(one, Mapping):
            raise UserError(f"metrics.{name} is {shown(one)}; it takes keys: _target_, and those of the metric")
        check_node(f"metrics.{name}", one)
    return None


def check_node(where: str, node: Mapping[str, Any]) -> None:
    """Checks one `_target_` node, and those within it."""
    slot = slot_at(where)
    if node.get("_target_") in slot.words:
        return check_keys(node, {"_target_": str}, where=f"{where}.")
    if where == "learner" and node.get("_target_") == slot.kind:  # not imported, for it imports all that trains
        return check_keys(node, {"_target_": str}, where=f"{where}.")
    target = resolve_target(where, node)
    options = typing.get_type_hints(slot.options, include_extras=True) if slot.options else {}
    parameters, takes_any = own_parameters(where, target, node)
    hints = {name: parameter.annotation for name, parameter in parameters.items()}
    hints |= {"lr": Positive} if "lr" in hints else {}
    required = [name for name, p in parameters.items() if p.default is inspect.Parameter.empty]
    if node.get("_partial_"):  # called later, with more
        required = []
    if slot is not SLOTS["metrics"] or gives_itself(target, slot):  # any other metric says itself what is better
        required = [*options, *required]
    known = {"_target_": str, "_partial_": bool, "_convert_": str, "_args_": list, **hints, **options}
    if takes_any:
        known |= {str(key): Any for key in node if key not in known}
    values = dict(node)
    for key in values.keys() - options.keys():
        if markers_in(values[key]) or (is_tensor(known.get(key)) and is_numbers(values[key])):
            known[key] = Any
        values[key] = 1 if where == "scheduler" and is_share(values[key]) else stand_in(values[key])
    check_keys(values, known, where=f"{where}.", required=required or ["_target_"])
    if where == "optimizer":
        check_groups(node.get("groups"), hints)
        if isinstance(target, type) and needs_closure(target):
            raise UserError(f"optimizer._target_ is {node['_target_']}, whose steps need a closure; the loop has none")
    for key, value in node.items():
        for place, inner in nodes_in(value, f"{where}.{key}"):
            check_node(place, inner)
    return None


def check_groups(groups: Mapping[str, Any] | None, hints: Mapping[str, Any]) -> None:
    """Checks what an optimiser is to do otherwise with some parameters: {pattern of names: {key of its own: value}}."""
    for pattern, keys in (groups or {}).items():
        where = f"optimizer.groups.{pattern}"
        if not isinstance(keys, Mapping):
            raise UserError(f"{where} is {shown(keys)}; it takes keys of the optimizer, such as lr")
        check_keys(keys, hints, where=f"{where}.", required=["_"])


def needs_closure(optimizer: type) -> bool:
    """Whether an optimiser, such as LBFGS, computes the loss again in a step."""
    parameters = [*inspect.signature(optimizer.step).parameters.values()]  # type: ignore[attr-defined]
    return any(p.name == "closure" and p.default is p.empty for p in parameters)


def is_share(value: Any) -> bool:
    """Whether a value is a share of the run's length, such as "100%" or "33.3%"."""
    return isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,20})?%", value) is not None


def check_foreign(slot: str, node: Any, directory: Path) -> None:
    """UserError where a `_target_` of a run's configuration may name code that came with the run: see refuse_foreign."""
    for where, inner in nodes_in(node, slot):
        if isinstance(inner["_target_"], str):
            refuse_foreign(inner["_target_"], where, directory)
        for key, value in inner.items():
            check_foreign(f"{where}.{key}", value, directory)


# --------------------------------------------------------------------------------------------------- what a value holds


def nodes_in(value: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The outermost `_target_` nodes within a value, each with its dotted key."""
    if isinstance(value, Mapping) and ("_target_" in value or slot_at(where) is TRANSFORM):
        yield where, value
    elif isinstance(value, (Mapping, list)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from nodes_in(item, f"{where}.{key}")


def stand_in(value: Any) -> Any:
    """A value for the check of types: what a node will give is of no type that a configuration can hold."""
    if isinstance(value, list):
        return [stand_in(item) for item in value]
    return Later(str(value)) if isinstance(value, Mapping) and "_target_" in value else value


def markers_in(value: Any) -> list[str]:
    """What of the data's spec a value waits for; UserError where the spec has no such thing."""
    from model.net import DataSpec

    if isinstance(value, (Mapping, list)):
        items = value.values() if isinstance(value, Mapping) else value
        return [marker for item in items for marker in markers_in(item)]
    if not isinstance(value, str) or not value.startswith("spec:"):
        return []
    names = [field.name for field in fields(DataSpec)]
    if (match := MARKER.fullmatch(value)) is None or match[1] not in names:
        raise UserError(f"${{{value}}} is nothing that is known of the data; there are {', '.join(names)}")
    return [value]


def is_numbers(value: Any) -> bool:
    """Whether a value is a list of numbers."""
    return isinstance(value, list) and all(isinstance(item, (int, float)) for item in value)


# ---------------------------------------------------------------------------------------------------------- the builder


def build(slot: str, node: Any, *given: Any, spec: Any = None, **given_keys: Any) -> Any:
    """Calls the target of a checked node with the builder's own arguments and the node's keys; checks what it gives.

    slot: one of SLOTS, or data.transform (null, a node or a list of them). Of metrics, {name: what each node gives}; of a
    loss that is no target but a word, the word. spec: of the data; a network may get it in place of `given`.
    What a constructor raises for values that it cannot use becomes a UserError: the range of a network's own keys is its
    own affair. What is raised in the user's own code stays as it is.
    """
    plain: Any = OmegaConf.to_container(node) if isinstance(node, (DictConfig, ListConfig)) else node
    if slot == "model" and given:
        spec, *rest = given
        given = tuple(rest)
    if slot == "metrics" or not isinstance(plain, Mapping):
        return made(plain, slot, spec)
    return make(slot, plain, given, given_keys, spec)


def make(where: str, node: Mapping[str, Any], given: tuple[Any, ...], given_keys: Mapping[str, Any], spec: Any) -> Any:
    """What one node gives."""
    slot = slot_at(where)
    if node.get("_target_") in slot.words:
        return node["_target_"]
    target = resolve_target(where, node)
    if not isinstance(target, type) and isinstance(target, kinds_of(slot)):
        return target
    parameters, _ = own_parameters(where, target, node)
    own = {key: made(value, f"{where}.{key}", spec) for key, value in own_keys(where, node).items()}
    for key, value in own.items():
        if key in parameters and is_tensor(parameters[key].annotation) and is_numbers(value):
            own[key] = torch.tensor(value, dtype=torch.get_default_dtype())
    if gives_itself(target, slot):
        return partial(target, **own) if own else target
    first = (spec,) * takes_spec(where, signature_of(target), node)
    call = partial(target, *first, *given, *made(node.get("_args_") or [], f"{where}._args_", spec), **own)
    if slot is PART and node.get("_partial_"):
        return call
    try:
        built = call(**given_keys)
    except Exception as error:
        if getattr(error, "for_user", False) or isinstance(error, (MemoryError, OSError)) or own_frames(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: {node['_target_']} refuses its keys {own}: {reason}") from error
    if not is_held(built, slot) and not (where == "data" and built is None):  # which says that there is no such split
        wanted = slot.kind.replace("|", " or ")
        raise UserError(f"{where}: {node['_target_']} gives a {type(built).__name__}; {where} takes a {wanted}")
    return built


def made(value: Any, where: str, spec: Any) -> Any:
    """A value with what its nodes give, and what of the data's spec it waits for."""
    if isinstance(value, Mapping) and ("_target_" in value or slot_at(where) is TRANSFORM):
        return make(where, value, (), {}, spec)
    if isinstance(value, Mapping):
        return {key: made(item, f"{where}.{key}", spec) for key, item in value.items()}
    if isinstance(value, list):
        return [made(item, f"{where}.{number}", spec) for number, item in enumerate(value)]
    if isinstance(value, str) and (match := MARKER.fullmatch(value)):
        asked = getattr(spec, match[1])
        return asked if match[2] is None else asked[int(match[2])]
    return value
