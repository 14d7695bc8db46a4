"""What is done to training examples: functions of the seed, the epoch and the example, whoever reads it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from model.augment import Normalize
from model.batching import Batch
from model.data_loader import make_loader
from model.examples import Examples
from model.mixing import Mixing
from model.net import DataSpec
from model.splits import describe, load_split
from model.trees import DataError, leaves

CPU = torch.device("cpu")
SPEC = DataSpec((3, 8, 8), 5, "classification", (0.5,), (0.25,), tuple("abcde"))


def images(num: int = 60) -> Examples:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(1, 256, (num, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Examples(pixels, torch.arange(num) % 5, list("abcde"))


def streamed(examples: Examples) -> Any:
    dataset = TensorDataset(examples.inputs, examples.targets)
    dataset.classes = examples.classes
    return load_split({"test": dataset}.get, "test", val_fraction=0.1, split_seed=0)


def epoch_of(examples: Any, epoch: int = 1, spec: DataSpec = SPEC, *, start: int = 0, **options: Any) -> list[Batch]:
    loader = make_loader(examples, spec, device=CPU, **{"batch_size": 8, "shuffle": True, "seed": 3} | options)
    loader.set_epoch(epoch, start=start)
    found = list(loader)
    loader.close()
    return found


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


# ----------------------------------------------------------------------------------------------------------------- mixing


def with_numbers(num: int = 50) -> Examples:
    """Images all of whose pixels are the image's number, so that what was mixed can be read off."""
    pixels = torch.arange(num, dtype=torch.uint8).view(-1, 1, 1, 1).expand(num, 1, 10, 12).contiguous()
    return Examples(pixels, torch.arange(num), [str(number) for number in range(num)])


def mixed(**options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(the pixels [n, 10, 12], the probabilities [n, 50], the examples' own numbers [n])."""
    spec = DataSpec((1, 10, 12), 50, "classification", (0.0,), (1.0,), tuple(map(str, range(50))))
    (batch,) = epoch_of(with_numbers(), 1, spec, batch_size=50, shuffle=False, **options)
    return batch.inputs[:, 0] * 255, batch.targets, torch.arange(50)


def test_mixup_mixes_targets_as_it_mixes_pixels() -> None:
    pixels, probabilities, own = mixed(mixup=0.5)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(50))
    assert (pixels.flatten(1).std(dim=1) < 1e-3).all()
    torch.testing.assert_close(pixels[:, 0, 0], probabilities @ torch.arange(50.0))
    partner = (probabilities - F.one_hot(own, 50)).argmax(dim=1)
    assert len(set(partner.tolist())) > 40
    loss = F.cross_entropy(torch.randn(50, 50), probabilities, reduction="none")
    assert loss.shape == (50,)


def test_cutmix_gives_a_rectangle_and_its_share_of_the_target() -> None:
    pixels, probabilities, own = mixed(cutmix=1.0)
    areas = []
    for image, row, number in zip(pixels.round(), probabilities, own, strict=True):
        inside = image != number
        areas.append(float(inside.float().mean()))
        torch.testing.assert_close(row[number], 1 - inside.float().mean())
        if inside.any():
            rows, columns = inside.any(dim=1), inside.any(dim=0)
            assert torch.equal(inside, rows[:, None] & columns[None, :]) and len(image[inside].unique()) == 1
            for line in (rows, columns):  # in one piece
                assert int((line[1:] != line[:-1]).sum()) <= 2
    assert min(areas) < 0.1 and max(areas) > 0.5


def test_the_shares_are_drawn_from_the_beta_distribution() -> None:
    mixing = Mixing(mixup=0.3, cutmix=0.0, num_classes=2, num_examples=20_000, seed=0)
    shares, is_cut = mixing.shares.double(), mixing.is_cut
    assert abs(float(shares.mean()) - 0.5) < 0.01 and abs(float(shares.var()) - 1 / (4 * (2 * 0.3 + 1))) < 0.005
    assert not is_cut.any()
    both = Mixing(mixup=0.3, cutmix=1.0, num_classes=2, num_examples=20_000, seed=0)
    assert abs(float(both.is_cut.float().mean()) - 0.5) < 0.02
    assert abs(float(both.shares[both.is_cut].var()) - 1 / 12) < 0.005


def test_values_are_mixed_too() -> None:
    inputs = torch.arange(40.0).view(-1, 1)
    examples = Examples(inputs, 3 * inputs)
    (batch,) = epoch_of(examples, 1, describe(examples, None, None), batch_size=40, mixup=1.0)
    torch.testing.assert_close(batch.targets, 3 * batch.inputs)
    assert not torch.equal(batch.inputs.sort(dim=0).values, inputs)


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


# ------------------------------------------------------------------------------------------------------ standardisation


def table(num: int = 200) -> Examples:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(num, 3, generator=generator) * torch.tensor([1e4, 1.0, 0.0]) + torch.tensor([5e6, -3.0, 7.0])
    return Examples(inputs, torch.randn(num, 2, generator=generator) * 50 + 1000)


@pytest.mark.parametrize("stream", [False, True])
def test_a_table_is_standardised_by_its_training_split(stream: bool) -> None:
    examples = table()
    spec = describe(examples, None, None, standardize=True)
    inputs, targets = examples.inputs.double().numpy(), examples.targets.double().numpy()
    np.testing.assert_allclose(spec.mean, inputs.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(spec.std, [*inputs.std(axis=0)[:2], 1.0], rtol=1e-9)
    np.testing.assert_allclose(spec.target_mean, targets.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(spec.target_std, targets.std(axis=0), rtol=1e-9)
    source = streamed(examples) if stream else examples
    batch = epoch_of(source, 1, spec, batch_size=200, shuffle=False)[0]
    np.testing.assert_allclose(batch.targets, (targets - targets.mean(0)) / targets.std(0), atol=1e-4)
    np.testing.assert_allclose(batch.inputs.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(batch.inputs.std(0), [1, 1, 0], atol=1e-2)
    restored = Normalize(spec.target_mean, spec.target_std).inverse(batch.targets)
    torch.testing.assert_close(restored, examples.targets)


def test_without_it_tables_are_as_they_are() -> None:
    spec = describe(table(), None, None)
    assert spec.mean == spec.std == spec.target_mean == spec.target_std == ()


def test_class_numbers_and_several_labels_are_not_standardised() -> None:
    for targets in (torch.arange(200) % 2, torch.zeros(200, 2)):
        spec = describe(Examples(table().inputs, targets, ["a", "b"]), None, None, standardize=True)
        assert spec.target_mean == spec.target_std == () and len(spec.mean) == 3


# ------------------------------------------------------------------------------------------------------------- mistakes


def failing(image: Tensor) -> Tensor:
    return image[99]


MISTAKES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no function": (images, {"transform": ["flip"]}, "data.transform holds a str"),
    "an error": (
        images,
        {"transform": failing},
        r"fails for example \d+ \(IndexError: .*test_data_transforms\.py, line",
    ),
    "an error, streamed": (lambda: streamed(images()), {"transform": failing}, r"\(IndexError: .*transforms\.py, line"),
    "another size": (images, {"transform": v2.Resize(5)}, "makes examples of 3x5x5, but the network is for 3x8x8"),
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
