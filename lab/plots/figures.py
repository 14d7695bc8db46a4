"""What all pictures share: the files they become, the error of one that cannot be drawn, and words and numbers on them.

Nothing here imports matplotlib, which takes half a second: what every run draws is drawn without it (`canvas`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from lab.plots.canvas import Page
from lab.plots.drawing import DrawingError, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Frames = list[NDArray[np.uint8]]
Picture = Union[Page, "Figure", NDArray[np.uint8]]  # an array: pixels [height, width, 3]
# -------------------------------------------------------------------------------------------------------------- files


@drawing
def to_image(picture: Picture) -> NDArray[np.uint8]:
    """The pixels of a picture, uint8 [height, width, 3].

    The layout that the first call finds for a figure stays, so that a second one gives the same pixels.
    """
    if isinstance(picture, np.ndarray):
        return picture
    if isinstance(picture, Page):
        return np.asarray(picture.render())
    from lab.plots.pages import pixels_of

    return pixels_of(picture)


def to_png(picture: Picture) -> bytes:
    """A picture as the content of a PNG file; the same picture gives the same bytes. DrawingError."""
    buffer = io.BytesIO()
    # Through Pillow, since savefig would write matplotlib's version into the file.
    Image.fromarray(to_image(picture)).save(buffer, "PNG", compress_level=2)
    return buffer.getvalue()


def save_png(picture: Picture, path: str | Path) -> None:
    """Writes a picture as PNG, whole or not at all. DrawingError, OSError."""
    _write_file(Path(path), to_png(picture))


def save_gif(
    pictures: Sequence[Picture],
    path: str | Path,
    *,
    frames_per_second: float = 10.0,
    hold_last_seconds: float = 2.0,
    most_bytes: int = 400_000,
) -> None:
    """Writes pictures (all of one size) as a GIF that loops, whole or not at all.

    Consecutive frames that are equal become one that is shown for longer. Where the file would be larger than
    `most_bytes`, frames are left out, down to twelve, and then half of the size. DrawingError where there is no frame.
    """
    if not len(pictures):
        raise DrawingError("a GIF needs at least one frame")
    images = [Image.fromarray(to_image(picture)) for picture in pictures]
    duration = 1000 * len(images) / frames_per_second
    content = _encode_gif(images, duration, 1000 * hold_last_seconds)
    while len(content) > most_bytes and len(images) > 12:
        fewer = max(12, int(0.95 * len(images) * most_bytes / len(content)))
        images = [images[index] for index in np.linspace(0, len(images) - 1, fewer).round().astype(int)]
        content = _encode_gif(images, duration, 1000 * hold_last_seconds)
    if len(content) > most_bytes:
        content = _encode_gif([image.reduce(2) for image in images], duration, 1000 * hold_last_seconds)
    _write_file(Path(path), content)


def _encode_gif(images: Sequence[Image.Image], duration: float, hold: float) -> bytes:
    """A GIF that lasts so many milliseconds, its last frame `hold` longer."""
    # One palette for all frames, learned from some of them: then only what moved is stored. Dithering would flicker.
    # One of 64 colours stays free for "as before"; white is mended, since a learned one is not quite white.
    some = [np.asarray(images[index]) for index in np.unique(np.linspace(0, len(images) - 1, 4).astype(int))]
    palette = Image.fromarray(np.concatenate(some)).quantize(63)
    learned = np.reshape(palette.getpalette() or [], (-1, 3))
    palette.putpalette(np.where(learned.min(1, keepdims=True) >= 248, 255, learned).ravel().tolist())
    first, *rest = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
    durations = [round(duration / len(images) / 10) * 10] * len(images)
    durations[-1] += round(hold)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=False)
    return buffer.getvalue()


def _write_file(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # it may be a link, through which a file elsewhere would be written
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# -------------------------------------------------------------------------------------------------- words and numbers


def shorten(name: object, length: int) -> str:
    """A name of at most `length` characters on one line; the middle goes, since names often differ at their ends."""
    text = " ".join(str(name).split())
    return text if len(text) <= length else f"{text[: length // 2]}…{text[len(text) - (length - 1) // 2 :]}"


def thin(count: int, most: int) -> list[int]:
    """Evenly spaced indices below `count`, at most `most` of them."""
    return list(range(0, count, math.ceil(count / most)))


def finite(values: ArrayLike) -> NDArray[Any]:
    """The values with nan for whatever is not finite: matplotlib leaves gaps there and scales to the rest."""
    numbers = np.asarray(values, dtype=float)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def possible_range(metric: str, least: float) -> tuple[float, float]:
    """Between what a metric can be, judged by its name and by whether its `least` value is negative."""
    name = metric.rpartition("/")[2]
    return 0.0 if least >= 0 else -math.inf, 1.0 if name in ("accuracy", "r2") else math.inf


def span_of(values: NDArray[Any]) -> float:
    """How many times the smallest of the values the largest is; 1 where not all are above zero."""
    known = values[np.isfinite(values)]
    return float(known.max() / known.min()) if len(known) and known.min() > 0 else 1.0


def is_number(text: str) -> bool:
    """Whether a text is that of a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
