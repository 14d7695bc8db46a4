"""Pictures of a classifier: what it takes for what, and how sure it is; in motion, how it comes to tell classes apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from lab.plots.figures import (
    BLACK,
    BLUE,
    BLUE_TINT,
    GREY_TINT,
    MARKERS,
    RED,
    RED_TINT,
    Frames,
    class_colours,
    open_figure,
    open_frame,
    open_sheet,
    place_image,
    shorten,
    styled,
    thin,
    to_image,
    to_pixels,
)


@styled
def draw_confusion_matrix(counts: ArrayLike, classes: Sequence[str]) -> Figure:
    """The confusion matrix, counts [classes, classes] with the true class in rows, coloured by its share of the row.

    The colour grows with the root of the share, so that rare mistakes are seen. Up to 20 classes cells show counts.
    """
    numbers = np.asarray(counts)
    size = len(numbers)
    shares = numbers / np.maximum(numbers.sum(1, keepdims=True), 1)
    side = min(7.0, 1.7 + 0.32 * size)
    figure = open_figure(side + 0.9, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    shown = thin(size, 34)
    names = [shorten(classes[index], 18) for index in shown]
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
    figure, axes, corners = open_sheet(len(images), 4, 2.75, 1.36, inches=0.98)
    bars = min(5, len(classes))
    for (left, top), image, values, target in zip(corners, images, probabilities, targets, strict=True):
        order = np.argsort(-values, kind="stable")
        guess = order[0]
        colour, line, title = BLUE, "-", f"✓ {shorten(classes[target], 26)}"
        if guess != target:
            title = f"✗ {shorten(classes[target], 12)} → {shorten(classes[guess], 12)}"
            colour, line = RED, "--"
        axes.text(left + 0.12, top + 0.24, title, color=colour, fontweight="bold", va="bottom")
        x, y, width, height = place_image(axes, image, left + 0.12, top + 0.3)
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
            axes.text(left + 1.23, middle, shorten(classes[label], 13), **text)
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
        true, guess = (shorten(classes[label], 14) for label in (target, values.argmax()))
        gap = " " if len(true) + len(guess) <= 11 else "\n"
        captions.append(f"{true} →{gap}{guess}, {values.max():.2f}")
    head = 0.38 if any("\n" in caption for caption in captions) else 0.22
    figure, axes, corners = open_sheet(len(images), 5, 1.3, 1.06 + head, inches=1.2)
    for (left, top), image, caption in zip(corners, images, captions, strict=True):
        place_image(axes, image, left + 0.15, top + head)
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
    figure = open_figure(6.6, max(1.9, 0.9 + 0.19 * len(shown)))
    picture, *panels = figure.subplots(1, 3, width_ratios=(0.9, 1, 1))
    picture.imshow(to_pixels(image))
    picture.set_title(f"true class\n{shorten(classes[target], 18)}")
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
    panels[0].set_yticks(rows, [shorten(classes[label], 18) for label in shown])
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
    colours = class_colours(1 + int(max(targets.max(), guesses.max(), maps.max(), 1)))
    areas, sure = maps, np.ones(maps.shape)
    if np.issubdtype(maps.dtype, np.floating):
        areas, sure = (maps > 0.5).astype(int), np.abs(2 * maps - 1)
    figure, axes, left, right = open_frame()
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
    colours = class_colours(len(classes))
    few = len(classes) <= 20
    figure, axes, left, right = open_frame()
    dots = [axes.scatter([], [], s=9, color=colour, marker=MARKERS[few * i // 10]) for i, colour in enumerate(colours)]
    if few:
        names = [shorten(name, 14) for name in classes]
        figure.legend(dots, names, loc="outside right upper", markerscale=1.8, handletextpad=0.1)
    else:
        bar = figure.colorbar(ScalarMappable(Normalize(0, len(classes) - 1), "viridis"), ax=axes)
        shown = thin(len(classes), 12)
        bar.set_ticks(shown, labels=[shorten(classes[index], 14) for index in shown])
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
