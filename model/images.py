"""Image files: what one becomes on its way into memory."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.trees import DataError

# What an image file may really hold. Pillow goes by the content, and has readers that start other programs: not for these.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def read_image(path: Path, size: int) -> Tensor:
    """An image file as uint8 [3, size, size]; DataError with the file's name where it cannot be decoded."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=IMAGE_FORMATS) as file:
                # Pillow cuts 16 bits off at 255 where it should scale them.
                deep = file.mode.startswith("I")
                image = Image.fromarray((np.asarray(file) / 257).astype(np.uint8)) if deep else file
                image = image.convert("RGB")
                if image.size != (size, size):
                    image = image.resize((size, size), Image.Resampling.BILINEAR)
                return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = str(error).replace(f" {str(path)!r}", "") or type(error).__name__
        raise DataError(f"{path} is not an image that can be read ({reason}); mend or remove it") from error
