"""`_target_` nodes: what a configuration names is found, checked to be of its slot's kind, and called.

The one place where a name that a file gives is imported. Found is what is installed or ours, not what came with a run.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import traceback
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf

from lab.config.schema import DataOptions, ModelOptions, Positive, SchedulerOptions, check_keys, nearest_name, shown
from utils import PROJECT, UserError


@dataclass(frozen=True)
class Slot:
    """A place in the configuration that holds a `_target_`: what may stand there, and what else its node may hold.

    kind: the class (by its dotted name, imported when needed) that a target must be a subclass of, or must be annotated
    to return; given: how many leading arguments the builder passes itself; options: the keys beside the target's own.
    """

    kind: str
    given: int
    options: type | None = None


SLOTS = {
    "learner": Slot("train.Learner", given=4),
    "data": Slot("model.examples.Examples|model.examples.Folder", given=2, options=DataOptions),
    "model": Slot("torch.nn.Module", given=1, options=ModelOptions),
    "optimizer": Slot("torch.optim.Optimizer", given=1),
    "scheduler": Slot("torch.optim.lr_scheduler.LRScheduler", given=1, options=SchedulerOptions),
}


def check_slot(slot: str, node: Mapping[str, Any]) -> None:
    """Checks a `_target_` node: that its target is what the slot holds, and its keys and their values fit."""
    if slot == "learner":
        return
    target = resolve_target(slot, node)
    options = SLOTS[slot].options
    hints = typing.get_type_hints(options, include_extras=True) if options else {}
    parameters, takes_any = _own_parameters(target, SLOTS[slot].given)
    own_hints = {name: parameter.annotation for name, parameter in parameters.items()}
    required = [*hints, *(name for name, p in parameters.items() if p.default is inspect.Parameter.empty)]
    known = {"_target_": Any, "_partial_": bool, "_convert_": str, **own_hints, **hints}
    if takes_any:
        known |= {str(key): Any for key in node if key not in known}
    values = {key: 1 if slot == "scheduler" and is_share(value) else value for key, value in node.items()}
    if "lr" in known:
        known["lr"] = Positive
    check_keys(values, known, where=f"{slot}.", required=required or ["_target_"])
    if slot == "optimizer" and isinstance(target, type) and _needs_closure(target):
        raise UserError(f"optimizer._target_ is {node['_target_']}, whose steps need a closure; the loop has none")


def _needs_closure(optimizer: type) -> bool:
    """Whether an optimiser, such as LBFGS, computes the loss again in a step."""
    parameters = [*inspect.signature(optimizer.step).parameters.values()]  # type: ignore[attr-defined]
    return any(p.name == "closure" and p.default is p.empty for p in parameters)


def is_share(value: Any) -> bool:
    """Whether a value is a share of the run's length, such as "100%" or "33.3%"."""
    return isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,20})?%", value) is not None


def build(slot: str, node: Mapping[str, Any], *given: Any, **keys: Any) -> Any:
    """Calls the target of a checked node with the builder's own arguments and the node's keys.

    What its constructor raises for values that it cannot use becomes a UserError: the range of a network's own keys is
    its own affair.
    """
    target = resolve_target(slot, node)
    own = own_keys(slot, node)
    try:
        return target(*given, **own, **keys)
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
        if getattr(error, "for_user", False):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{slot}: {node['_target_']} refuses its keys {own}: {reason}") from error


def own_keys(slot: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a node that is the target's."""
    plain = OmegaConf.to_container(node) if isinstance(node, DictConfig) else node
    options = SLOTS[slot].options
    others = {option.name for option in fields(options)} if options else set()
    return {str(key): value for key, value in plain.items() if key not in others and not str(key).startswith("_")}  # type: ignore[union-attr]


def resolve_target(slot: str, node: Mapping[str, Any]) -> Any:
    """The class or function that `_target_` names, if it is of the slot's kind; never called here."""
    path = node.get("_target_")
    if not isinstance(path, str) or "." not in path:
        raise UserError(f"{slot}._target_ is {shown(path)}; it takes the dotted name of a class, like torch.optim.SGD")
    kinds = tuple(_import(kind, slot) for kind in SLOTS[slot].kind.split("|"))
    target = _import(path, slot)
    is_fitting_class = isinstance(target, type) and issubclass(target, kinds)
    if not is_fitting_class and not (inspect.isfunction(target) and _returns(target, kinds)):
        wanted = SLOTS[slot].kind.replace("|", " or ")
        raise UserError(f"{slot}._target_ is {path}; it takes a subclass of, or function annotated to return, {wanted}")
    return target


def _returns(function: Any, kinds: tuple[type, ...]) -> bool:
    try:
        hint = typing.get_type_hints(function).get("return")
    except (NameError, TypeError):
        return False
    options = [option for option in (get_args(hint) or (hint,)) if option is not type(None)]
    return bool(options) and all(isinstance(option, type) and issubclass(option, kinds) for option in options)


def _import(path: str, slot: str) -> Any:
    """What a dotted name names. Importing its module executes that, so what is installed or ours is all it can be.

    Modules of Python's own library are not even imported: nothing that a slot holds is there.
    """
    module_name, _, name = path.rpartition(".")
    if module_name.split(".")[0] in sys.stdlib_module_names:
        wanted = SLOTS[slot].kind.replace("|", " or ")
        raise UserError(f"{slot}._target_ is {path}, of Python's standard library; it takes the name of a {wanted}")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{slot}._target_ is {path}, but {module_name} cannot be imported ({_import_error(error)})"
        ) from error
    if not hasattr(module, name):
        nearest = nearest_name(name, vars(module))
        raise UserError(
            f"{slot}._target_ is {path}, but {module_name} has no {name}"
            + (f"; did you mean {nearest}?" * bool(nearest))
        )
    return getattr(module, name)


def _import_error(error: BaseException) -> str:
    """What went wrong in a module, and where in it."""
    if isinstance(error, (ImportError, SyntaxError)) or error.__traceback__ is None:
        return " ".join(str(error).split())
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())}, in {place.filename}, line {place.lineno}"


def check_foreign(slot: str, node: Any, directory: Path) -> None:
    """UserError where a `_target_` would import a file that may have come with the run directory it stands in.

    That is one in the run directory, in a package around it, or on a search path around it that is not the project's: a
    run from someone else brings no code. Nothing is imported to find out.
    """
    path = node.get("_target_") if isinstance(node, Mapping) else None
    top = path.split(".")[0] if isinstance(path, str) else ""
    try:
        spec = find_spec(top) if top else None
    except (ImportError, ValueError):  # no module by that name, or one that is not a file, such as __main__
        return
    places = [*(spec.submodule_search_locations or ()), spec.origin or ""] if spec else []
    run = directory.resolve()
    for place in (Path(place).resolve() for place in places if place):
        is_around = run.is_relative_to(place.parent) and not PROJECT.is_relative_to(place.parent)
        if is_around or run.is_relative_to(place) or place.is_relative_to(run):
            raise UserError(
                f"{slot}._target_ is {path}, of {place}, which may have come with the run, and is not executed; "
                f"if you trust it, move it beside train.py"
            )


def _own_parameters(target: Any, given: int) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters of a target after those that its builder passes, and whether it takes any keyword."""
    try:
        signature = inspect.signature(target, eval_str=True)
    except (NameError, TypeError, AttributeError, SyntaxError):  # annotations that name what is not imported
        signature = inspect.signature(target)
    parameters = list(signature.parameters.values())[given:]
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)
