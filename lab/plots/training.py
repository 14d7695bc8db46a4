"""Pictures of training: its curves, the filters it found, and a network that learns to fit points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from lab.plots.figures import (
    BLACK,
    BLUE,
    GREY,
    LAYERS,
    LINES,
    ORANGE,
    Frames,
    finite,
    open_figure,
    open_frame,
    shorten,
    styled,
    to_image,
)


@styled
def draw_learning_curves(records: Sequence[Mapping[str, Any]], *, best_epoch: int | None = None) -> Figure:
    """The loss, and the first other metric, of training and validation against the epoch.

    A record is one epoch: "epoch" and numbers named "train/..." and "val/...". What a record lacks is skipped; what is
    not finite ("nan" as text, too) leaves a gap and a cross at the top.
    """
    names = [key for split in ("val/", "train/") for record in records for key in record if key.startswith(split)]
    metrics = ["loss", *[name.partition("/")[2] for name in names if not name.endswith("/loss")][:1]]
    figure = open_figure(3.6 * len(metrics), 2.8)
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for split, colour, look in (("train", ORANGE, "s--"), ("val", BLUE, "o-")):
            known = [record for record in records if record.get(f"{split}/{metric}") is not None]
            epochs = np.array([record["epoch"] for record in known])
            values = finite([float(record[f"{split}/{metric}"]) for record in known])
            if known:
                # Points that touch would say no more than the line.
                axes.plot(epochs, values, look, color=colour, markersize=3.5 if len(known) <= 30 else 0, label=split)
            lost = epochs[np.isnan(values)]
            if len(lost):
                place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
                axes.plot(lost, np.ones(len(lost)), "x", color=colour, label=f"{split} not finite", **place)
            if split == "val" and best_epoch in epochs:
                best = values[epochs == best_epoch][-1]
                axes.axvline(best_epoch, color=GREY, linewidth=0.8, zorder=0)
                label = f"best: epoch {best_epoch}, {best:.4g}"
                axes.plot(best_epoch, best, "o", color=BLACK, markersize=9, markerfacecolor="none", label=label)
        axes.set(xlabel="epoch", ylabel=metric)
        if len({record["epoch"] for record in records}) == 1:
            axes.set_xlim(records[0]["epoch"] - 1, records[0]["epoch"] + 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.grid(axis="y")
        if axes.get_lines():
            axes.legend()
    return figure


@styled
def draw_losses(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    y_limits: tuple[float, float] | None = None,
    smoothing: int = 1,
) -> Figure:
    """One line of loss against step for each optimiser: name -> (steps [k], losses [k]).

    With `smoothing` above 1 the bold line is the centred mean of so many points, with the losses themselves faint.
    """
    figure = open_figure(5.2, 3.2)
    axes = figure.subplots()
    for index, (name, (steps, losses)) in enumerate(series.items()):
        colour, line = LINES[index % len(LINES)]
        values = finite(losses)
        if smoothing > 1:
            axes.plot(np.asarray(steps), values, color=colour, alpha=0.25, linewidth=0.8)
        bold = _smooth(values, smoothing)
        axes.plot(np.asarray(steps), bold, color=colour, linestyle=line, label=shorten(name, 28))
    axes.set(xlabel="step", ylabel="loss", ylim=y_limits)
    axes.margins(x=0.01)
    axes.grid(axis="y")
    if series:
        axes.legend(handlelength=2.6)
    return figure


def _smooth(values: NDArray[Any], window: int) -> NDArray[Any]:
    """The centred mean over `window` values; gaps stay gaps and do not spread, and the ends take what there is."""
    known = np.isfinite(values)
    kernel = np.ones(max(1, min(window, len(values))))
    total = np.convolve(np.where(known, values, 0.0), kernel, "same")
    return np.where(known, total / np.maximum(np.convolve(known, kernel, "same"), 1), np.nan)


@styled
def draw_first_filters(weights: ArrayLike) -> Figure:
    """The filters [out, in, height, width] of a first convolution, all on one scale that is symmetrical about zero.

    Three input channels are shown as RGB with grey for zero, any other number by its mean. At most 256 filters.
    """
    filters = np.asarray(weights, dtype=float)
    count, channels, height, width = filters.shape
    coloured = channels == 3
    values = (filters if coloured else filters.mean(1, keepdims=True))[:256].transpose(0, 2, 3, 1)
    limit = float(np.abs(values).max()) or 1.0
    shades = matplotlib.colormaps["gray" if coloured else "RdBu_r"]
    tiles = values / (2 * limit) + 0.5 if coloured else shades(values[..., 0] / (2 * limit) + 0.5)[..., :3]
    columns = min(len(tiles), math.ceil(math.sqrt(1.8 * len(tiles))))
    rows = math.ceil(len(tiles) / columns)
    # One picture of all, each weight enlarged so that the frames and gaps can be thinner than a weight.
    tiles = tiles.repeat(10, axis=1).repeat(10, axis=2)
    tiles = np.pad(tiles, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=0.5)
    tiles = np.pad(tiles, ((0, rows * columns - len(tiles)), (3, 3), (3, 3), (0, 0)), constant_values=1.0)
    page = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2).reshape(rows * tiles.shape[1], -1, 3)
    figure = open_figure(6.0, min(8.0, 0.4 + 4.9 * page.shape[0] / page.shape[1]))
    axes = figure.subplots()
    axes.imshow(page)
    axes.axis("off")
    mean = "" if coloured or channels == 1 else f", mean of {channels} channels"
    axes.set_title(f"{'' if count <= 256 else 'the first 256 of '}{count} filters, {height} by {width}{mean}")
    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), shades), ax=axes, shrink=0.85, aspect=16)
    bar.set_label("weight")
    bar.outline.set_visible(False)
    return figure


# ----------------------------------------------------------------------------------------------------------- regression


@styled
def animate_regression(
    x: ArrayLike, y: ArrayLike, curves: ArrayLike, *, grid: ArrayLike, steps: Sequence[int], losses: Sequence[float]
) -> Frames:
    """A curve that learns to fit points x [n], y [n]: one frame for each of curves [frames, m], given on grid [m]."""
    figure, axes, left, right = open_frame()
    axes.margins(x=0.03, y=0.15)
    axes.scatter(np.asarray(x), np.asarray(y), s=14, color=BLUE, alpha=0.7, linewidths=0, label="data")
    (curve,) = axes.plot([], [], color="#D62728", linewidth=2.4, label="network")  # its first guesses may be far off
    axes.set(xlabel="x", ylabel="y")
    figure.legend(loc="outside lower center", ncols=2)
    frames = []
    for values, step, loss in zip(np.asarray(curves), steps, losses, strict=True):
        curve.set_data(np.asarray(grid), values)
        left.set_text(f"step {step}")
        right.set_text(f"loss {loss:.4f}")
        frames.append(to_image(figure))
    return frames


@styled
def draw_restored_curves(
    x: ArrayLike, y: ArrayLike, *, grid: ArrayLike, curves: Mapping[int, Mapping[str, ArrayLike]]
) -> Figure:
    """A panel for each width of network: points x [n], y [n] and up to four curves by name, [m], given on grid [m].

    Later curves are thinner and more broken, so that equal ones are all seen, one upon the other.
    """
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = open_figure(2.7 * columns + 0.4, 2.3 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (width, named) in zip(panels, curves.items(), strict=False):
        axes.scatter(np.asarray(x), np.asarray(y), s=9, color=GREY, alpha=0.6, linewidths=0, label="data")
        for (name, values), (thickness, colour, line) in zip(named.items(), LAYERS, strict=False):
            axes.plot(
                np.asarray(grid), np.asarray(values), color=colour, linewidth=thickness, linestyle=line, label=name
            )
        axes.set(title=f"width {width}", xlabel="x")
    for axes in panels[::columns]:
        axes.set_ylabel("y")
    for axes in panels[len(curves) :]:
        axes.axis("off")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure
