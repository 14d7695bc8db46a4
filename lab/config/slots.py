"""The places of a configuration that hold a `_target_`, and what may stand there: which targets give what a slot holds.

Nothing is called here. A node within a node (an activation, a list of blocks) is a `torch.nn.Module`.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import torch
from omegaconf import DictConfig, OmegaConf

from lab.config.imports import find, is_own
from lab.config.schema import DataOptions, MetricOptions, ModelOptions, OptimizerOptions, SchedulerOptions, shown
from utils import PROJECT, UserError


@dataclass(frozen=True)
class Slot:
    """A place in the configuration that holds a `_target_`: what may stand there, and what else its node may hold.

    kind: the classes (by dotted names, imported when needed) of which a target gives an instance; given: how many
    leading arguments the builder passes itself, apart from `spec`; options: the keys beside the target's own
    arguments: how many a plain function takes that is itself what the slot holds; 0: a function is called to give that
    methods: what an object has that is as good as an instance; words: what may stand in the place of a dotted name
    """

    kind: str
    given: int = 0
    options: type | None = None
    arguments: int = 0
    methods: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


SLOTS = {
    "data": Slot("model.examples.Examples|model.examples.Folder|torch.utils.data.Dataset", 2, DataOptions),
    "model": Slot("torch.nn.Module", 0, ModelOptions),
    "loss": Slot("torch.nn.Module", arguments=2, methods=("__call__",), words=("auto", "own")),
    "metrics": Slot("model.metrics.Metric", 0, MetricOptions, 2, ("update", "compute", "reset")),
    "learner": Slot("train.Learner"),
    "optimizer": Slot("torch.optim.Optimizer", 1, OptimizerOptions),
    "scheduler": Slot("torch.optim.lr_scheduler.LRScheduler", 1, SchedulerOptions),
}
TRANSFORM = Slot(
    "torch.nn.Module", arguments=1, methods=("__call__",)
)  # data.transform or augment, or each of a list of them
PART = Slot("torch.nn.Module")  # a node within a node


def slot_at(where: str) -> Slot:
    """The slot that a node stands in, by its dotted key."""
    if re.fullmatch(r"data\.(transform|augment)(\.\d+)?", where):
        return TRANSFORM
    top, *rest = where.split(".")
    return SLOTS[top] if len(rest) == (top == "metrics") else PART


def own_keys(slot: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a node that is the target's."""
    plain = OmegaConf.to_container(node) if isinstance(node, DictConfig) else node
    options = slot_at(slot).options
    others = {option.name for option in fields(options)} if options else set()
    return {str(key): value for key, value in plain.items() if key not in others and not str(key).startswith("_")}  # type: ignore[union-attr]


# -------------------------------------------------------------------------------------------------- what a target gives


def resolve_target(where: str, node: Mapping[str, Any]) -> Any:
    """The class or function that `_target_` names, if it gives what the slot holds; never called here."""
    slot, path = slot_at(where), node.get("_target_")
    if not isinstance(path, str) or "." not in path:
        words = "".join(f" or {word}" for word in slot.words)
        raise UserError(
            f"{where}._target_ is {shown(path)}; it takes the dotted name of a class, like torch.optim.SGD{words}"
        )
    wanted = slot.kind.replace("|", " or ")
    target = find(path, where, wanted)
    if not is_fitting(target, slot):
        itself = f", or a function of {slot.arguments} arguments" * bool(slot.arguments)
        raise UserError(
            f"{where}._target_ is {path}; it takes a subclass of, or function annotated to return, {wanted}{itself}"
        )
    return target


def is_fitting(target: Any, slot: Slot) -> bool:
    """Whether a target may give what a slot holds. A function that does not say so is called only if it is one's own."""
    if isinstance(target, type):
        has_methods = bool(slot.methods) and all(
            any(name in vars(base) for base in target.__mro__[:-1]) for name in slot.methods
        )
        return issubclass(target, kinds_of(slot)) or (has_methods and (len(slot.methods) > 1 or is_ours(target)))
    if not inspect.isfunction(target):
        return slot is SLOTS["metrics"] and isinstance(target, kinds_of(slot))
    hint = return_hint(target)
    if hint is Any:
        return is_ours(target)
    return says_instance(hint, slot) or (slot.arguments > 0 and (is_tensor(hint) or is_ours(target)))


def is_ours(target: Any) -> bool:
    """Whether a class or function is the user's own, or of the project's networks and data, which are theirs to change."""
    try:
        file = inspect.getfile(target)
    except (TypeError, OSError):
        return False
    return is_own(file) or Path(file).is_relative_to(PROJECT / "model")


def kinds_of(slot: Slot) -> tuple[type, ...]:
    """The classes of which a slot holds an instance."""
    return tuple(find(kind, kind, kind) for kind in slot.kind.split("|"))


def return_hint(function: Any) -> Any:
    """What a function is annotated to return; Any where that is not said, or cannot be known."""
    try:
        return typing.get_type_hints(function).get("return", Any)
    except (NameError, TypeError):
        return Any


def says_instance(hint: Any, slot: Slot) -> bool:
    """Whether what a function is annotated to return is an instance of the slot's kind, or None."""
    options = [option for option in (get_args(hint) or (hint,)) if option is not type(None)]
    return bool(options) and all(isinstance(option, type) and issubclass(option, kinds_of(slot)) for option in options)


def gives_itself(target: Any, slot: Slot) -> bool:
    """Whether a plain function is itself what the slot holds, as a loss of (outputs, targets) is."""
    if slot.arguments == 0 or not inspect.isfunction(target):
        return False
    if (hint := return_hint(target)) is not Any:
        return not says_instance(hint, slot)
    parameters = inspect.signature(target).parameters.values()
    return sum(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters) >= slot.arguments


def own_parameters(where: str, target: Any, node: Mapping[str, Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters of a target that are keys of its node, and whether it takes any keyword."""
    slot = slot_at(where)
    if where == "learner":
        return learner_parameters(target, kinds_of(slot)[0])
    if not callable(target) or isinstance(target, kinds_of(slot)):
        return {}, False
    parameters = signature_of(target)
    if gives_itself(target, slot):
        return keywords(parameters[slot.arguments :])
    num_given = slot.given + len(node.get("_args_") or ()) + takes_spec(where, parameters, node)
    return keywords(parameters[num_given:])


def takes_spec(where: str, parameters: list[inspect.Parameter], node: Mapping[str, Any]) -> bool:
    """Whether a target's first parameter is the data's spec: by its name or, of a network, as what nothing else gives."""
    first = parameters[0] if parameters else None
    if first is None or first.name in node or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        return False
    is_left = first.default is first.empty and first.annotation not in (bool, int, float, str) and "_args_" not in node
    return first.name == "spec" or (where == "model" and is_left)


def signature_of(target: Any) -> list[inspect.Parameter]:
    try:
        signature = inspect.signature(target, eval_str=True)
    except (NameError, TypeError, AttributeError, SyntaxError):  # annotations that name what is not imported
        signature = inspect.signature(target)
    parameters = list(signature.parameters.values())
    if isinstance(target, type) and all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return list(inspect.signature(target.__init__).parameters.values())[1:]  # type: ignore[misc]  # not of __new__
    return parameters


def keywords(parameters: list[inspect.Parameter]) -> tuple[dict[str, inspect.Parameter], bool]:
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def learner_parameters(target: Any, base: type) -> tuple[dict[str, inspect.Parameter], bool]:
    """The keyword arguments that a learner has besides those of the project's own, which the builder gives."""
    given, _ = keywords(signature_of(base))
    own: dict[str, inspect.Parameter] = {}
    takes_any = True
    makers = [part.__init__ for part in target.__mro__ if "__init__" in vars(part)] if isinstance(target, type) else []  # type: ignore[misc]
    for maker in makers or [target]:
        named, more = keywords(signature_of(maker))
        own = named | own
        takes_any = takes_any and more
        if not more:  # what is beneath gets nothing that is not named here
            break
    return {name: p for name, p in own.items() if name not in given and name != "self"}, takes_any


def is_held(built: Any, slot: Slot) -> bool:
    """Whether a slot holds such an object."""
    has_methods = bool(slot.methods) and all(hasattr(built, name) for name in slot.methods)
    return isinstance(built, kinds_of(slot)) or has_methods or (slot.arguments > 0 and callable(built))


def is_tensor(hint: Any) -> bool:
    """Whether a parameter takes a tensor, which a configuration gives as a list of numbers."""
    return hint is torch.Tensor or torch.Tensor in get_args(hint)
