"""The colours of all pictures, which the colour-blind can tell apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Okabe and Ito's colours; the tints are light enough to carry black text.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
YELLOW, BLACK, GREY, BLUE_TINT, RED_TINT, GREY_TINT = "#F0E442", "#222222", "#8C8C8C", "#9CCBEB", "#F4B183", "#DDDDDD"
WHITE = "#FFFFFF"
# Ten whose least distance from each other in OKLab is as large as a search could make it, as seen by normal eyes and by
# those without one of the three cones (Machado et al. 2009), none of them pale on paper: 12.7 of 100, where Petroff's ten
# have 6.1 and two of them look grey.
TEN = ["#006677", "#FFAA00", "#BB55FF", "#FF4422", "#002277", "#669988", "#AA2200", "#AAAAEE", "#551122", "#7700CC"]
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
