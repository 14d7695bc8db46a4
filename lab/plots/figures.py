"""What all pictures share: their style, the pages they are drawn on, and the files they become.

Nothing here touches pyplot or leaves a trace in matplotlib's settings, so that it may run inside any script or test.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from numpy.typing import ArrayLike, NDArray
from PIL import Image

# Okabe and Ito's colours, which the colour-blind can tell apart; the tints are light enough to carry black text.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
YELLOW, BLACK, GREY, BLUE_TINT, RED_TINT, GREY_TINT = "#F0E442", "#222222", "#8C8C8C", "#9CCBEB", "#F4B183", "#DDDDDD"
LINES = [(BLUE, "-"), (RED, "--"), (GREEN, "-."), (ORANGE, (0, (1, 0.8))), (PURPLE, "-"), (SKY, "--"), (BLACK, "-.")]
LAYERS = [(7.0, YELLOW, "-"), (3.4, SKY, "-"), (1.4, BLACK, (0, (3, 2))), (1.4, RED, (0, (1, 4)))]
MARKERS = "o^sDvP*X<>"
# Petroff's ten, https://arxiv.org/abs/2107.02270, found so that the colour-blind can tell them apart in scatter plots.
TEN = ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"]

P = ParamSpec("P")
T = TypeVar("T")
Frames = list[NDArray[np.uint8]]
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a class may be called "$5" or "a_b"
    "text.usetex": False,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "figure.constrained_layout.w_pad": 0.08,
    "legend.fontsize": 8,
    "legend.edgecolor": "none",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.8,
}


class DrawingError(ValueError):
    """Something that cannot be drawn; whoever asked for the picture can go on without it."""


def styled(function: Callable[P, T]) -> Callable[P, T]:
    """A function that draws: our style holds during its calls and no longer, and what goes wrong is a DrawingError."""

    @functools.wraps(function)
    def draw(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with matplotlib.rc_context(STYLE):
                return function(*args, **kwargs)
        except DrawingError:
            raise
        except Exception as error:  # numbers of any kind come from runs of any kind
            raise DrawingError(f"{function.__name__}: {type(error).__name__}: {error}") from error

    return draw


# -------------------------------------------------------------------------------------------------------------- files


@styled
def to_image(figure: Figure) -> NDArray[np.uint8]:
    """The pixels of a figure, uint8 [height, width, 3].

    The layout that the first call finds stays, so that a second one gives the same pixels and no animation jumps.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_png(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG, whole or not at all; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    # Through Pillow, since savefig would write matplotlib's version into the file.
    Image.fromarray(to_image(figure)).save(buffer, "PNG", dpi=(figure.dpi, figure.dpi))
    _write_file(Path(path), buffer.getvalue())


def save_gif(
    figures_or_frames: Sequence[Figure | NDArray[np.uint8]],
    path: str | Path,
    *,
    frames_per_second: float = 10.0,
    hold_last_seconds: float = 2.0,
) -> None:
    """Writes figures or images (uint8 [height, width, 3], all of one size) as a GIF that loops, whole or not at all.

    Consecutive frames that are equal become one that is shown for longer. DrawingError where there is no frame.
    """
    if not len(figures_or_frames):
        raise DrawingError("a GIF needs at least one frame")
    frames = [to_image(frame) if isinstance(frame, Figure) else np.asarray(frame) for frame in figures_or_frames]
    # One palette for all frames, learned from some of them: then only what moved is stored. Dithering would flicker.
    # Of 256 colours one stays free for "as before"; white is mended, since a learned one is not quite white.
    some = np.unique(np.linspace(0, len(frames) - 1, 6).astype(int))
    palette = Image.fromarray(np.concatenate([frames[index] for index in some])).quantize(255)
    colours = np.reshape(palette.getpalette() or [], (-1, 3))
    palette.putpalette(np.where(colours.min(1, keepdims=True) >= 248, 255, colours).ravel().tolist())
    first, *rest = (Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    durations = [round(1000 / frames_per_second)] * len(frames)
    durations[-1] += round(1000 * hold_last_seconds)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=False)
    _write_file(Path(path), buffer.getvalue())


def _write_file(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # it may be a link, through which a file elsewhere would be written
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# -------------------------------------------------------------------------------------------------------------- pages


def open_figure(width: float, height: float, *, dots: int = 150, layout: Any = "constrained") -> Figure:
    """An empty figure, its size in inches."""
    figure = Figure(figsize=(width, height), dpi=dots, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def open_panels(
    count: int, *, width: float, height: float, note: float = 0, most: int = 3
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most `most` in a row, which share their y axis, and `note` inches free below them."""
    columns = min(most, count)
    rows = math.ceil(count / columns)
    figure = open_figure(width * columns + 0.5, height * rows + note)
    figure.get_layout_engine().set(rect=(0, note / figure.get_figheight(), 1, 1 - note / figure.get_figheight()))  # type: ignore[union-attr, call-arg]
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes in panels[count:]:
        axes.axis("off")
    return figure, list(panels[:count])


def open_frame() -> tuple[Figure, Axes, Any, Any]:
    """A figure of 480 x 360 pixels, small enough for a GIF, its axes, and the texts above them, left and right."""
    figure = open_figure(4.8, 3.6, dots=100)
    axes = figure.subplots()
    return figure, axes, axes.set_title("", loc="left"), axes.set_title("", loc="right")


def open_sheet(count: int, most: int, width: float, height: float, inches: float) -> tuple[Figure, Axes, Any]:
    """A page of `count` cells, at most `most` in a row, and the corners [count, 2] of the cells, y downwards.

    All share one pair of axes: axes of its own for each picture would take seconds to draw.
    """
    columns = min(most, max(1, count))
    rows = max(1, math.ceil(count / columns))
    figure = open_figure(columns * width * inches, rows * height * inches, layout=None)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, columns * width), ylim=(rows * height, 0))
    axes.axis("off")
    return figure, axes, [(index % columns * width, index // columns * height) for index in range(count)]


def place_image(axes: Axes, image: ArrayLike, left: float, top: float) -> tuple[float, float, float, float]:
    """Shows an image [channels, height, width] in a square of side 1; returns the left, top, width, height it takes."""
    pixels = to_pixels(image)
    height, width = np.array(pixels.shape[:2]) / max(pixels.shape[:2])
    left, top = left + (1 - width) / 2, top + (1 - height) / 2
    axes.imshow(pixels, extent=(left, left + width, top + height, top), aspect="auto")
    return left, top, width, height


def to_pixels(image: ArrayLike) -> NDArray[Any]:
    """[channels, height, width] in [0, 1] -> [height, width, 3]; what is neither grey nor RGB is shown as its mean."""
    values = np.asarray(image, dtype=float)
    values = values if len(values) == 3 else np.repeat(values.mean(0, keepdims=True), 3, axis=0)
    return values.transpose(1, 2, 0).clip(0, 1)


def shorten(name: object, length: int) -> str:
    """A name of at most `length` characters on one line; the middle goes, since names often differ at their ends."""
    text = " ".join(str(name).split())
    return text if len(text) <= length else f"{text[: length // 2]}…{text[len(text) - (length - 1) // 2 :]}"


def width_of(text: str, size: float, *, bold: bool = False) -> float:
    """How wide a line of text is, in inches, at a font size in points."""
    font = FontProperties(size=size, weight="bold" if bold else "normal")
    width, _, _ = RendererAgg(1, 1, 72).get_text_width_height_descent(text, font, ismath=False)
    return width / 72


def scale_by_logarithm(axes: Axes, which: Literal["x", "y"]) -> None:
    """Makes an axis logarithmic, its ticks labelled in plain numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_formatter(lambda place, _: f"{place:g}")
    axis.set_minor_formatter(lambda place, _: "")


def possible_range(metric: str, least: float) -> tuple[float, float]:
    """Between what a metric can be, judged by its name and by whether its `least` value is negative."""
    name = metric.rpartition("/")[2]
    return 0.0 if least >= 0 else -math.inf, 1.0 if name in ("accuracy", "r2") else math.inf


def label_first_column(panels: Sequence[Axes], label: str) -> None:
    """What the shared y axis of `open_panels` shows."""
    for axes in panels:
        if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axes.set_ylabel(label)


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


def thin(count: int, most: int) -> list[int]:
    """Evenly spaced indices below `count`, at most `most` of them."""
    return list(range(0, count, math.ceil(count / most)))


def class_colours(count: int) -> NDArray[Any]:
    """[count, 3]: Petroff's ten up to 20 classes (the second ten have another marker), then a colour scale."""
    if count <= 20:
        return np.array([to_rgb(TEN[index % 10]) for index in range(count)])
    return matplotlib.colormaps["viridis"](np.linspace(0, 1, count))[:, :3]


def finite(values: ArrayLike) -> NDArray[Any]:
    """The values with nan for whatever is not finite: matplotlib leaves gaps there and scales to the rest."""
    numbers = np.asarray(values, dtype=float)
    return np.where(np.isfinite(numbers), numbers, np.nan)
