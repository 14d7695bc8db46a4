"""Loaders: the right examples in the right batch, in an order that can be repeated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from data_cases import CPU, batches, loader_for, random_images

from model.data_loader import make_loader
from model.draws import epoch_order
from model.examples import DataError, Examples
from model.net import DataSpec
from model.splits import describe


def test_an_epoch_is_a_permutation_of_its_own() -> None:
    orders = {
        (seed, epoch): epoch_order(500, shuffle=True, seed=seed, epoch=epoch).tolist()
        for seed in (0, 1, 2**32 - 1)
        for epoch in (1, 2, 3)
    }
    assert all(sorted(order) == list(range(500)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == len(orders)
    assert epoch_order(500, shuffle=True, seed=1, epoch=2).tolist() == orders[1, 2]
    assert epoch_order(5, shuffle=False, seed=1, epoch=2).tolist() == [0, 1, 2, 3, 4]


@pytest.fixture
def numbered() -> Examples:
    """103 images; the target of each is its number."""
    return Examples(random_images(103), torch.arange(103), [str(i) for i in range(103)])


def test_an_epoch_shows_every_example_once(numbered: Examples) -> None:
    loader = loader_for(numbered)
    first, second = batches(loader, 1), batches(loader, 2)
    assert [len(targets) for _, targets in first] == [10] * 10 + [3]
    assert len(loader) == 11
    assert loader.num_examples == 103
    orders = [torch.cat([targets for _, targets in epoch]) for epoch in (first, second)]
    assert all(sorted(order.tolist()) == list(range(103)) for order in orders)
    assert not torch.equal(*orders)
    for inputs, targets in first:
        torch.testing.assert_close(inputs, (numbered.inputs[targets] / 255 - 0.5) / 0.25)
    assert torch.equal(torch.cat([targets for _, targets in batches(loader, 1)]), orders[0])
    other = torch.cat([targets for _, targets in batches(loader_for(numbered, seed=6), 1)])
    assert not torch.equal(other, orders[0])


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"drop_last": True}, [10] * 10),
        ({"batch_size": None}, [103]),
        ({"batch_size": 103, "drop_last": True}, [103]),
        ({"max_batches": 3}, [10] * 3),
        ({"max_batches": 99}, [10] * 10 + [3]),
        ({"max_batches": 11, "drop_last": True}, [10] * 10),
        ({"batch_size": None, "max_batches": 1}, [103]),
        ({"shuffle": False, "batch_size": 1000}, [103]),
    ],
    ids=str,
)
def test_batch_sizes(options: dict[str, Any], sizes: list[int], numbered: Examples) -> None:
    loader = loader_for(numbered, **options)
    assert [len(targets) for _, targets in batches(loader, 1)] == sizes
    assert len(loader) == len(sizes)
    assert loader.num_examples == sum(sizes)


def test_an_unshuffled_loader_keeps_the_order(numbered: Examples) -> None:
    loader = loader_for(numbered, shuffle=False)
    for epoch in (1, 2):
        assert torch.cat([targets for _, targets in batches(loader, epoch)]).tolist() == list(range(103))


def test_a_batch_above_the_data_is_refused(numbered: Examples) -> None:
    with pytest.raises(DataError, match=r"data\.batch_size is 104.*103"):
        loader_for(numbered, batch_size=104)


def test_augmenting_what_is_no_image_is_refused() -> None:
    vectors = Examples(torch.randn(20, 4), torch.randn(20, 1))
    spec = DataSpec((4,), 1, "regression")
    for options in ({"crop_padding": 1}, {"flip": True}):
        with pytest.raises(DataError, match="are for images"):
            make_loader(vectors, spec, batch_size=5, device=CPU, shuffle=True, **options)


def test_regression_examples_pass_through(numbered: Examples) -> None:
    vectors = Examples(torch.randn(20, 4), torch.randn(20, 2))
    spec = describe(vectors, None, None)
    assert (spec.task, spec.input_shape, spec.output_size, spec.mean) == ("regression", (4,), 2, ())
    inputs, targets, _ = next(iter(make_loader(vectors, spec, batch_size=20, device=CPU)))
    assert torch.equal(inputs, vectors.inputs)
    assert torch.equal(targets, vectors.targets)
