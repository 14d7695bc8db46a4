"""Pages drawn with Pillow alone, for what every run draws: matplotlib takes half a second to import and 0.1 s a picture.

Lengths are those at which a page is shown, 1/96 inch; its pixels are twice as many, so that it is sharp on any screen.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from lab.plots.colours import BLACK, GREY, WHITE, mix

SCALE = 2  # pixels for each unit of length
Box = tuple[float, float, float, float]  # left, top, right, bottom


@functools.cache
def font_of(size: float, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which lies in matplotlib's folder (found without importing it)."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.origin is not None
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name
    return ImageFont.truetype(path, size * SCALE, layout_engine=ImageFont.Layout.BASIC)


class Words(NamedTuple):
    """A line of text on a page; anchor as Pillow has it: l, m, r and t (top), m, s (baseline)."""

    x: float
    y: float
    text: str
    size: float
    bold: bool
    colour: str
    anchor: str
    halo: bool
    turned: bool


class Page:
    """A page of so many units: shapes in the order of drawing, words above them all. smooth: how finely edges are drawn."""

    def __init__(self, width: float, height: float, *, smooth: int = 3, background: str = WHITE) -> None:
        self.width, self.height, self.smooth, self.background = width, height, smooth, background
        self.fine = SCALE * smooth
        self.words: list[Words] = []
        self.shapes = Image.new("RGB", (round(width * SCALE) * smooth, round(height * SCALE) * smooth), background)
        self.pen = ImageDraw.Draw(self.shapes)

    def render(self) -> Image.Image:
        """The page as an image, twice as many pixels as units."""
        image = self.shapes.reduce(self.smooth) if self.smooth > 1 else self.shapes.copy()
        pen = ImageDraw.Draw(image)
        for mark in self.words:
            place = (round(mark.x * SCALE), round(mark.y * SCALE))
            look: dict[str, Any] = {"fill": mark.colour, "font": font_of(mark.size, mark.bold), "anchor": mark.anchor}
            if mark.halo:
                look |= {"stroke_width": 2 * SCALE, "stroke_fill": self.background}
            if mark.turned:
                _write_upwards(image, mark)
            else:
                pen.text(place, mark.text, **look)
        return image

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 11,
        bold: bool = False,
        colour: str = BLACK,
        anchor: str = "ls",
        halo: bool = False,
        turned: bool = False,
    ) -> None:
        """A line of text; halo: with a rim in the page's colour, for words upon marks; turned: upwards."""
        self.words.append(Words(x, y, text, size, bold, colour, anchor, halo, turned))

    def rectangle(self, box: Box, *, fill: str | None = None, outline: str | None = None, thickness: float = 1) -> None:
        left, top, right, bottom = (round(value * self.fine) for value in box)
        width = max(1, round(thickness * self.fine))
        self.pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill, outline, width)

    def line(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        colour: str,
        thickness: float = 1.8,
        dash: tuple[float, float] | None = None,
    ) -> None:
        """A line through points, broken where one is not finite; what lies far outside the page is brought nearer."""
        points = np.stack(np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float)), axis=-1).reshape(-1, 2)
        known = np.isfinite(points).all(axis=1)
        points = points.clip(-2 * self.width, 3 * self.width)
        for indices in np.split(np.arange(len(points)), np.flatnonzero(~known)):
            part = points[indices[known[indices]]]
            pieces = _dashes(part, *dash) if dash else [part]
            for piece in pieces:
                if len(piece) > 1:
                    flat = [tuple(point) for point in np.round(piece * self.fine).tolist()]
                    self.pen.line(flat, colour, max(1, round(thickness * self.fine)), joint="curve")

    def dots(
        self, x: ArrayLike, y: ArrayLike, *, fill: str, radius: float = 2.5, shape: str = "o", edge: str | None = None
    ) -> None:
        """A mark at each point: a circle "o", ring "O", square "s", triangle "^", diamond "D", cross "x"."""
        points = np.stack(np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float)), axis=-1).reshape(-1, 2)
        for place in points[np.isfinite(points).all(axis=1)] * self.fine:
            self._mark(place, fill, radius * self.fine, shape, edge)

    def _mark(self, place: NDArray[Any], fill: str, size: float, shape: str, edge: str | None) -> None:
        rim = max(1.0, 0.6 * self.fine)
        if shape == "O":
            self.pen.ellipse((*(place - size), *(place + size)), None, fill, round(1.4 * self.fine))
        elif shape == "x":
            for corner in ((1, 1), (1, -1)):
                ends = [tuple(place + sign * size * np.array(corner)) for sign in (-1, 1)]
                self.pen.line(ends, fill, round(1.5 * self.fine))
        else:  # an outline of Pillow's is slow: a larger mark below does for one
            for colour, reach in ((edge, size + rim), (fill, size)) if edge else ((fill, size),):
                if shape == "o":
                    self.pen.ellipse((*(place - reach), *(place + reach)), colour)
                else:
                    self.pen.polygon([(place[0] + reach * x, place[1] + reach * y) for x, y in CORNERS[shape]], colour)

    @contextlib.contextmanager
    def within(self, box: Box) -> Iterator[None]:
        """Shapes drawn meanwhile end at the borders of a box."""
        before = self.shapes.copy()
        yield
        left, top, right, bottom = (round(value * self.fine) for value in box)
        inner = self.shapes.crop((left, top, right, bottom))
        self.shapes.paste(before)
        self.shapes.paste(inner, (left, top))

    def image(self, pixels: ArrayLike, box: Box, *, smooth: bool = False) -> None:
        """An image [height, width, 3] in [0, 1], stretched to a box."""
        left, top, right, bottom = (round(value * self.fine) for value in box)
        small = Image.fromarray(np.round(np.asarray(pixels) * 255).astype(np.uint8))
        how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
        self.shapes.paste(small.resize((right - left, bottom - top), how), (left, top))


def _write_upwards(image: Image.Image, mark: Words) -> None:
    """Words from below to above, centred on x; their anchor says whether y is their start ("l"), middle or end ("r")."""
    font = font_of(mark.size, mark.bold)
    long, high = math.ceil(font.getlength(mark.text)) + 2, round(1.4 * mark.size * SCALE)
    strip = Image.new("L", (long, high))
    ImageDraw.Draw(strip).text((0, high / 2), mark.text, fill=255, font=font, anchor="lm")
    top = mark.y * SCALE - {"l": long, "m": long / 2, "r": 0}[mark.anchor[0]]
    image.paste(mark.colour, (round(mark.x * SCALE - high / 2), round(top)), strip.transpose(Image.Transpose.ROTATE_90))


CORNERS = {
    "s": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "D": ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
    "^": ((0, -1.15), (1.05, 0.75), (-1.05, 0.75)),
    "v": ((0, 1.15), (1.05, -0.75), (-1.05, -0.75)),
    "P": ((-0.4, -1), (0.4, -1), (0.4, -0.4), (1, -0.4), (1, 0.4), (0.4, 0.4), (0.4, 1), (-0.4, 1), (-0.4, 0.4), (-1, 0.4),
          (-1, -0.4), (-0.4, -0.4)),
    "<": ((-1.15, 0), (0.75, 1.05), (0.75, -1.05)),
    ">": ((1.15, 0), (-0.75, 1.05), (-0.75, -1.05)),
    "|": ((-0.45, -1.2), (0.45, -1.2), (0.45, 1.2), (-0.45, 1.2)),
    "-": ((-1.2, -0.45), (1.2, -0.45), (1.2, 0.45), (-1.2, 0.45)),
}  # fmt: skip


def _dashes(points: NDArray[Any], on: float, off: float) -> list[NDArray[Any]]:
    """The pieces of a line that a dash pattern leaves."""
    lengths = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))]) if len(points) > 1 else [0.0]
    pieces = []
    for start in np.arange(0.0, lengths[-1], on + off):
        inner = (lengths > start) & (lengths < start + on)
        places = np.concatenate([[start], np.asarray(lengths)[inner], [min(start + on, lengths[-1])]])
        pieces.append(np.stack([np.interp(places, lengths, column) for column in points.T], axis=-1))
    return pieces


def width_of(text: str, size: float = 11, *, bold: bool = False) -> float:
    """How wide a line of text is."""
    return font_of(size, bold).getlength(text) / SCALE


class Scale:
    """Takes values between `low` and `high` to places between `start` and `end` on a page, linearly or by logarithm."""

    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool = False) -> None:
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    def __call__(self, values: ArrayLike) -> NDArray[Any]:
        low, high, numbers = self.low, self.high, np.asarray(values, dtype=float)
        if self.log:
            low, high = math.log(low), math.log(high)
            numbers = np.log(np.where(numbers > 0, numbers, np.nan))
        return self.start + (numbers - low) / ((high - low) or 1.0) * (self.end - self.start)

    def ticks(self, most: int = 5, *, whole: bool = False) -> list[float]:
        """About `most` round values on the scale, evenly spread."""
        if self.log and len(ticks := self._ticks_of_logarithm(most)) > 1:
            return ticks
        raw = (self.high - self.low) / most or 1.0
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(size * times for times in (1, 2, 2.5, 5, 10) if size * times >= raw * 0.999)
        step = max(1, round(step)) if whole else step
        return [step * n for n in range(math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6) + 1)]

    def _ticks_of_logarithm(self, most: int) -> list[float]:
        """Powers of ten, or also some of their multiples where the scale holds few of them."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = max(1, math.ceil((last - first) / most))
        ticks: list[float] = []
        families: Sequence[Sequence[float]] = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 8))
        for steps in families if every == 1 else families[:1]:
            ticks = [step * 10.0**decade for decade in range(first, last + 1, every) for step in steps]
            ticks = [tick for tick in ticks if self.low <= tick <= self.high]
            if len(ticks) > 2:
                break
        return ticks


class Panel:
    """A pair of axes on a page: two scales within a box; draws its grid and the numbers at its ticks."""

    def __init__(
        self, page: Page, box: Box, x: tuple[float, float], y: tuple[float, float], *, log: bool = False
    ) -> None:
        self.page, self.box = page, box
        left, top, right, bottom = box
        self.x, self.y = Scale(*x, left, right), Scale(*y, bottom, top, log=log)

    def axes(self, *, ticks: int = 4, size: float = 10, ink: str = BLACK) -> None:
        """Grid lines with their numbers, and the line of the x axis."""
        left, _, right, bottom = self.box
        grey, dark = mix(GREY, self.page.background, 0.25), mix(ink, self.page.background, 0.85)
        for tick in self.y.ticks(ticks) if ticks else []:
            place = float(self.y(tick))
            self.page.line([left, right], [place, place], colour=grey, thickness=0.8)
            self.page.text(left - 5, place, as_number(tick), size=size, anchor="rm", colour=dark)
        self.page.line([left, right], [bottom, bottom], colour=dark, thickness=1)

    def below(self, label: str, *, ticks: int = 5, whole: bool = False, size: float = 10, ink: str = BLACK) -> None:
        """Ticks of the x axis with their numbers, and what they are."""
        left, _, right, bottom = self.box
        dark = mix(ink, self.page.background, 0.85)
        for tick in self.x.ticks(ticks, whole=whole):
            place = float(self.x(tick))
            self.page.line([place, place], [bottom, bottom + 3], colour=dark, thickness=1)
            self.page.text(place, bottom + 5, as_number(tick), size=size, anchor="mt", colour=dark)
        self.page.text((left + right) / 2, bottom + 8 + size, label, size=size, anchor="mt", colour=dark)


UNITS = ((1e6, "M", 1e6), (1e3, "k", 1e4))  # 2M, 20k, but 2000


def as_number(value: float, digits: int = 4) -> str:
    """A tick's number, short and with a real minus sign: 20k, 0.05, 1e-5."""
    size, unit = next((unit for unit in UNITS if unit[2] <= abs(value) < 1e9), (1.0, "", 0))[:2]
    if 0 < abs(value) < 1e-3:
        size = 10.0 ** math.floor(math.log10(abs(value) * (1 + 1e-9)))
        unit = f"e{round(math.log10(size))}"
    return f"{value / size:.{digits}g}{unit}".replace("e+", "e").replace("-", "\u2212")


def spread(places: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Places moved as little as needed to be `apart` from each other and within limits, in their order."""
    order = np.argsort(places, kind="stable")
    moved = np.asarray(places, float)[order]
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + apart)
    moved[-1:] = np.minimum(moved[-1:], high)
    for index in range(len(moved) - 2, -1, -1):
        moved[index] = min(moved[index], moved[index + 1] - apart)
    moved = np.maximum(moved, low + apart * np.arange(len(moved)))
    return [float(moved[np.flatnonzero(order == index)[0]]) for index in range(len(places))]
