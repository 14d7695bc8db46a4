"""Normalisation, and augmentation that can be repeated."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from data_cases import CPU, digits_split, random_images
from torch import Tensor

from model.augment import Normalize, RandomCropFlip
from model.examples import DataError
from model.splits import describe, pixel_statistics


@pytest.mark.parametrize(("mean", "std"), [([0.13], [0.3]), ([0.49, 0.48, 0.44], [0.2, 0.3, 0.25])])
def test_normalize_images_and_back(mean: list[float], std: list[float]) -> None:
    images = random_images(5, channels=len(mean))
    normalize = Normalize(mean, std)
    normalized = normalize(images)
    shaped_mean, shaped_std = (np.array(values).reshape(1, -1, 1, 1) for values in (mean, std))
    assert normalized.dtype == torch.float32
    np.testing.assert_allclose(normalized, (images.numpy() / 255 - shaped_mean) / shaped_std, atol=2e-6)
    np.testing.assert_allclose(normalize.inverse(normalized), images.numpy() / 255, atol=1e-6)
    assert torch.equal((normalize.inverse(normalized) * 255).round().to(torch.uint8), images)


def test_normalize_one_value_for_all_channels() -> None:
    images = random_images(2)
    torch.testing.assert_close(Normalize([0.5], [0.25])(images), Normalize([0.5] * 3, [0.25] * 3)(images))


def test_normalize_vectors_and_back() -> None:
    inputs, mean, std = torch.randn(7, 3) * 5, [1.0, -2.0, 0.5], [2.0, 0.1, 3.0]
    normalize = Normalize(mean, std)
    np.testing.assert_allclose(normalize(inputs), (inputs.numpy() - mean) / std, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(normalize.inverse(normalize(inputs)), inputs)


def test_normalize_without_statistics_only_scales_pixels() -> None:
    images, vectors = random_images(3), torch.randn(4, 6)
    torch.testing.assert_close(Normalize()(images), images / 255)
    assert torch.equal(Normalize()(vectors), vectors)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_statistics_are_numpys(channels: int) -> None:
    images = (random_images(50, channels=channels).float() ** 1.5 / 16).to(torch.uint8)
    mean, std = pixel_statistics(images)
    pixels = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 2, 3)), atol=1e-6)


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    images = random_images(4)
    images[:, 1] = 77
    mean, std = pixel_statistics(images)
    assert std[1] == 1.0
    assert abs(Normalize(mean, std)(images)[:, 1]).max() < 1e-5


def test_describe_measures_the_training_split() -> None:
    examples = digits_split("train")
    spec = describe(examples, None, None)
    pixels = examples.inputs.numpy() / 255
    assert (spec.input_shape, spec.output_size, spec.task) == ((1, 8, 8), 10, "classification")
    np.testing.assert_allclose((spec.mean[0], spec.std[0]), (pixels.mean(), pixels.std()), atol=1e-6)
    given = describe(examples, [0.5], [0.25])
    assert (given.mean, given.std) == ((0.5,), (0.25,))
    with pytest.raises(DataError, match=r"data\.mean has 2 values"):
        describe(examples, [0.5, 0.5], None)


def naive_crop_flip(image: Tensor, row: int, column: int, flip: bool, padding: int) -> Tensor:
    """Pad with zeros, cut a window, mirror it: in numpy, for one image."""
    padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)))
    height, width = image.shape[1:]
    window = padded[:, row : row + height, column : column + width]
    return torch.from_numpy(window[:, :, ::-1].copy() if flip else window.copy())


def all_outcomes(image: Tensor, padding: int, *, flip: bool) -> list[tuple[int, int, bool, bytes]]:
    """Every way to shift and flip one image."""
    shifts = range(2 * padding + 1)
    return [
        (row, column, mirrored, naive_crop_flip(image, row, column, mirrored, padding).numpy().tobytes())
        for row in shifts
        for column in shifts
        for mirrored in ([False, True] if flip else [False])
    ]


def crop_flip(
    num: int, *, padding: int = 2, flip: bool | Literal["alternate"] = True, seed: int = 0, epoch: int = 1
) -> RandomCropFlip:
    augment = RandomCropFlip(padding=padding, flip=flip, num_examples=num, seed=seed, device=CPU)
    augment.set_epoch(epoch)
    return augment


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (2, False), (1, True), (0, True)])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 6, 9)])
def test_each_image_is_shifted_and_flipped_on_its_own(padding: int, flip: bool, shape: tuple[int, int, int]) -> None:
    """Every output is one of the outcomes of the naive loop for its own image, and all outcomes come about."""
    num = 400
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (num, *shape), generator=generator, dtype=torch.uint8)
    results = crop_flip(num, padding=padding, flip=flip)(images, torch.arange(num))
    assert results.shape == images.shape
    counts: dict[tuple[int, int, bool], int] = {}
    for image, result in zip(images, results, strict=True):
        content = result.contiguous().numpy().tobytes()
        matching = [outcome[:3] for outcome in all_outcomes(image, padding, flip=flip) if outcome[3] == content]
        assert len(matching) == 1
        counts[matching[0]] = counts.get(matching[0], 0) + 1
    num_outcomes = (2 * padding + 1) ** 2 * (2 if flip else 1)
    assert len(counts) == num_outcomes
    assert max(counts.values()) < 3 * num / num_outcomes + 10  # none is much more likely than the others


def test_no_padding_and_no_flip_changes_nothing() -> None:
    images = random_images(20)
    assert torch.equal(crop_flip(20, padding=0, flip=False)(images, torch.arange(20)), images)


def test_augmentation_does_not_depend_on_the_batch() -> None:
    images, order = random_images(60), torch.randperm(60)
    whole = crop_flip(60)(images, torch.arange(60))
    augment = crop_flip(60)
    for indices in order.split(7):
        torch.rand(100)  # nor on what else draws random numbers
        assert torch.equal(augment(images[indices], indices), whole[indices])
    alone = torch.cat([augment(images[i : i + 1], torch.tensor([i])) for i in range(60)])
    assert torch.equal(alone, whole)


def test_alternate_flips_show_one_side_in_even_and_the_other_in_odd_epochs() -> None:
    images, indices = random_images(60), torch.arange(60)

    def seen(epoch: int, seed: int = 0) -> Tensor:
        return crop_flip(60, padding=0, flip="alternate", epoch=epoch, seed=seed)(images, indices)

    assert torch.equal(seen(1), seen(3)) and torch.equal(seen(2), seen(4))
    assert torch.equal(seen(1), seen(2).flip(-1))
    first = (seen(1) == images).flatten(1).all(dim=1)
    assert 15 < first.sum() < 45 and not torch.equal(seen(1), seen(1, seed=1))


@pytest.mark.parametrize("flip", [True, "alternate"])
def test_augmentation_is_a_function_of_seed_and_epoch(flip: bool | Literal["alternate"]) -> None:
    images, indices = random_images(60), torch.arange(60)
    augment = crop_flip(60, epoch=3, flip=flip)
    third = augment(images, indices)
    for epoch in (1, 2, 9, 3):  # back to 3, whatever came between
        augment.set_epoch(epoch)
        assert torch.equal(augment(images, indices), third) == (epoch == 3)
    assert torch.equal(crop_flip(60, epoch=3, flip=flip)(images, indices), third)
    assert not torch.equal(crop_flip(60, epoch=3, flip=flip, seed=1)(images, indices), third)
