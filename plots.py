"""Numbers in, pictures out: the only module that imports matplotlib.

Each `draw_*` takes numbers and returns a Figure, each `animate_*` a list of frames, uint8 [height, width, 3]. Nothing
here touches pyplot or leaves a trace in matplotlib's settings, so that it may run inside any script or test.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
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

styled = matplotlib.rc_context(STYLE)  # as a decorator: the style holds during the call and no longer


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

    Consecutive frames that are equal become one that is shown for longer. ValueError where there is no frame.
    """
    if not len(figures_or_frames):
        raise ValueError("a GIF needs at least one frame")
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


# ------------------------------------------------------------------------------------------------------------- shared


def _open_figure(width: float, height: float, *, dots: int = 150, layout: Any = "constrained") -> Figure:
    figure = Figure(figsize=(width, height), dpi=dots, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _open_frame() -> tuple[Figure, Axes, Any, Any]:
    """A figure of 480 x 360 pixels, small enough for a GIF, its axes, and the texts above them, left and right."""
    figure = _open_figure(4.8, 3.6, dots=100)
    axes = figure.subplots()
    return figure, axes, axes.set_title("", loc="left"), axes.set_title("", loc="right")


def _open_sheet(count: int, most: int, width: float, height: float, inches: float) -> tuple[Figure, Axes, Any]:
    """A page of `count` cells, at most `most` in a row, and the corners [count, 2] of the cells, y downwards.

    All share one pair of axes: axes of its own for each picture would take seconds to draw.
    """
    columns = min(most, max(1, count))
    rows = max(1, math.ceil(count / columns))
    figure = _open_figure(columns * width * inches, rows * height * inches, layout=None)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, columns * width), ylim=(rows * height, 0))
    axes.axis("off")
    return figure, axes, [(index % columns * width, index // columns * height) for index in range(count)]


def _place_image(axes: Axes, image: ArrayLike, left: float, top: float) -> tuple[float, float, float, float]:
    """Shows an image [channels, height, width] in a square of side 1; returns the left, top, width, height it takes."""
    pixels = _to_pixels(image)
    height, width = np.array(pixels.shape[:2]) / max(pixels.shape[:2])
    left, top = left + (1 - width) / 2, top + (1 - height) / 2
    axes.imshow(pixels, extent=(left, left + width, top + height, top), aspect="auto")
    return left, top, width, height


def _to_pixels(image: ArrayLike) -> NDArray[Any]:
    """[channels, height, width] in [0, 1] -> [height, width, 3]; what is neither grey nor RGB is shown as its mean."""
    values = np.asarray(image, dtype=float)
    values = values if len(values) == 3 else np.repeat(values.mean(0, keepdims=True), 3, axis=0)
    return values.transpose(1, 2, 0).clip(0, 1)


def _shorten(name: object, length: int) -> str:
    """A name of at most `length` characters on one line; the middle goes, since names often differ at their ends."""
    text = " ".join(str(name).split())
    return text if len(text) <= length else f"{text[: length // 2]}…{text[len(text) - (length - 1) // 2 :]}"


def _thin(count: int, most: int) -> list[int]:
    """Evenly spaced indices below `count`, at most `most` of them."""
    return list(range(0, count, math.ceil(count / most)))


def _class_colours(count: int) -> NDArray[Any]:
    """[count, 3]: Petroff's ten up to 20 classes (the second ten have another marker), then a colour scale."""
    if count <= 20:
        return np.array([to_rgb(TEN[index % 10]) for index in range(count)])
    return matplotlib.colormaps["viridis"](np.linspace(0, 1, count))[:, :3]


def _finite(values: ArrayLike) -> NDArray[Any]:
    """The values with nan for whatever is not finite: matplotlib leaves gaps there and scales to the rest."""
    numbers = np.asarray(values, dtype=float)
    return np.where(np.isfinite(numbers), numbers, np.nan)


# ----------------------------------------------------------------------------------------------------------- training


@styled
def draw_learning_curves(records: Sequence[Mapping[str, Any]], *, best_epoch: int | None = None) -> Figure:
    """The loss, and the first other metric, of training and validation against the epoch.

    A record is one epoch: "epoch" and numbers named "train/..." and "val/...". What a record lacks is skipped; what is
    not finite ("nan" as text, too) leaves a gap and a cross at the top.
    """
    names = [key for split in ("val/", "train/") for record in records for key in record if key.startswith(split)]
    metrics = ["loss", *[name.partition("/")[2] for name in names if not name.endswith("/loss")][:1]]
    figure = _open_figure(3.6 * len(metrics), 2.8)
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for split, colour, look in (("train", ORANGE, "s--"), ("val", BLUE, "o-")):
            known = [record for record in records if record.get(f"{split}/{metric}") is not None]
            epochs = np.array([record["epoch"] for record in known])
            values = _finite([float(record[f"{split}/{metric}"]) for record in known])
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
    figure = _open_figure(5.2, 3.2)
    axes = figure.subplots()
    for index, (name, (steps, losses)) in enumerate(series.items()):
        colour, line = LINES[index % len(LINES)]
        values = _finite(losses)
        if smoothing > 1:
            axes.plot(np.asarray(steps), values, color=colour, alpha=0.25, linewidth=0.8)
        bold = _smooth(values, smoothing)
        axes.plot(np.asarray(steps), bold, color=colour, linestyle=line, label=_shorten(name, 28))
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
    figure = _open_figure(6.0, min(8.0, 0.4 + 4.9 * page.shape[0] / page.shape[1]))
    axes = figure.subplots()
    axes.imshow(page)
    axes.axis("off")
    mean = "" if coloured or channels == 1 else f", mean of {channels} channels"
    axes.set_title(f"{'' if count <= 256 else 'the first 256 of '}{count} filters, {height} by {width}{mean}")
    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), shades), ax=axes, shrink=0.85, aspect=16)
    bar.set_label("weight")
    bar.outline.set_visible(False)
    return figure


# ----------------------------------------------------------------------------------------------------- classification


@styled
def draw_confusion_matrix(counts: ArrayLike, classes: Sequence[str]) -> Figure:
    """The confusion matrix, counts [classes, classes] with the true class in rows, coloured by its share of the row.

    The colour grows with the root of the share, so that rare mistakes are seen. Up to 20 classes cells show counts.
    """
    numbers = np.asarray(counts)
    size = len(numbers)
    shares = numbers / np.maximum(numbers.sum(1, keepdims=True), 1)
    side = min(7.0, 1.7 + 0.32 * size)
    figure = _open_figure(side + 0.9, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    shown = _thin(size, 34)
    names = [_shorten(classes[index], 18) for index in shown]
    upright = max(map(len, names)) * 0.09 > 0.7 * side / len(names)
    axes.set_xticks(shown, names, rotation=90 if upright else 0)
    axes.set_yticks(shown, names)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0 if size == len(shown) else 2)
    if size <= 20:
        font = min(9.0, 68 * side / size / max(2, len(str(int(numbers.max())))))
        for (row, column), number in np.ndenumerate(numbers):
            colour = "white" if shares[row, column] > 0.4 else BLACK if number else "#B0B0B0"
            axes.text(column, row, f"{number:g}", ha="center", va="center", color=colour, fontsize=font)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    return figure


@styled
def draw_predictions(images: ArrayLike, probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str]) -> Figure:
    """Up to 16 images, each with bars for its (up to five) likeliest classes, the true one always among them.

    Takes images [n, channels, height, width] in [0, 1], probabilities [n, classes], targets [n]. What is right has a
    tick and a thin frame, what is wrong a cross, "true → predicted" and a dashed frame; the true class is bold.
    """
    images, probabilities, targets = (np.asarray(values)[:16] for values in (images, probabilities, targets))
    figure, axes, corners = _open_sheet(len(images), 4, 2.75, 1.36, inches=0.98)
    bars = min(5, len(classes))
    for (left, top), image, values, target in zip(corners, images, probabilities, targets, strict=True):
        order = np.argsort(-values, kind="stable")
        guess = order[0]
        colour, line, title = BLUE, "-", f"✓ {_shorten(classes[target], 26)}"
        if guess != target:
            title = f"✗ {_shorten(classes[target], 12)} → {_shorten(classes[guess], 12)}"
            colour, line = RED, "--"
        axes.text(left + 0.12, top + 0.24, title, color=colour, fontweight="bold", va="bottom")
        x, y, width, height = _place_image(axes, image, left + 0.12, top + 0.3)
        thickness = 1.0 if guess == target else 2.0
        axes.add_artist(
            Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=thickness, linestyle=line)
        )
        shown = order[:bars] if target in order[:bars] else [*order[: bars - 1], target]
        for row, label in enumerate(shown):
            tint = BLUE_TINT if label == target else RED_TINT if label == guess else GREY_TINT
            middle = top + 0.3 + (row + 0.5) / bars
            bar = Rectangle((left + 1.2, middle - 0.42 / bars), 1.08 * values[label], 0.84 / bars, color=tint)
            axes.add_artist(bar)
            text: dict[str, Any] = {
                "va": "center",
                "fontsize": 8,
                "fontweight": "bold" if label == target else "normal",
            }
            axes.text(left + 1.23, middle, _shorten(classes[label], 13), **text)
            axes.text(left + 2.62, middle, f"{values[label]:.2f}", ha="right", **text)
    return figure


@styled
def draw_mistakes(images: ArrayLike, probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str]) -> Figure:
    """A sheet of up to 25 images, each under "true → predicted, probability", in the order given.

    Takes images [n, channels, height, width] in [0, 1], probabilities [n, classes], targets [n].
    """
    images, probabilities, targets = (np.asarray(values)[:25] for values in (images, probabilities, targets))
    captions = []
    for values, target in zip(probabilities, targets, strict=True):
        true, guess = (_shorten(classes[label], 14) for label in (target, values.argmax()))
        gap = " " if len(true) + len(guess) <= 11 else "\n"
        captions.append(f"{true} →{gap}{guess}, {values.max():.2f}")
    head = 0.38 if any("\n" in caption for caption in captions) else 0.22
    figure, axes, corners = _open_sheet(len(images), 5, 1.3, 1.06 + head, inches=1.2)
    for (left, top), image, caption in zip(corners, images, captions, strict=True):
        _place_image(axes, image, left + 0.15, top + head)
        axes.text(left + 0.65, top + head - 0.04, caption, ha="center", va="bottom", fontsize=8, linespacing=1.05)
    if not captions:
        axes.text(0.5, 0.5, "no mistakes", ha="center", va="center", transform=axes.transAxes)
    return figure


@styled
def draw_class_probabilities(
    image: ArrayLike, before: ArrayLike, after: ArrayLike, target: int, classes: Sequence[str]
) -> Figure:
    """One image [channels, height, width] and its class probabilities [classes] before and after training.

    Up to 20 classes all are shown; of more, the true one and the likeliest of either. The true class is bold and blue.
    """
    values = np.asarray([np.asarray(before), np.asarray(after)], dtype=float)
    shown: Any = np.arange(len(classes))
    if len(classes) > 20:
        shown = np.unique([target, *np.argsort(-values, axis=1, kind="stable")[:, :6].ravel()])
    figure = _open_figure(6.6, max(1.9, 0.9 + 0.19 * len(shown)))
    picture, *panels = figure.subplots(1, 3, width_ratios=(0.9, 1, 1))
    picture.imshow(_to_pixels(image))
    picture.set_title(f"true class\n{_shorten(classes[target], 18)}")
    picture.axis("off")
    rows = np.arange(len(shown))
    for axes, title, probabilities in zip(panels, ("before training", "after training"), values[:, shown], strict=True):
        axes.barh(rows, probabilities, color=[BLUE if label == target else "#B8B8B8" for label in shown])
        for row, value in enumerate(probabilities):
            axes.text(value + 0.02, row, f"{value:.2f}", va="center", fontsize=7)
        axes.set(title=title, xlabel="probability", xlim=(0, 1.16), xticks=(0, 0.5, 1), ylim=(len(shown) - 0.4, -0.6))
        axes.set_yticks([])
        axes.spines.left.set_visible(False)
        axes.spines.bottom.set_bounds(0, 1)
    panels[0].set_yticks(rows, [_shorten(classes[label], 18) for label in shown])
    panels[0].tick_params(axis="y", length=0)
    panels[0].get_yticklabels()[list(shown).index(target)].set_fontweight("bold")
    return figure


@styled
def animate_regions(
    points: ArrayLike,
    targets: ArrayLike,
    class_maps: ArrayLike,
    *,
    extent: tuple[float, float, float, float],
    predictions: ArrayLike,
    steps: Sequence[int],
    accuracies: Sequence[float],
) -> Frames:
    """A classifier of points in the plane while it learns, one frame for each map.

    Takes points [n, 2], targets [n], class_maps [frames, height, width] (integers: the predicted class; floats: the
    probability of class 1 of two) with row 0 at the lowest y, extent (x0, x1, y0, y1), predictions [frames, n]. A
    point's shape is its true class, its colour the predicted one; a cross marks it wrong.
    """
    points, maps = np.asarray(points), np.asarray(class_maps)
    targets, guesses = np.asarray(targets).astype(int), np.asarray(predictions).astype(int)
    colours = _class_colours(1 + int(max(targets.max(), guesses.max(), maps.max(), 1)))
    areas, sure = maps, np.ones(maps.shape)
    if np.issubdtype(maps.dtype, np.floating):
        areas, sure = (maps > 0.5).astype(int), np.abs(2 * maps - 1)
    figure, axes, left, right = _open_frame()
    shape: dict[str, Any] = {"extent": extent, "origin": "lower", "aspect": "auto", "interpolation": "bilinear"}
    image = axes.imshow(np.ones((*maps.shape[1:], 3)), **shape)
    groups = {label: targets == label for label in np.unique(targets)}
    edge: dict[str, Any] = {"edgecolors": BLACK, "linewidths": 0.5}
    dots = {
        label: axes.scatter(
            points[group, 0], points[group, 1], s=22, color=colours[label], marker=MARKERS[label % 10], **edge
        )
        for label, group in groups.items()
    }
    wrong = axes.scatter([], [], s=30, color=BLACK, marker="x", linewidths=1.3)
    axes.set(xlim=extent[:2], ylim=extent[2:], xlabel="x1", ylabel="x2")
    names = [f"class {label}" for label in groups][:20]
    figure.legend([*list(dots.values())[:20], wrong], [*names, "wrong"], loc="outside right upper")
    frames = []
    for index, (step, accuracy) in enumerate(zip(steps, accuracies, strict=True)):
        image.set_data(1 - 0.38 * sure[index][..., None] * (1 - colours[areas[index]]))
        for label, group in groups.items():
            dots[label].set_facecolor(colours[guesses[index][group]])
        wrong.set_offsets(points[guesses[index] != targets])
        left.set_text(f"step {step}")
        right.set_text(f"accuracy {accuracy:.3f}")
        frames.append(to_image(figure))
    return frames


@styled
def animate_embedding(
    coordinates: ArrayLike,
    targets: ArrayLike,
    classes: Sequence[str],
    epochs: Sequence[int],
    *,
    accuracies: Sequence[float] | None = None,
) -> Frames:
    """A map of the examples (t-SNE, say) as training goes on, coordinates [frames, n, 2], coloured by targets [n].

    All frames share their limits; the caller aligns the coordinates.
    """
    places, targets = np.asarray(coordinates, dtype=float), np.asarray(targets)
    colours = _class_colours(len(classes))
    few = len(classes) <= 20
    figure, axes, left, right = _open_frame()
    dots = [axes.scatter([], [], s=9, color=colour, marker=MARKERS[few * i // 10]) for i, colour in enumerate(colours)]
    if few:
        names = [_shorten(name, 14) for name in classes]
        figure.legend(dots, names, loc="outside right upper", markerscale=1.8, handletextpad=0.1)
    else:
        bar = figure.colorbar(ScalarMappable(Normalize(0, len(classes) - 1), "viridis"), ax=axes)
        shown = _thin(len(classes), 12)
        bar.set_ticks(shown, labels=[_shorten(classes[index], 14) for index in shown])
        bar.outline.set_visible(False)
    axes.update_datalim(places.reshape(-1, 2))
    axes.autoscale_view()
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)  # the axes of t-SNE have no meaning
    frames = []
    for index, (place, epoch) in enumerate(zip(places, epochs, strict=True)):
        for label, dot in enumerate(dots):
            dot.set_offsets(place[targets == label])
        left.set_text(f"epoch {epoch}")
        right.set_text("" if accuracies is None else f"accuracy {accuracies[index]:.3f}")
        frames.append(to_image(figure))
    return frames


# --------------------------------------------------------------------------------------------------------- regression


@styled
def animate_regression(
    x: ArrayLike, y: ArrayLike, curves: ArrayLike, *, grid: ArrayLike, steps: Sequence[int], losses: Sequence[float]
) -> Frames:
    """A curve that learns to fit points x [n], y [n]: one frame for each of curves [frames, m], given on grid [m]."""
    figure, axes, left, right = _open_frame()
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
    figure = _open_figure(2.7 * columns + 0.4, 2.3 * rows + 0.4)
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


# ------------------------------------------------------------------------------------------------------------ searches


@styled
def draw_slices(
    slices: Mapping[str, tuple[Sequence[Any], Sequence[float]]], metric: str, *, log: Collection[str] = ()
) -> Figure:
    """The result of each trial against each hyperparameter: {name: (values [n], results [n])}, a panel for each.

    log: the names whose axis is logarithmic; values that are not numbers are set side by side.
    """
    columns = min(3, len(slices))
    rows = math.ceil(len(slices) / columns)
    figure = _open_figure(0.6 + 2.5 * columns, 0.3 + 2.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(slices) :]:
        axes.axis("off")
    for number, (axes, (name, (values, results))) in enumerate(zip(panels.flat, slices.items(), strict=False)):
        numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        if numeric:
            axes.scatter(values, results, s=16, color=BLUE, alpha=0.6, linewidths=0)
            if name in log:
                _scale_by_logarithm(axes, "x")
        else:
            names = sorted({str(value) for value in values})
            axes.scatter(
                [names.index(str(value)) for value in values], results, s=16, color=BLUE, alpha=0.6, linewidths=0
            )
            axes.set_xticks(range(len(names)), [_shorten(label, 12) for label in names], rotation=30, ha="right")
            axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_xlabel(name)
        axes.grid(axis="y")
        if number % columns == 0:
            axes.set_ylabel(metric)
    return figure


@styled
def draw_contour(
    x: Sequence[float],
    y: Sequence[float],
    results: Sequence[float],
    *,
    names: Sequence[str],
    metric: str,
    log: Collection[str] = (),
) -> Figure:
    """The results [n] of trials over two hyperparameters x and y [n], interpolated between the trials, which are marked."""
    figure = _open_figure(4.8, 3.6)
    axes = figure.subplots()
    points = [
        np.log10(values) if name in log else np.asarray(values, float)
        for name, values in zip(names, (x, y), strict=True)
    ]
    if len(np.unique(np.stack(points), axis=1).T) >= 4 and all(np.ptp(values) > 0 for values in points):
        # Triangulated on the axes' own scales, so that a logarithmic range is interpolated as it is drawn.
        filled = axes.tricontourf(x, y, np.asarray(results, float), levels=10, cmap="cividis")
        figure.colorbar(filled, ax=axes, label=metric)
    axes.scatter(x, y, s=14, color="white", edgecolors=BLACK, linewidths=0.7)
    axes.set(xlabel=names[0], ylabel=names[1])
    for name, which in zip(names, "xy", strict=True):
        if name in log:
            _scale_by_logarithm(axes, which)
    return figure


def _scale_by_logarithm(axes: Axes, which: str) -> None:
    """Makes an axis, "x" or "y", logarithmic, its ticks labelled in plain numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_formatter(lambda place, _: f"{place:g}")
    axis.set_minor_formatter(lambda place, _: "")


# -------------------------------------------------------------------------------------------------------- several runs


@styled
def draw_mean_curves(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float], Sequence[float | None]]], metric: str
) -> Figure:
    """Up to seven mean curves by name, each as (epochs, means, half-widths of the band, None where there is no band)."""
    is_wide = max(map(len, curves)) > 30
    figure = _open_figure(8.4, 3.4 + 0.18 * is_wide * len(curves))
    axes = figure.subplots()
    for (name, (epochs, means, halves)), (colour, line) in zip(curves.items(), LINES, strict=False):
        centre, half = _finite(means), np.array([half or 0.0 for half in halves])
        dot = "o" if len(epochs) == 1 else None
        axes.plot(epochs, centre, marker=dot, color=colour, linestyle=line, label=_shorten(name, 110))
        axes.fill_between(epochs, centre - half, centre + half, color=colour, alpha=0.13, linewidth=0)
    _show_lines_rather_than_bands(axes, [value for _, means, _ in curves.values() for value in means])
    axes.set(xlabel="epoch", ylabel=metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    axes.grid(axis="y")
    figure.legend(loc="outside lower left" if is_wide else "outside right upper", handlelength=2.6)
    return figure


def _show_lines_rather_than_bands(axes: Axes, values: Sequence[float]) -> None:
    """Limits that show all of the lines and at most as much again of their bands, which are huge for two or three runs."""
    low, high = min(values), max(values)
    room = 0.5 * (high - low) or 0.05 * abs(high) or 1.0
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, low - room), min(top, high + room))


@styled
def draw_effects(effects: Mapping[str, Mapping[str, Sequence[float]]], metric: str) -> Figure:
    """A panel for each key, name -> value -> results: every result as a dot, and the mean of each value as a line.

    Up to twelve values, and those that are no numbers, stand side by side; more numbers are placed by their size.
    """
    columns = min(3, len(effects))
    rows = math.ceil(len(effects) / columns)
    figure = _open_figure(2.8 * columns + 0.2, 2.3 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (name, results) in zip(panels, effects.items(), strict=False):
        places = _places(list(results))
        dots = [(place, y) for place, ys in zip(places, results.values(), strict=True) for y in ys]
        axes.plot(*zip(*dots, strict=True), "o", color=BLUE, markersize=4.5, alpha=0.55, markeredgewidth=0)
        if places == list(range(len(results))):
            line = "-" if all(map(_is_number, results)) else ""  # between words there is no slope
            means = [np.mean(ys) for ys in results.values()]
            axes.plot(places, means, color=ORANGE, linestyle=line, marker="_", markersize=16, linewidth=1.2)
            shown = _thin(len(places), 12)
            names = [_shorten(value, 14) for value in results]
            crowded = sum(map(len, names)) > 26
            axes.set_xticks(
                shown, [names[i] for i in shown], rotation=30 * crowded, ha="right" if crowded else "center"
            )
            axes.set_xlim(-0.5, len(places) - 0.5)
        elif min(places) > 0 and np.median(places) < max(places) / 5:  # spread evenly over orders of magnitude
            _scale_by_logarithm(axes, "x")
        axes.set_xlabel(_shorten(name, 36))
        axes.grid(axis="y")
    for axes in panels[::columns]:
        axes.set_ylabel(metric)
    for axes in panels[len(effects) :]:
        axes.axis("off")
    return figure


def _places(values: Sequence[str]) -> list[float]:
    """Where values stand on an axis: many numbers at their size, others side by side."""
    by_size = len(values) > 12 and all(map(_is_number, values))
    return [float(value) for value in values] if by_size else list(range(len(values)))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
