"""Datasets: where examples come from.

A dataset is a function `(split, root, **its own keys) -> Examples`, named by a file in `conf/data/`. It is called with
"train", "val" or "test" and returns None for a split that it does not have ("val" is then cut off "train"). The
annotation of its return value is what marks it as a dataset.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from model.cache import cache_folder, decode_once
from model.examples import Examples, Folder
from model.images import (
    IMAGE_SUFFIXES,
    NAMED_AT_MOST,
    RESIZE,
    Resize,
    is_hidden,
    list_images,
    shown_name,
    without_broken,
)
from model.trees import DataError

LARGEST_IMAGE = 2**14
DIGITS = [str(digit) for digit in range(10)]


def digits(split: str, root: str) -> Examples | None:
    """The 1,797 handwritten digits, 8x8, that come with scikit-learn (UCI Optical Recognition of Handwritten Digits).

    A fifth of each class, fixed for ever, is the test split.
    """
    if split == "val":
        return None
    table = torch.from_numpy(np.loadtxt(_digits_file(), delimiter=","))  # [1797, 64 pixels and the label]
    pixels = table[:, :-1].mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)  # stored as 0 to 16
    targets = table[:, -1].long()
    rank_in_class = torch.empty_like(targets)
    for label in range(10):
        rank_in_class[targets == label] = torch.arange(int((targets == label).sum()))
    is_test = rank_in_class % 5 == 4
    chosen = is_test if split == "test" else ~is_test
    return Examples(pixels[chosen], targets[chosen], DIGITS)


def _digits_file() -> Path:
    """Where scikit-learn keeps the digits: read without importing it, which takes longer than training on them."""
    package = find_spec("sklearn")
    folders = package.submodule_search_locations if package else None
    if not folders or not (path := Path(folders[0], "datasets", "data", "digits.csv.gz")).is_file():
        raise DataError("scikit-learn, which the digits come with, is not installed; pip install scikit-learn")
    return path


def mnist(split: str, root: str) -> Examples | None:
    """MNIST: 60,000 + 10,000 handwritten digits, 28x28 (LeCun et al. 1998)."""
    examples = _torchvision("MNIST", split, root, "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte")
    return replace(examples, classes=DIGITS) if examples else None


def fashion_mnist(split: str, root: str) -> Examples | None:
    """Fashion-MNIST: 60,000 + 10,000 pictures of clothes, 28x28 (Xiao et al. 2017)."""
    return _torchvision("FashionMNIST", split, root, "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte")


def kmnist(split: str, root: str) -> Examples | None:
    """Kuzushiji-MNIST: 60,000 + 10,000 cursive Japanese characters, 28x28 (Clanuwat et al. 2018)."""
    return _torchvision("KMNIST", split, root, "KMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte")


def cifar10(split: str, root: str) -> Examples | None:
    """CIFAR-10: 50,000 + 10,000 colour photographs, 32x32 (Krizhevsky 2009)."""
    return _torchvision("CIFAR10", split, root, "cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}")


def cifar100(split: str, root: str) -> Examples | None:
    """CIFAR-100: 50,000 + 10,000 colour photographs of 100 classes, 32x32 (Krizhevsky 2009)."""
    return _torchvision("CIFAR100", split, root, "cifar-100-python/{train,test,meta}")


def _torchvision(name: str, split: str, root: str, files: str) -> Examples | None:
    """A torchvision dataset, downloaded into `root` where it is not there yet, by one process at a time."""
    if split == "val":
        return None
    import torchvision.datasets
    from filelock import FileLock

    make, train, folder = getattr(torchvision.datasets, name), split == "train", Path(root).resolve()
    unreadable = (RuntimeError, OSError, ValueError, EOFError, AssertionError)
    # The lock is not in `root`, which may be read-only; whoever waited for it finds the files that the first one wrote.
    lock = f"{name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}-{getpass.getuser()}.lock"
    with FileLock(Path(tempfile.gettempdir()) / lock):
        try:
            dataset = make(root, train=train, download=False)
        except unreadable:
            try:
                archive = getattr(make, "filename", "")  # of CIFAR; it lies beside what comes out of it
                with _nothing_half_made(folder, folder / files.split("/")[0], *[folder / archive] * bool(archive)):
                    dataset = make(root, train=train, download=True)
            except unreadable as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise DataError(
                    f"{name} is not in {folder} or is damaged there, and downloading it failed; expected there: {files}; "
                    f"remove what is damaged, or point data.root or DATA_ROOT elsewhere ({reason[:120]})"
                ) from error
    pixels = torch.as_tensor(dataset.data)
    pixels = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
    return Examples(pixels.contiguous(), torch.as_tensor(dataset.targets).long(), list(dataset.classes))


@contextlib.contextmanager
def _nothing_half_made(root: Path, *made: Path) -> Iterator[None]:
    """Removes what was not there before of `root` and of the files and folders `made` in it, where a download fails."""

    def listed() -> set[Path]:
        found = {path for top in made for path in [top, *top.rglob("*")] if path.exists()}
        return found | {path for path in (root, *root.parents) if path.exists()}

    before = listed()
    try:
        yield
    except BaseException:
        for path in sorted(listed() - before, reverse=True):  # what is in a folder before the folder
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        raise


def image_folder(
    split: str,
    root: str,
    *,
    image_size: int = 32,
    channels: int = 3,
    resize: Resize = "stretch",
    skip_broken: bool = False,
    cache: str | None = None,
) -> Folder | None:
    """Your own images: root/train/<class>/ and below it, and val/ and test/ likewise where you have them.

    They become squares of `image_size`, in colour or (channels=1) grey; resize: stretch, crop or pad. skip_broken: all are
    read once at the start, and those that cannot be are left out. cache: a folder where they are kept decoded, so that
    every epoch but the first is as fast as from memory.
    """
    if not 1 <= image_size <= LARGEST_IMAGE:
        raise DataError(f"data.image_size is {image_size}; it takes a whole number from 1 to {LARGEST_IMAGE}")
    if channels not in (1, 3) or resize not in RESIZE:
        raise DataError(
            f"image_folder takes data.channels 1 or 3, and data.resize {', '.join(RESIZE)}; given: {channels}, {resize}"
        )
    folder, expected = Path(root) / split, f"train/<class>/* ({' '.join(IMAGE_SUFFIXES)})"
    if not folder.is_dir():
        if split == "train" or not Path(root).is_dir():
            raise DataError(
                f"no image folder in {Path(root).resolve()}; expected there: {expected}, and val/, test/ likewise, if you "
                f"have them; point data.root or DATA_ROOT at it"
            )
        return None
    # The training folder, if it is there, names the classes, so that a class has the same number in every split.
    training = Path(root) / "train"
    classes = class_folders(training if training.is_dir() else folder)
    unknown = [shown_name(name) for name in class_folders(folder) if name not in classes]
    if unknown:
        raise DataError(f"{folder} holds classes that {root}/train lacks: {', '.join(unknown[:5])}")
    labelled, skipped, broken = [], Counter[str](), []
    for label, name in enumerate(classes):
        files, others = list_images(folder / name)
        skipped += others
        if skip_broken:
            files, unreadable = without_broken(files)
            broken += unreadable
        labelled += [(path, label) for path in files]
    if not labelled:
        raise DataError(f"{folder} holds no image; expected in {root}: {expected}")
    images = Folder(
        [path for path, _ in labelled],
        torch.tensor([label for _, label in labelled]),
        [shown_name(name) for name in classes],
        image_size,
        channels=channels,
        resize=resize,
        notes=skipping_notes(folder, skipped, broken),
    )
    return images if cache is None else decode_once(images, cache_folder(cache))


def class_folders(folder: Path) -> list[str]:
    """The names of a folder's classes, in order."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path))


def skipping_notes(folder: Path, skipped: Counter[str], broken: Sequence[Path]) -> list[str]:
    """Lines that say which files of a split are left out."""
    notes = []
    if skipped:
        kinds = ", ".join(f"{number} {kind}" for kind, number in skipped.most_common(NAMED_AT_MOST))
        notes.append(f"{skipped.total()} files in {shown_name(folder)} are no images and are skipped: {kinds}")
    if broken:
        names = ", ".join(shown_name(path.relative_to(folder)) for path in broken[:NAMED_AT_MOST])
        more = f" and {len(broken) - NAMED_AT_MOST} more" * (len(broken) > NAMED_AT_MOST)
        notes.append(f"{len(broken)} images in {shown_name(folder)} cannot be read and are skipped: {names}{more}")
    return notes


# ------------------------------------------------------------------------------------------------- generated datasets

# Of which split a number is the seed: each has examples of its own.
SPLIT_SEEDS = {"train": 0, "val": 1, "test": 2}


def quadratic(
    split: str,
    root: str,
    *,
    num_examples: int = 100,
    noise: float = 0.1,
    noise_shape: str = "normal",
    data_seed: int = 0,
) -> Examples:
    """y = x^2 + noise, for points x evenly from -1 to 1; noise from N(0, noise^2), or uniform in [0, noise]."""
    if num_examples < 2 or noise < 0 or noise_shape not in ("normal", "uniform"):
        raise DataError(
            f"quadratic takes data.num_examples of at least 2, data.noise of at least 0, and data.noise_shape normal or "
            f"uniform; given: {num_examples}, {noise}, {noise_shape}"
        )
    generator = _generator(split, data_seed)
    x = torch.linspace(-1, 1, num_examples).unsqueeze(1)
    draw = torch.randn if noise_shape == "normal" else torch.rand
    return Examples(x, x.square() + noise * draw(x.shape, generator=generator))


def gaussians(
    split: str, root: str, *, num_examples: int = 200, distance: float = 2.0, noise: float = 1.0, data_seed: int = 0
) -> Examples:
    """Points in the plane in two classes: half from N((distance, distance), noise^2 I), half from the other side of 0."""
    if num_examples < 2 or noise < 0:
        raise DataError(f"gaussians takes data.num_examples >= 2 and data.noise >= 0; given: {num_examples}, {noise}")
    targets = torch.arange(num_examples) % 2
    centres = distance * (1 - 2 * targets).float().unsqueeze(1)  # class 0 above, class 1 below
    points = centres + noise * torch.randn(num_examples, 2, generator=_generator(split, data_seed))
    return Examples(points, targets, ["above", "below"])


def random_regression(
    split: str, root: str, *, num_examples: int = 64, num_inputs: int = 1000, num_outputs: int = 10, data_seed: int = 0
) -> Examples:
    """Inputs and targets from N(0, 1) that have nothing to do with each other: what is learned is learned by heart.

    So the validation loss can only get worse; it is the training loss that shows whether an optimiser works.
    """
    if min(num_examples, num_inputs, num_outputs) < 1:
        raise DataError("random_regression takes data.num_examples, num_inputs and num_outputs of at least 1")
    generator = _generator(split, data_seed)
    inputs = torch.randn(num_examples, num_inputs, generator=generator)
    return Examples(inputs, torch.randn(num_examples, num_outputs, generator=generator))


def _generator(split: str, data_seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(3 * data_seed + SPLIT_SEEDS[split])
