"""Trees of tensors: the form that the inputs and targets of examples have, in memory and in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor


class DataError(ValueError):
    """Data that is missing, damaged or unfit; the message is one line for the user."""

    for_user = True


Tree = Any  # a tensor whose first axis counts examples, or a dict, tuple or list of trees; None: nothing


def tree_map(function: Callable[[Tensor], Any], tree: Tree) -> Any:
    """`function` of each tensor of a tree, in a tree of the same form; DataError where it holds anything else."""
    if isinstance(tree, Tensor):
        return function(tree)
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return {key: tree_map(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(function, item) for item in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(tree_map(function, item) for item in tree)
    raise DataError(
        f"inputs and targets are tensors, or dicts, tuples or lists of tensors; given: {type(tree).__module__}."
        f"{type(tree).__name__} (torch.as_tensor makes tensors of arrays and lists)"
    )


def leaves(tree: Tree) -> list[Tensor]:
    """The tensors of a tree, in order."""
    found: list[Tensor] = []
    tree_map(found.append, tree)
    return found


def num_examples(tree: Tree) -> int:
    """How many examples the tensors of a tree hold."""
    if isinstance(tree, Tensor):
        return len(tree)
    return len(leaves(tree)[0])


def tree_cat(trees: Sequence[Tree]) -> Any:
    """The examples of several trees of one form in one, each tensor of it from theirs one after the other."""
    first = trees[0]
    if len(trees) == 1 or first is None:
        return first
    if isinstance(first, Tensor):
        return torch.cat(trees)  # type: ignore[arg-type]
    if isinstance(first, Mapping):
        return {key: tree_cat([tree[key] for tree in trees]) for key in first}
    return type(first)(tree_cat(parts) for parts in zip(*trees, strict=True))


def tree_split(tree: Tree, split: Callable[[Tensor], Sequence[Tensor]], num: int) -> Sequence[Tree]:
    """The `num` trees that come of splitting every tensor of a tree."""
    if isinstance(tree, Tensor):
        return split(tree)
    parts = [split(tensor) for tensor in leaves(tree)]
    rows = (iter([part[number] for part in parts]) for number in range(num))
    return [tree_map(partial(_next_of, row), tree) for row in rows]


def _next_of(row: Iterator[Tensor], _: Tensor) -> Tensor:
    return next(row)
