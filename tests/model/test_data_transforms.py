"""What is done to training examples: functions of the seed, the epoch and the example, whoever reads it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from transform_cases import epoch_of, images, streamed, table

from model.batching import Batch
from model.examples import Examples
from model.net import DataSpec
from model.splits import describe
from model.trees import DataError, leaves


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    for one, other in zip(left, right, strict=True):
        assert all(map(torch.equal, leaves(one[:2]), leaves(other[:2]))) and one.size == other.size


def jitter(image: Tensor) -> Tensor:
    """Draws from everywhere; gives floats in [0, 1]."""
    shift = float(torch.rand(())) + np.random.rand() + random.random()
    return (image.float() / 255 + shift / 30).clamp(0, 1)


def noise(batch: Batch) -> Batch:
    return batch._replace(inputs=batch.inputs + torch.randn(batch.inputs.shape))


noise.of_batch = True  # type: ignore[attr-defined]

WAYS: dict[str, dict[str, Any]] = {
    "own function": {"transform": jitter},
    "torchvision": {"transform": [v2.RandomResizedCrop(8, antialias=True), v2.RandomHorizontalFlip()]},
    "batch": {"transform": noise},
    "mixup": {"mixup": 0.4},
    "cutmix": {"cutmix": 1.0},
    "everything": {"transform": [jitter, noise], "mixup": 0.2, "cutmix": 1.0, "crop_padding": 1, "flip": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_transforms_are_functions_of_seed_epoch_and_example(way: str) -> None:
    options = WAYS[way]
    before = torch.get_rng_state(), random.getstate()
    first = epoch_of(images(), **options)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    torch.rand(9)
    assert_equal(first, epoch_of(images(), **options))
    assert_equal(first[3:], epoch_of(images(), start=3, **options))
    assert_equal(first, epoch_of(streamed(images()), num_workers=1, **options))
    plain = epoch_of(images())
    for other in (plain, epoch_of(images(), 2, **options), epoch_of(images(), seed=4, **options)):
        assert not torch.equal(first[0].inputs, other[0].inputs)
    assert [batch.inputs.shape for batch in first] == [batch.inputs.shape for batch in plain]
    assert first[0].inputs.dtype == torch.float32


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("batch", "everything")])
def test_the_batch_that_an_example_is_in_makes_no_difference(way: str) -> None:
    small, large = (epoch_of(images(), batch_size=size, **WAYS[way]) for size in (7, 60))
    for part in (0, 1):
        assert torch.equal(torch.cat([batch[part] for batch in small]), large[0][part])


def test_what_a_transform_gives_as_float_is_normalised_like_a_pixel() -> None:
    plain, scaled = epoch_of(images()), epoch_of(images(), transform=v2.ToDtype(torch.float32, scale=True))
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(one.inputs, other.inputs)


def halved(image: Tensor) -> Tensor:
    return image[:, ::2, ::2]


@pytest.mark.parametrize("make", [images, lambda: streamed(images())], ids=["memory", "streamed"])
def test_a_transform_of_every_split_says_what_the_network_is_for(make: Any) -> None:
    examples = make()
    spec = describe(examples, None, None, transform=[halved])
    assert spec.input_shape == (3, 4, 4)
    pixels = images().inputs[:, :, ::2, ::2].double() / 255
    np.testing.assert_allclose(spec.mean, pixels.mean(dim=(0, 2, 3)), atol=1e-6)
    (batch,) = epoch_of(examples, 1, spec, batch_size=60, shuffle=False, transform=[halved])
    torch.testing.assert_close(batch.inputs.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    with pytest.raises(DataError, match="are of shape 3x8x8, but the network is for 3x4x4"):
        epoch_of(examples, 1, spec)

    def to_float(image: Tensor) -> Tensor:
        return image / 7 - 3

    spec = describe(examples, None, None, transform=to_float)
    assert spec.mean == spec.std == ()  # what a transform makes floats of is its own affair
    (batch,) = epoch_of(examples, 1, spec, batch_size=60, shuffle=False, transform=to_float)
    assert torch.equal(batch.inputs, images().inputs / 7 - 3)


# --------------------------------------------------------------------------------------------------- targets with axes


def segmented(num: int = 20, *, channels: bool = False) -> tuple[Examples, DataSpec]:
    """Images, and as targets which of their pixels are bright."""
    pixels = images(num).inputs
    masks = (pixels[:, 0] > 128).long()
    examples = Examples(pixels, masks.unsqueeze(1) if channels else masks)
    return examples, describe(examples, [0.0], [1.0])


def bright(batch: Batch) -> Tensor:
    return batch.inputs[:, 0] * 255 > 128.5


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize(
    "options",
    [{"crop_padding": 2, "flip": True}, {"transform": [v2.RandomRotation(90), v2.RandomHorizontalFlip()]}],
    ids=["crop and flip", "torchvision"],
)
def test_a_mask_moves_with_its_image(options: dict[str, Any], channels: bool) -> None:
    examples, spec = segmented(channels=channels)
    for batch in epoch_of(examples, 1, spec, **options):
        masks = batch.targets[:, 0] if channels else batch.targets
        assert masks.shape == bright(batch).shape and masks.dtype == torch.int64
        assert torch.equal(bright(batch), masks.bool())
    moved = torch.cat([batch.inputs for batch in epoch_of(examples, 1, spec, **options)])
    assert not torch.equal(moved, torch.cat([batch.inputs for batch in epoch_of(examples, 1, spec)]))


def test_a_function_of_two_gets_the_target() -> None:
    def both(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return image.flip(-1), mask.flip(-1)

    examples, spec = segmented()
    for batch in epoch_of(examples, 1, spec, transform=both):
        assert torch.equal(bright(batch), batch.targets.bool())


# ------------------------------------------------------------------------------------------------------------- mistakes


def failing(image: Tensor) -> Tensor:
    return image[99]


def ragged(image: Tensor) -> Tensor:
    """Whole for the first example, which is looked at, and cut for every other one."""
    return image if torch.equal(image, images(1).inputs[0]) else image[:, : int(image[0, 0, 0]) % 7 + 1]


def smaller(image: Tensor) -> Tensor:
    return image if torch.equal(image, images(1).inputs[0]) else image[:, :5]


MISTAKES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no function": (images, {"transform": ["flip"]}, "data.transform holds a str"),
    "an error": (
        images,
        {"transform": failing},
        r"fails for example \d+ \(IndexError: .*test_data_transforms\.py, line",
    ),
    "an error, streamed": (lambda: streamed(images()), {"transform": failing}, r"\(IndexError: .*transforms\.py, line"),
    "another size": (images, {"transform": v2.Resize(5)}, "are of shape 3x5x5, but the network is for 3x8x8"),
    "any size": (images, {"transform": ragged}, r"makes examples of 3x\dx8 and of 3x\dx8; give all one size"),
    "too small": (
        lambda: streamed(images()),
        {"transform": smaller, "batch_size": 1},
        "example of 3x5x8, but the network is for 3x8x8",
    ),
    "passes": (images, {"transform": jitter, "passes": 2}, "data.passes above 1 would transform"),
    "mixing passes": (images, {"mixup": 0.2, "passes": 2}, "data.passes above 1 would mix"),
    "cutmix of a table": (table, {"cutmix": 1.0}, "data.cutmix is for images"),
    "mixup of masks": (lambda: segmented()[0], {"mixup": 1.0}, "this data is custom"),
    "boxes": (lambda: Examples(images().inputs, torch.zeros(60, 2, 4)), {"flip": True}, "move an image, but not its"),
    "dict": (lambda: Examples(images().inputs, {"a": torch.zeros(60)}), {"flip": True}, "move an image, but not its"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_does_not_suit_the_data_is_one_line(case: str) -> None:
    make, options, message = MISTAKES[case]
    examples = make()
    with pytest.raises(DataError, match=message) as caught:
        epoch_of(examples, 1, describe(examples, None, None), **options)
    assert "\n" not in str(caught.value)


def test_what_has_no_mean_is_not_standardised() -> None:
    with pytest.raises(DataError, match=r"data\.standardize is for tables and images"):
        describe(Examples({"a": torch.zeros(5, 2)}), None, None, standardize=True)
