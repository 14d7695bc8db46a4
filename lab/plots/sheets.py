"""Sheets of images with what a classifier says of them, drawn while networks train: without matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lab.plots.canvas import Box, Page, width_of
from lab.plots.colours import BLUE, BLUE_TINT, GREY_TINT, RED, RED_TINT
from lab.plots.figures import drawing, shorten

WIDTH = 480


@drawing
def draw_predictions(images: ArrayLike, probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str]) -> Page:
    """Up to 16 images, each with bars for its (up to five) likeliest classes, the true one always among them.

    Takes images [n, channels, height, width] in [0, 1], probabilities [n, classes], targets [n]. What is right has a
    tick and a thin frame, what is wrong a cross, "true → predicted" and a thick frame; the true class is bold.
    """
    images, probabilities, targets = (np.asarray(values)[:16] for values in (images, probabilities, targets))
    page, corners = _open_sheet(len(images), 3, 94)
    most = min(5, len(classes))
    for (left, top), image, values, target in zip(corners, images, probabilities, targets, strict=True):
        order = np.argsort(-values, kind="stable")
        guess = order[0]
        colour, title = BLUE, f"✓ {classes[target]}"
        if guess != target:
            colour, title = RED, f"✗ {_fit(classes[target], 60)} → {_fit(classes[guess], 60)}"
        page.text(left + 6, top + 14, _fit(title, 150, bold=True), bold=True, colour=colour)
        frame = _place_image(page, image, (left + 6, top + 20, left + 74, top + 88))
        page.rectangle(frame, outline=colour, thickness=1 if guess == target else 2.5)
        shown = order[:most] if target in order[:most] else [*order[: most - 1], target]
        for row, label in enumerate(shown):
            is_target = bool(label == target)
            height = 68 / most
            start, middle = top + 20 + row * height, top + 20 + (row + 0.5) * height
            tint = BLUE_TINT if is_target else RED_TINT if label == guess else GREY_TINT
            bar = (
                left + 79,
                start + 0.5,
                left + 79 + 76 * max(0.0, min(1.0, float(values[label]))),
                start + height - 0.5,
            )
            page.rectangle(bar, fill=tint)
            look: dict[str, Any] = {"size": 9, "bold": is_target}
            page.text(left + 81, middle, _fit(classes[label], 48, size=9, bold=is_target), anchor="lm", **look)
            page.text(left + 155, middle, f"{values[label]:.2f}", anchor="rm", **look)
    return page


@drawing
def draw_mistakes(images: ArrayLike, probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str]) -> Page:
    """A sheet of up to 25 images, each under "true → predicted, probability", in the order given.

    Takes images [n, channels, height, width] in [0, 1], probabilities [n, classes], targets [n].
    """
    images, probabilities, targets = (np.asarray(values)[:25] for values in (images, probabilities, targets))
    captions: list[list[str]] = []
    for values, target in zip(probabilities, targets, strict=True):
        true, guess, sure = str(classes[target]), str(classes[values.argmax()]), f"{values.max():.2f}"
        line = f"{true} → {guess}, {sure}"
        lines = [f"{_fit(true, 76, size=9)} →", f"{_fit(guess, 60, size=9)}, {sure}"]
        captions.append([line] if width_of(line, 9) <= 92 else lines)
    head = 14.0 * max(map(len, captions), default=1)
    page, corners = _open_sheet(len(images), 5, head + 86)
    for (left, top), image, lines in zip(corners, images, captions, strict=True):
        _place_image(page, image, (left + 8, top + head + 4, left + 88, top + head + 84))
        for row, line in enumerate(reversed(lines)):
            page.text(left + 48, top + head - 1 - 12 * row, line, size=9, anchor="ms")
    if not captions:
        page.text(WIDTH / 2, page.height / 2, "no mistakes", anchor="mm")
    return page


def _open_sheet(count: int, columns: int, height: float) -> tuple[Page, list[tuple[float, float]]]:
    """A page of `count` cells, `columns` in a row, and the left upper corners of the cells."""
    rows = max(1, -(-count // columns))
    corners = [(index % columns * WIDTH / columns, 2 + index // columns * height) for index in range(count)]
    return Page(WIDTH, rows * height + 6, smooth=1), corners


def _place_image(page: Page, image: ArrayLike, box: Box) -> Box:
    """Shows an image [channels, height, width] within a square box, not stretched; returns the box that it takes."""
    pixels = to_pixels(image)
    side = box[2] - box[0]
    height, width = side * np.array(pixels.shape[:2]) / max(pixels.shape[:2])
    left, top = box[0] + (side - width) / 2, box[1] + (side - height) / 2
    taken = (float(left), float(top), float(left + width), float(top + height))
    page.image(pixels, taken)
    return taken


def to_pixels(image: ArrayLike) -> NDArray[Any]:
    """[channels, height, width] in [0, 1] -> [height, width, 3]; what is neither grey nor RGB is shown as its mean."""
    values = np.asarray(image, dtype=float)
    values = values if len(values) == 3 else np.repeat(values.mean(0, keepdims=True), 3, axis=0)
    return values.transpose(1, 2, 0).clip(0, 1)


def to_bytes(image: ArrayLike) -> NDArray[np.uint8]:
    """The same as uint8 [height, width, 3]."""
    return (255 * to_pixels(image)).round().astype(np.uint8)


def _fit(name: object, width: float, *, size: float = 11, bold: bool = False) -> str:
    """A name on one line, shortened in its middle until it is no wider than `width`."""
    text = shorten(name, 60)
    while len(text) > 3 and width_of(text, size, bold=bold) > width:
        text = shorten(name, min(len(text), len(str(name))) - 1)
    return text
