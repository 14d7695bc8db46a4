"""Image files: which of a folder's are images, and what one becomes on its way into memory."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from model.trees import DataError

Resize = Literal["stretch", "crop", "pad"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# What an image file may really hold. Pillow goes by the content, and has readers that start other programs: not for these.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
ORIENTATION = 274  # the number of EXIF's field that says which side of a photograph is up
NAMED_AT_MOST = 5  # of the files that are skipped


def shown_name(path: Path | str) -> str:
    """A file's name as text that can be written anywhere, whatever bytes it is made of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is what programs leave, such as ._x.png, .DS_Store, .ipynb_checkpoints or __MACOSX."""
    return path.name.startswith((".", "__"))


def list_images(folder: Path) -> tuple[list[Path], Counter[str]]:
    """(the image files below a folder, in order; how many files are skipped, by what they are)."""
    images, skipped = [], Counter[str]()
    for path in sorted(folder.glob("**/*")):
        if not path.is_file():
            continue
        if any(is_hidden(folder / part) for part in path.relative_to(folder).parts):
            skipped["hidden"] += 1
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            images.append(path)
        else:
            skipped[shown_name(path.suffix) or "without an ending"] += 1
    return images, skipped


def read_image(path: Path, size: int, *, channels: int = 3, resize: Resize = "stretch") -> Tensor:
    """An image file, the right way up, as uint8 [channels, size, size]; DataError where it cannot be decoded.

    resize: to a square by stretching it, by cutting off what is too long at both ends, or by padding with black.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=IMAGE_FORMATS) as file:
                if file.mode == "F":
                    raise ValueError("its pixels are floats, which have no white")
                # Pillow cuts 16 bits off at 255 where it should scale them.
                deep = file.mode.startswith("I")
                image = Image.fromarray((np.asarray(file) / 257).astype(np.uint8)) if deep else file
                if image.getexif().get(ORIENTATION, 1) != 1:
                    image = ImageOps.exif_transpose(image)
                image = image.convert("RGB" if channels == 3 else "L")
                if image.size != (size, size):
                    image = RESIZE[resize](image, size)
                return torch.from_numpy(np.array(image)).view(size, size, channels).permute(2, 0, 1)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes end Pillow's decoders in errors of every kind
        reason = str(error).replace(f" {str(path)!r}", "") or type(error).__name__
        raise DataError(
            f"{shown_name(path)} is not an image that can be read ({shown_name(reason)}); mend or remove it, or set "
            f"data.skip_broken=true"
        ) from error


def stretch(image: Any, size: int) -> Any:
    """An image of Pillow in a square, whatever its sides are."""
    return image.resize((size, size), 2)  # Image.Resampling.BILINEAR


def crop(image: Any, size: int) -> Any:
    """The middle of an image, as much of it as is square."""
    from PIL import ImageOps

    return ImageOps.fit(image, (size, size), 2)


def pad(image: Any, size: int) -> Any:
    """The whole image in the middle of a black square."""
    from PIL import ImageOps

    return ImageOps.pad(image, (size, size), 2)


RESIZE = {"stretch": stretch, "crop": crop, "pad": pad}


def without_broken(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(the image files that can be decoded, those that cannot); each is read, on all processors."""

    def can_be_read(path: Path) -> bool:
        try:
            read_image(path, 1)
        except DataError:
            return False
        return True

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sound = list(pool.map(can_be_read, files))
    pairs = list(zip(files, sound, strict=True))
    return [path for path, is_sound in pairs if is_sound], [path for path, is_sound in pairs if not is_sound]
