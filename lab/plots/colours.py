"""The colours of all pictures, which the colour-blind can tell apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Okabe and Ito's colours; the tints are light enough to carry black text.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
YELLOW, BLACK, GREY, BLUE_TINT, RED_TINT, GREY_TINT = "#F0E442", "#222222", "#8C8C8C", "#9CCBEB", "#F4B183", "#DDDDDD"
WHITE = "#FFFFFF"
LINES = [(BLUE, "-"), (RED, "--"), (GREEN, "-."), (ORANGE, (0, (1, 0.8))), (PURPLE, "-"), (SKY, "--"), (BLACK, "-.")]
LAYERS = [(7.0, YELLOW, "-"), (3.4, SKY, "-"), (1.4, BLACK, (0, (3, 2))), (1.4, RED, (0, (1, 4)))]
# Ten whose least distance in OKLab is as large as a search could make it, as seen by normal eyes and by those without
# one of the three cones (Machado et al. 2009): 14.6 of 100, where Petroff's ten have 6.1 and two of them look grey.
TEN = ["#119999", "#FF5511", "#220088", "#FFCC22", "#AA33FF", "#551122", "#66EECC", "#AA2200", "#AAAAFF", "#555577"]
VIRIDIS = ["#440154", "#414487", "#2A788E", "#22A884", "#7AD151", "#FDE725"]


def to_rgb(colour: str) -> NDArray[Any]:
    """ "#rrggbb" -> [3] in [0, 1]."""
    return np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])


def to_hex(values: NDArray[Any]) -> str:
    """[3] in [0, 1] -> "#rrggbb"."""
    return "#" + "".join(f"{round(255 * float(value)):02X}" for value in values)


def mix(colour: str, ground: str, share: float) -> str:
    """A share of one colour on another."""
    return to_hex(share * to_rgb(colour) + (1 - share) * to_rgb(ground))


def class_colours(count: int) -> NDArray[Any]:
    """[count, 3]: ten colours up to 20 classes (the second ten have another marker), then a colour scale."""
    if count <= 20:
        return np.array([to_rgb(TEN[index % 10]) for index in range(count)])
    anchors = np.array([to_rgb(colour) for colour in VIRIDIS])
    places = np.linspace(0, len(anchors) - 1, count)
    return np.stack([np.interp(places, np.arange(len(anchors)), column) for column in anchors.T], axis=1)
