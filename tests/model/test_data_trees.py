"""Inputs and targets of any form: trees of tensors go through splits, loaders and parts of a batch as one tensor does."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch

from model.data_loader import Batch, make_loader
from model.examples import DataError, Examples, leaves, num_examples, tree_map
from model.splits import describe, load_split

CPU = torch.device("cpu")
Pair = namedtuple("Pair", ["left", "right"])


def forms(num: int) -> dict[str, tuple[Any, Any]]:
    """(inputs, targets) of `num` examples, each of which carries its number, in every form that a split may have."""
    numbers = torch.arange(num)
    mask = torch.ones(num, 4, 4, dtype=torch.bool)
    return {
        "token ids": (numbers.view(-1, 1).expand(num, 5), numbers % 3),
        "no targets": (numbers.float().view(-1, 1), None),
        "dict": ({"ids": numbers.view(-1, 1), "deep": {"mask": mask}}, numbers % 3),
        "tuple and list": ((numbers.view(-1, 1), [numbers.half()]), {"box": numbers.view(-1, 1).expand(num, 4)}),
        "named tuple": (Pair(numbers, mask), None),
        "dense": (numbers.float().view(-1, 1, 1, 1).expand(num, 1, 4, 4), mask.long()),
        "complex": (torch.complex(numbers.float(), numbers.float()).view(-1, 1), numbers.float().view(-1, 1)),
    }


def examples_of(form: str, num: int = 50) -> Examples:
    inputs, targets = forms(num)[form]
    return Examples(inputs, targets, "abc" if isinstance(targets, torch.Tensor) and targets.dim() == 1 else ())


def assert_same(left: Any, right: Any) -> None:
    """Both trees have one form, and equal tensors of equal types."""
    assert type(left) is type(right)
    tensors = list(zip(leaves(left), leaves(right), strict=True))
    assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in tensors)


@pytest.mark.parametrize("batch_size", [7, 600], ids=["several at once", "one at once"])
@pytest.mark.parametrize("form", forms(1))
def test_an_epoch_gives_the_examples_in_order(form: str, batch_size: int) -> None:
    examples = examples_of(form, 1300)
    loader = make_loader(
        examples, describe_any(examples), batch_size=batch_size, device=CPU, shuffle=True, seed=3, max_batches=90
    )
    loader.set_epoch(2, start=1)
    batches = list(loader)
    order = torch.randperm(1300, generator=torch.Generator().manual_seed((3 * 1_000_003 + 2) * 1_000_003 % 2**63))
    for batch, indices in zip(batches, order[: 90 * batch_size].split(batch_size)[1:], strict=True):
        assert batch.size == len(indices) == num_examples(batch.inputs)
        assert_same(batch.inputs, tree_map(lambda tensor: tensor[indices], examples.inputs))  # noqa: B023
        assert_same(batch.targets, tree_map(lambda tensor: tensor[indices], examples.targets))  # noqa: B023


def describe_any(examples: Examples) -> Any:
    return describe(examples, None, None)


@pytest.mark.parametrize("form", forms(1))
def test_the_parts_of_a_batch_are_the_batch(form: str) -> None:
    batch = Batch(*forms(11)[form], 44)
    assert batch.parts(1) == [batch] and batch.parts(1)[0] is batch
    parts = batch.parts(3)
    assert [num_examples(part.inputs) for part in parts] == [4, 4, 3]
    assert {part.size for part in parts} == {44}
    for name in ("inputs", "targets"):
        trees = [getattr(part, name) for part in parts]
        rejoined = [torch.cat(tensors) for tensors in zip(*map(leaves, trees), strict=True)]
        assert all(map(torch.equal, rejoined, leaves(getattr(batch, name))))


@pytest.mark.parametrize("form", forms(1))
def test_a_process_sees_its_part_and_the_size_of_the_whole(form: str) -> None:
    examples = examples_of(form)
    loader = make_loader(
        examples, describe_any(examples), batch_size=20, device=CPU, part=lambda num: slice(num // 2, num)
    )
    batches = list(loader)
    assert [(num_examples(batch.inputs), batch.size) for batch in batches] == [(10, 20), (10, 20), (5, 10)]
    assert_same(batches[1].inputs, tree_map(lambda tensor: tensor[30:40], examples.inputs))


@pytest.mark.parametrize("form", forms(1))
def test_splits_share_the_examples_out(form: str) -> None:
    splits = {"train": examples_of(form, 60), "val": None}
    training, validation = (
        load_split(splits.__getitem__, split, val_fraction=0.2, split_seed=1) for split in ("train", "val")
    )
    assert (len(training), len(validation)) == (48, 12)
    assert training.fingerprint() != validation.fingerprint() == validation.fingerprint()
    limited = load_split(splits.__getitem__, "train", val_fraction=0.2, split_seed=1, limit=5)
    assert len(limited) == 5


@pytest.mark.parametrize(
    ("form", "shape", "output_size", "task"),
    [
        ("token ids", (5,), 3, "classification"),
        ("no targets", (1,), 0, "custom"),
        ("dict", (), 3, "classification"),
        ("tuple and list", (), 0, "custom"),
        ("dense", (1, 4, 4), 0, "custom"),
        ("complex", (1,), 1, "regression"),
    ],
)
def test_the_spec_says_what_the_data_tells(form: str, shape: tuple[int, ...], output_size: int, task: str) -> None:
    spec = describe_any(examples_of(form))
    assert (spec.input_shape, spec.output_size, spec.task) == (shape, output_size, task)
    assert spec.mean == spec.std == spec.target_mean == ()


def test_several_labels_are_a_task_of_their_own() -> None:
    spec = describe_any(Examples(torch.zeros(6, 2), torch.zeros(6, 3), ["a", "b", "c"]))
    assert (spec.output_size, spec.task, spec.classes) == (3, "custom", ("a", "b", "c"))
    with pytest.raises(DataError, match="targets of 3 values, but 2 classes"):
        Examples(torch.zeros(6, 2), torch.zeros(6, 3), ["a", "b"])


def test_one_changed_number_anywhere_changes_the_fingerprint() -> None:
    for form in forms(1):
        examples = examples_of(form)
        before = examples.fingerprint()
        for tensor in leaves((examples.inputs, examples.targets)):
            (changed := tensor.clone())[3] = tensor[2]
            if torch.equal(changed, tensor):
                continue
            swap = lambda t, old=tensor, new=changed: new if t is old else t  # noqa: E731
            other = Examples(tree_map(swap, examples.inputs), tree_map(swap, examples.targets), examples.classes)
            assert other.fingerprint() != before, form


def test_examples_that_do_not_fit_a_network_are_refused() -> None:
    spec = describe_any(examples_of("token ids"))
    for form, message in [("dict", "of shape of their own, but the network is for 5"), ("no targets", "of shape 1")]:
        with pytest.raises(DataError, match=message):
            make_loader(examples_of(form), spec, batch_size=5, device=CPU)
