"""Pages drawn with matplotlib, for reports and evaluations: its style, and the ways in which panels stand on them.

Nothing here touches pyplot or leaves a trace in matplotlib's settings, so that it may run inside any script or test.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lab.plots import canvas
from lab.plots.drawing import P, T, drawing

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


def styled(function: Callable[P, T]) -> Callable[P, T]:
    """A function that draws: our style holds during its calls and no longer, and what goes wrong is a DrawingError."""

    @functools.wraps(function)
    def draw(*args: P.args, **kwargs: P.kwargs) -> T:
        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    return drawing(draw)


@styled
def pixels_of(figure: Figure) -> NDArray[np.uint8]:
    """The pixels of a figure, uint8 [height, width, 3]; see `figures.to_image`."""
    agg = FigureCanvasAgg(figure)
    agg.draw()
    figure.set_layout_engine("none")
    return np.asarray(agg.buffer_rgba())[..., :3].copy()


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


def width_of(text: str, size: float, *, bold: bool = False) -> float:
    """How wide a line of text is, in inches, at a font size in points."""
    return canvas.width_of(text, size * 96 / 72, bold=bold) / 96


def scale_by_logarithm(axes: Axes, which: Literal["x", "y"]) -> None:
    """Makes an axis logarithmic, its ticks labelled in plain numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_formatter(lambda place, _: f"{place:g}")
    axis.set_minor_formatter(lambda place, _: "")


def label_first_column(panels: Sequence[Axes], label: str) -> None:
    """What the shared y axis of `open_panels` shows."""
    for axes in panels:
        if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axes.set_ylabel(label)
