"""Transforms of one's own, for training: functions of one example, such as those of torchvision, or of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model.draws import random_state_kept, seed_example
from model.streamed import Transform, what_failed
from model.trees import DataError, Tree, leaves, tree_map

Function = Callable[..., Any]
Functions = Function | Sequence[Function] | None


def sort_transforms(transform: Functions) -> tuple[Transform | None, list[Function]]:
    """(what is done to each example, what is done to a batch afterwards) of the functions given.

    A function of a batch, Batch -> Batch on the run's device, says so by its attribute `of_batch`. Any other is one of an
    example's input; or of its (input, target), giving both, where it has two parameters without defaults or is one of
    torchvision's v2 transforms and the target has axes of its own (a mask, say, which then moves with its image). Inputs
    that are images come as uint8 or as Pillow has them. What comes out as float is on the scale of the data's mean and
    deviation, [0, 1] for a pixel, and is normalised by them if it has them.
    """
    functions: list[Any] = list(transform) if isinstance(transform, Sequence) else [transform] if transform else []
    for function in functions:
        if not callable(function):
            raise DataError(
                f"data.transform holds a {type(function).__name__}; it takes functions of one example, or of a batch"
            )
    of_batch = [function for function in functions if getattr(function, "of_batch", False)]
    of_each = [function for function in functions if function not in of_batch]
    return (partial(apply_all, of_each) if of_each else None), of_batch


def apply_all(functions: Sequence[Function], inputs: Any, target: Any) -> tuple[Any, Any]:
    """Functions of an example, one after the other."""
    for function in functions:
        inputs, target = apply(function, inputs, target)
    return inputs, target


def apply(function: Function, inputs: Any, target: Any) -> tuple[Any, Any]:
    """One function of an example, given what it takes."""
    is_dense = isinstance(target, Tensor) and target.dim() >= 2
    if is_dense and type(function).__module__.startswith("torchvision.transforms.v2"):
        from torchvision import tv_tensors

        made = function(tv_tensors.Image(inputs), tv_tensors.Mask(target))
        return tuple(part.as_subclass(Tensor) for part in made)
    return function(inputs, target) if takes_target(function) else (function(inputs), target)


def takes_target(function: Function) -> bool:
    """Whether a function has two parameters that must be given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # one that is not written in Python
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters) == 2


def transform_each(
    transform: Transform | None, inputs: Tree, targets: Tree, indices: Sequence[int], *, seed: int, epoch: int
) -> tuple[Tree, Tree]:
    """Inputs and targets [n, ...] on the CPU, each example transformed as (seed, epoch, its index) says."""
    if transform is None:
        return inputs, targets
    made = []
    with random_state_kept():
        for position, index in enumerate(indices):
            one = tree_map(lambda tensor: tensor[position], (inputs, targets))  # noqa: B023
            seed_example(seed, epoch, index)
            try:
                made.append(transform(*one))
            except MemoryError:
                raise
            except Exception as error:
                raise DataError(f"data.transform fails for example {index} ({what_failed(error)})") from error
    columns = list(zip(*map(leaves, made), strict=True))
    for column in columns:
        shapes = {tuple(tensor.shape) for tensor in column}
        if len(shapes) > 1:
            first, second = ("x".join(map(str, shape)) for shape in sorted(shapes)[:2])
            raise DataError(
                f"data.transform or data.augment makes examples of {first} and of {second}; give all one size"
            )
    stacked = iter([torch.stack(column) for column in columns])
    return tree_map(lambda _: next(stacked), made[0])


def transform_batch(functions: Sequence[Function], batch: Any, *, seed: int, epoch: int, first: int) -> Any:
    """A batch, whose first example is number `first`, after functions of it, which may draw from the CPU's generators."""
    with random_state_kept():
        seed_example(seed, epoch, -2 - first)
        for function in functions:
            try:
                batch = type(batch)(*function(batch))
            except Exception as error:
                raise DataError(f"data.transform fails for a batch ({what_failed(error)})") from error
    return batch
