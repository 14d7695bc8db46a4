"""Data: the right examples in the right split, in an order and with an augmentation that can be repeated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import Outcome
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from model.augment import Normalize, RandomCropFlip
from model.data_loader import Loader, make_loader
from model.datasets import digits, image_folder, mnist
from model.draws import epoch_order
from model.examples import DataError, Examples, Folder
from model.net import DataSpec
from model.splits import describe, load_split, pixel_statistics, split_indices

CPU = torch.device("cpu")
DATA_ROOT = Path(os.environ.get("DATA_ROOT", "data"))
needs_mnist = pytest.mark.skipif(
    not (DATA_ROOT / "MNIST" / "raw").is_dir(), reason="DATA_ROOT holds no MNIST/raw: set it to where MNIST is"
)


def digits_split(split: str, *, split_seed: int = 0, val_fraction: float = 0.1, limit: int | None = None) -> Examples:
    examples = load_split(
        lambda name: digits(name, ""), split, val_fraction=val_fraction, split_seed=split_seed, limit=limit
    )
    assert isinstance(examples, Examples)
    return examples


def identities(examples: Examples) -> set[tuple[bytes, int]]:
    """What tells one digit from another: no two of the 1,797 are the same image."""
    pairs = zip(examples.inputs, examples.targets.tolist(), strict=True)
    return {(image.numpy().tobytes(), target) for image, target in pairs}


def random_images(num: int, channels: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num, channels, size, size), generator=generator, dtype=torch.uint8)


# ------------------------------------------------------------------------------------------------------------- splits


def test_digits_are_all_there_once() -> None:
    splits = {split: digits_split(split) for split in ("train", "val", "test")}
    found = {split: identities(examples) for split, examples in splits.items()}
    assert {split: len(examples) for split, examples in splits.items()} == {
        split: len(identity) for split, identity in found.items()
    }
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 1797
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    stored = {(image.tobytes(), int(label)) for image, label in zip(pixels, labels, strict=True)}
    assert set.union(*found.values()) == stored


def test_digits_splits_hold_each_class_in_proportion() -> None:
    sizes = {split: digits_split(split).targets.bincount(minlength=10) for split in ("train", "val", "test")}
    total = sum(sizes.values())
    torch.testing.assert_close(sizes["test"] / total, torch.full((10,), 0.2), atol=0.01, rtol=0)
    torch.testing.assert_close(sizes["val"] / (total - sizes["test"]), torch.full((10,), 0.1), atol=0.01, rtol=0)


def test_another_split_seed_moves_validation_and_leaves_the_test_split() -> None:
    assert torch.equal(digits_split("test").inputs, digits_split("test", split_seed=7).inputs)
    assert identities(digits_split("val")) != identities(digits_split("val", split_seed=7))
    assert identities(digits_split("val")) == identities(digits_split("val"))
    for split_seed in (0, 7, 2**32 - 1):
        seen = identities(digits_split("train", split_seed=split_seed)) | identities(
            digits_split("val", split_seed=split_seed)
        )
        assert not seen & identities(digits_split("test", split_seed=split_seed))


def test_the_split_does_not_hang_on_the_global_random_state() -> None:
    torch.manual_seed(1)
    first = digits_split("val").inputs
    torch.manual_seed(2)
    assert torch.equal(digits_split("val").inputs, first)


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
def test_split_is_stratified_and_leaves_both_sides_some_of_every_class(fraction: float) -> None:
    targets = torch.tensor([0] * 200 + [1] * 40 + [2] * 2)
    training, validation = split_indices(targets, fraction, seed=3)
    assert sorted(training.tolist() + validation.tolist()) == list(range(242))
    for label, size in [(0, 200), (1, 40), (2, 2)]:
        num = int((targets[validation] == label).sum())
        assert num == min(size - 1, max(1, round(fraction * size)))


def test_split_of_a_class_of_one_example_trains_on_it() -> None:
    training, validation = split_indices(torch.tensor([0, 0, 0, 1]), 0.5, seed=0)
    assert 3 in training.tolist()
    assert 3 not in validation.tolist()


def test_regression_split_is_a_share_of_all() -> None:
    training, validation = split_indices(torch.randn(200, 1), 0.25, seed=0)
    assert len(validation) == 50
    assert sorted(training.tolist() + validation.tolist()) == list(range(200))
    assert validation.tolist() != list(range(50))


def test_limit_is_a_mixed_sample_of_its_split() -> None:
    limited = digits_split("train", limit=100)
    assert len(limited) == 100
    assert identities(limited) < identities(digits_split("train"))
    assert len(limited.targets.unique()) == 10
    assert len(digits_split("val", limit=10**9)) == len(digits_split("val"))


def test_a_dataset_with_its_own_validation_split_keeps_all_it_trains_on() -> None:
    parts = {
        "train": Examples(random_images(20), torch.zeros(20, dtype=torch.long), ["a"]),
        "val": Examples(random_images(5, seed=1), torch.zeros(5, dtype=torch.long), ["a"]),
        "test": None,
    }
    load = partial(load_split, parts.__getitem__, val_fraction=0.5, split_seed=0)
    assert len(load("train")) == 20
    assert torch.equal(load("val").inputs, parts["val"].inputs)
    with pytest.raises(DataError, match="no test split"):
        load("test")


@pytest.mark.parametrize("labels", [[0, 1, 10], [-1, 0, 1], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
def test_labels_out_of_range_are_refused(labels: list[int]) -> None:
    with pytest.raises(DataError, match="labels count from 0"):
        Examples(random_images(len(labels)), torch.tensor(labels), [str(i) for i in range(10)])


def test_inputs_without_targets_are_refused() -> None:
    with pytest.raises(DataError, match="3 inputs, but 2 targets"):
        Examples(random_images(3), torch.tensor([0, 0]), ["a"])


def test_the_fingerprint_sees_one_pixel_and_one_label() -> None:
    images, targets = random_images(4), torch.tensor([0, 1, 0, 1])
    changed_pixel, changed_target = images.clone(), targets.clone()
    changed_pixel[2, 1, 3, 3] ^= 1
    changed_target[3] = 0
    prints = [
        Examples(inputs, labels, ["a", "b"]).fingerprint()
        for inputs, labels in [
            (images, targets),
            (images.clone(), targets.clone()),
            (changed_pixel, targets),
            (images, changed_target),
            (images.flip(0), targets.flip(0)),
        ]
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


# ------------------------------------------------------------------------------------- normalisation and augmentation


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


# ------------------------------------------------------------------------------------------------------------ loaders


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


def loader_for(examples: Examples | Folder, **options: Any) -> Loader:
    spec = describe(examples, [0.5], [0.25])
    return make_loader(examples, spec, device=CPU, **{"batch_size": 10, "shuffle": True, "seed": 5} | options)


def batches(loader: Loader, epoch: int) -> list[tuple[Tensor, Tensor]]:
    loader.set_epoch(epoch)
    return [batch[:2] for batch in loader]


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


# -------------------------------------------------------------------------------------------------- folders of images


def write_images(folder: Path, images: Tensor, targets: Tensor, suffix: str = ".png") -> None:
    """Images [n, channels, height, width] as folder/<class>/<number>.png."""
    for number, (image, target) in enumerate(zip(images, targets.tolist(), strict=True)):
        path = folder / str(target) / f"{number:04d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = image.permute(1, 2, 0).numpy()
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)


@pytest.fixture
def digit_folder(tmp_path: Path) -> Path:
    """120 digits as 8x8 grey PNG files, in root/train and root/test."""
    for split in ("train", "test"):
        examples = digits_split(split, limit=120)
        write_images(tmp_path / split, examples.inputs, examples.targets)
    return tmp_path


def load_folder(root: Path, split: str = "train", image_size: int = 8) -> Folder:
    folder = image_folder(split, str(root), image_size=image_size)
    assert isinstance(folder, Folder)
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_folder_gives_the_batches_that_memory_gives(num_workers: int, digit_folder: Path) -> None:
    folder = load_folder(digit_folder)
    options = {"batch_size": 16, "crop_padding": 2, "flip": True, "drop_last": True}
    streaming, memory = (
        loader_for(folder, num_workers=num_workers, **options),
        loader_for(folder.in_memory(), **options),
    )
    assert type(streaming) is not type(memory)
    assert len(streaming) == len(memory)
    for epoch in (1, 2, 7, 1):
        pairs = list(zip(batches(streaming, epoch), batches(memory, epoch), strict=True))
        assert len(pairs) == 7
        for (left, left_targets), (right, right_targets) in pairs:
            assert torch.equal(left, right)
            assert torch.equal(left_targets, right_targets)
    streaming.close()


def test_a_folder_holds_the_images_that_were_written(digit_folder: Path) -> None:
    folder = load_folder(digit_folder)
    examples = digits_split("train", limit=120)
    assert folder.classes == [str(digit) for digit in range(10)]
    assert len(folder) == 120
    image, target, index = folder[17]
    number = int(folder.files[17].stem)
    assert index == 17
    assert target == examples.targets[number]
    assert torch.equal(image, examples.inputs[number].expand(3, 8, 8))  # grey becomes colour
    spec = describe(folder, None, None)
    pixels = folder.in_memory().inputs.numpy() / 255
    np.testing.assert_allclose(spec.mean, pixels.mean(axis=(0, 2, 3)), atol=1e-6)
    assert spec.input_shape == (3, 8, 8)


@pytest.mark.parametrize("kind", ["memory", "folder", "folder with workers"])
def test_iterating_leaves_the_global_random_state_alone(kind: str, digit_folder: Path) -> None:
    folder = load_folder(digit_folder)
    loader = loader_for(
        folder.in_memory() if kind == "memory" else folder,
        num_workers=2 if kind == "folder with workers" else 0,
        crop_padding=1,
        flip=True,
    )
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for epoch in (1, 2):
        batches(loader, epoch)
    loader.close()
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_an_epoch_left_halfway_does_not_disturb_the_next(digit_folder: Path) -> None:
    for examples in (load_folder(digit_folder), load_folder(digit_folder).in_memory()):
        loader, fresh = loader_for(examples), loader_for(examples)
        loader.set_epoch(1)
        iterator = iter(loader)
        next(iterator)
        next(iterator)
        for (left, _), (right, _) in zip(batches(loader, 2), batches(fresh, 2), strict=True):
            assert torch.equal(left, right)


def test_classes_have_the_training_folders_numbers(tmp_path: Path) -> None:
    for split, names in [("train", "cba"), ("val", "bc"), ("test", "c")]:
        for number, name in enumerate(names):
            path = tmp_path / split / name / "x.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    found = {split: load_folder(tmp_path, split) for split in ("train", "val", "test")}
    assert all(list(folder.classes) == ["a", "b", "c"] for folder in found.values())
    assert {split: folder.targets.tolist() for split, folder in found.items()} == {
        "train": [0, 1, 2],
        "val": [1, 2],
        "test": [2],
    }
    load = partial(load_split, lambda split: image_folder(split, str(tmp_path)), val_fraction=0.5, split_seed=0)
    assert len(load("train")) == 3  # its own validation folder is used, and nothing is cut off
    assert [path.parent.parent.name for path in load("val").files] == ["val", "val"]


def test_images_of_every_kind_become_colour_of_one_size(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    (folder / "nested").mkdir(parents=True)
    gradient = np.linspace(0, 255, 40 * 20).reshape(20, 40).astype(np.uint8)
    colour = np.stack([gradient, gradient[::-1], gradient[:, ::-1]], axis=2)
    Image.fromarray(gradient).save(folder / "grey.png")
    Image.fromarray(colour).save(folder / "colour.JPG", format="JPEG")
    Image.fromarray(colour).convert("P").save(folder / "palette.png")
    Image.fromarray(colour).convert("RGBA").save(folder / "nested" / "alpha.PNG", format="PNG")
    Image.fromarray(colour).save(folder / "exact.jpeg", quality=100)
    (folder / "notes.txt").write_text("not an image, and not taken for one")
    images = load_folder(tmp_path, image_size=10)
    assert len(images) == 5
    assert images.in_memory().inputs.shape == (5, 3, 10, 10)
    for index, path in enumerate(images.files):
        picture = Image.open(path).convert("RGB").resize((10, 10), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(images[index][0].numpy(), np.array(picture).transpose(2, 0, 1))


def corrupt(content: bytes) -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "text", b"this is no image\n"
    yield "cut", content[: len(content) // 2]
    yield "header only", content[:20]
    yield "html", b"<!DOCTYPE html><html>404</html>"


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_damaged_image_is_named(suffix: str, tmp_path: Path) -> None:
    write_images(tmp_path / "train", random_images(4, size=32), torch.zeros(4, dtype=torch.long), suffix)
    path = tmp_path / "train" / "0" / f"0002{suffix}"
    whole = path.read_bytes()
    for _, content in corrupt(whole):
        path.write_bytes(content)
        folder = load_folder(tmp_path)
        with pytest.raises(DataError, match=f"0002{suffix} is not an image") as caught:
            folder[2]
        assert "\n" not in str(caught.value)
        with pytest.raises(DataError, match=f"0002{suffix}"):
            batches(make_loader(folder, DataSpec((3, 8, 8), 1, "classification"), batch_size=2, device=CPU), 1)


def test_an_image_that_expands_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train" / "a" / "bomb.png"
    path.parent.mkdir(parents=True)
    Image.new("1", (20_000, 10_000)).save(path)
    with pytest.raises(DataError, match=r"bomb\.png"):
        load_folder(tmp_path)[0]


def test_a_damaged_image_ends_a_run_in_one_line(
    digit_folder: Path, tmp_path: Path, run_command: Callable[..., Outcome]
) -> None:
    """In a worker process too, whose errors come with a traceback of their own."""
    spoiled = sorted((digit_folder / "train").glob("*/*.png"))[40]
    spoiled.write_bytes(b"spoiled")
    for num_workers in (0, 1):
        outcome = run_command(
            "train",
            "data=image_folder",
            f"data.root={digit_folder}",
            f"data.num_workers={num_workers}",
            "data.image_size=8",
            "data.batch_size=16",
            "data.mean=[0.5]",
            "data.std=[0.5]",
            "trainer.epochs=1",
            "trainer.device=cpu",
            f"experiments_dir={tmp_path / 'experiments'}",
        )
        assert outcome.code == 2
        assert len(outcome.err.strip().splitlines()) == 1, outcome.err
        assert spoiled.name in outcome.err


FOLDER_MISTAKES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "no folder": (lambda root: None, "train", "no image folder in .*expected there: train/<class>"),
    "no class": (lambda root: (root / "train").mkdir(), "train", "holds no image"),
    "empty class": (lambda root: (root / "train" / "a").mkdir(parents=True), "train", "holds no image"),
    "unknown class": (
        lambda root: [
            (root / name).mkdir(parents=True) for name in ("train/a", "train/b", "test/a", "test/zebra")
        ],
        "test",
        "zebra",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDER_MISTAKES)
def test_folders_that_are_not_as_expected(case: str, tmp_path: Path) -> None:
    prepare, split, message = FOLDER_MISTAKES[case]
    prepare(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        image_folder(split, str(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_trains_and_evaluates(
    digit_folder: Path, run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    run = run_train(
        "data=image_folder",
        f"data.root={digit_folder}",
        "data.image_size=8",
        "data.num_workers=0",
        "data.batch_size=16",
        "trainer.epochs=2",
    )
    outcome = run_command("evaluate", f"run={run}")
    assert outcome.code == 0, outcome.err
    assert "120 test examples" in outcome.out


# ------------------------------------------------------------------------------------------------ downloaded datasets


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.error
    import urllib.request

    def refuse(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no network in a test")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


FILES = {
    "mnist": ("MNIST", "MNIST/raw/"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw/"),
    "kmnist": ("KMNIST", "KMNIST/raw/"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py/"),
    "cifar100": ("CIFAR100", "cifar-100-python/"),
}


@pytest.mark.parametrize("had_folder", [True, False], ids=["folder", "no folder"])
@pytest.mark.parametrize("data", FILES)
def test_data_that_is_not_there_ends_in_one_line(
    data: str, had_folder: bool, tmp_path: Path, run_command: Callable[..., Outcome], no_network: None
) -> None:
    root = tmp_path / "data"
    if had_folder:
        root.mkdir()
        (root / "mine.txt").write_text("keep")
    outcome = run_command("train", f"data={data}", f"data.root={root}", f"experiments_dir={tmp_path / 'experiments'}")
    name, files = FILES[data]
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert f"{name} is not in {root}" in outcome.err
    assert files in outcome.err
    assert "DATA_ROOT" in outcome.err
    assert [path.name for path in tmp_path.glob("**/*")] == (["data", "mine.txt"] if had_folder else [])


@needs_mnist
def test_mnist_is_read_as_it_lies_on_disk(no_network: None) -> None:
    sizes = {"train": 60_000, "test": 10_000}
    for split, size in sizes.items():
        examples = mnist(split, str(DATA_ROOT))
        assert examples is not None
        assert examples.inputs.shape == (size, 1, 28, 28)
        assert examples.inputs.dtype == torch.uint8
        assert examples.targets.dtype == torch.int64
        assert len(examples.classes) == 10
        prefix = {"train": "train", "test": "t10k"}[split]
        raw = DATA_ROOT / "MNIST" / "raw"
        pixels = np.frombuffer((raw / f"{prefix}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
        labels = np.frombuffer((raw / f"{prefix}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
        np.testing.assert_array_equal(examples.inputs.numpy().ravel(), pixels)
        np.testing.assert_array_equal(examples.targets.numpy(), labels)
    assert mnist("val", str(DATA_ROOT)) is None


def write_idx(path: Path, values: np.ndarray) -> None:
    """The format of MNIST's files."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(header + values.tobytes())


@pytest.mark.parametrize("data", ["mnist", "fashion_mnist", "kmnist"])
def test_files_in_mnists_format_train_and_evaluate(
    data: str, tmp_path: Path, run_train: Callable[..., Path], run_command: Callable[..., Outcome], no_network: None
) -> None:
    raw = tmp_path / FILES[data][1]
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for prefix, num in (("train", 200), ("t10k", 50)):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", generator.integers(0, 256, (num, 28, 28), np.uint8))
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", (np.arange(num) % 10).astype(np.uint8))
    run = run_train(f"data={data}", f"data.root={tmp_path}", "trainer.epochs=1", name=data)
    outcome = run_command("evaluate", f"run={run}")
    assert outcome.code == 0, outcome.err
    assert "50 test examples" in outcome.out


@pytest.mark.parametrize(("data", "num_classes", "key"), [("cifar10", 10, "labels"), ("cifar100", 100, "fine_labels")])
def test_files_in_cifars_format_are_colour_images(
    data: str, num_classes: int, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    import pickle

    import torchvision.datasets

    import model.datasets

    folder = tmp_path / FILES[data][1]
    folder.mkdir()
    pixels = {}
    training = [f"data_batch_{i}" for i in range(1, 6)] if data == "cifar10" else ["train"]
    for number, name in enumerate([*training, "test_batch" if data == "cifar10" else "test"]):
        images = random_images(num_classes, size=32, seed=number)
        pixels[name] = images
        content = {"data": images.flatten(1).numpy(), key: list(range(num_classes))}
        (folder / name).write_bytes(pickle.dumps(content))
    names = {"label_names" if data == "cifar10" else "fine_label_names": [f"class {i}" for i in range(num_classes)]}
    (folder / ("batches.meta" if data == "cifar10" else "meta")).write_bytes(pickle.dumps(names))
    # Their MD5 sums are those of the real files; the format is what matters here.
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())
    train_split = getattr(model.datasets, data)("train", str(tmp_path))
    test_split = getattr(model.datasets, data)("test", str(tmp_path))
    assert torch.equal(train_split.inputs, torch.cat([pixels[name] for name in training]))
    assert torch.equal(test_split.inputs, pixels["test_batch" if data == "cifar10" else "test"])
    assert train_split.targets.tolist() == list(range(num_classes)) * len(training)
    assert list(train_split.classes) == [f"class {i}" for i in range(num_classes)]
    assert describe(train_split, None, None).input_shape == (3, 32, 32)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_corrupt_image_is_one_line_also_from_a_worker(num_workers: int, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "train" / "a").mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / "a" / f"{number}.png")
    (tmp_path / "train" / "a" / "5.png").write_bytes(b"no image")
    folder = image_folder("train", str(tmp_path), image_size=8)
    spec = DataSpec((3, 8, 8), 1, "classification", (0.5,), (0.5,), ("a",))
    loader = make_loader(folder, spec, batch_size=2, num_workers=num_workers, device=torch.device("cpu"))
    with pytest.raises(DataError, match=r"5\.png is not an image that can be read") as caught:
        list(loader)
    loader.close()
    assert "\n" not in str(caught.value)


def test_sixteen_bit_images_are_scaled_and_what_programs_leave_is_no_class(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    values = (np.arange(64, dtype=np.uint32).reshape(8, 8) * 65535 // 63).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "train" / "a" / "deep.png")
    folder = image_folder("train", str(tmp_path), image_size=8)
    assert folder.classes == ["a"]
    image, _, _ = folder[0]
    np.testing.assert_allclose(image[0].numpy(), values / 257, atol=1)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.int64), "inputs are torch.float64"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), "channels, height, width"),
        (torch.zeros(4, 3), torch.zeros(4), "targets are torch.float32 of shape"),
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int32), "targets are torch.int32"),
    ],
)
def test_examples_of_a_wrong_type_say_what_is_right(inputs: Any, targets: Any, message: str) -> None:
    with pytest.raises(DataError, match="of shape") as caught:
        Examples(inputs, targets, ["a"])
    assert message in str(caught.value)
