"""Charts of the benchmarks: how fast training is beside other ways of doing it, and how it grows with its sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lab.plots.canvas import Page, Panel, Scale, as_number, width_of
from lab.plots.colours import BLACK, BLUE, BLUE_TINT, GREY, ORANGE, PURPLE, RED, WHITE, mix
from lab.plots.figures import drawing

WIDTH = 720
OTHERS = ((ORANGE, "s"), (PURPLE, "D"), (GREY, "^"))


@drawing
def draw_speed(
    shares: Mapping[str, Mapping[str, float]],
    rates: Mapping[str, float],
    *,
    ours: str,
    reference: str,
    unit: str = "images/s",
) -> Page:
    """Rates as shares of a reference's, {setting: {contender: share}}: a row for each setting, a mark for each contender.

    The marks of `ours` are large and blue; at the right margin stands its rate, {setting: rate}.
    """
    others = [name for name in dict.fromkeys(name for row in shares.values() for name in row) if name != ours]
    looks = {ours: (BLUE, "o"), **dict(zip(others, OTHERS, strict=False))}
    room, height = 24 + max(map(width_of, shares)), 22.0
    most = max(1.0, *[share for row in shares.values() for share in row.values()])
    page = Page(WIDTH, 62 + height * len(shares) + 44)
    box = (room, 62.0, WIDTH - 110.0, 62 + height * len(shares))
    panel = Panel(page, box, (0.0, 1.04 * most), (0.0, 1.0))
    for tick in panel.x.ticks(5):
        place = float(panel.x(tick))
        page.line([place, place], [box[1], box[3]], colour=mix(GREY, WHITE, 0.25), thickness=0.8)
    panel.axes(ticks=0)
    panel.below(f"share of the rate of the {reference}")
    edge = float(panel.x(1.0))
    page.line([edge, edge], [box[1] - 6, box[3]], colour=BLACK, thickness=1.4)
    page.text(edge, box[1] - 11, reference, size=10, anchor="ms")
    page.text(WIDTH - 12, 21, f"{ours}, {unit}", size=10, colour=BLUE, anchor="rs")
    for index, (setting, row) in enumerate(shares.items()):
        middle = box[1] + height * (index + 0.5)
        page.text(room - 10, middle, setting, anchor="rm")
        page.text(WIDTH - 12, middle, f"{rates[setting]:,.0f}", anchor="rm")
        if ours in row and len(row) > 1:
            best = max(share for name, share in row.items() if name != ours)
            page.line(panel.x([best, row[ours]]), [middle, middle], colour=BLUE_TINT, thickness=3)
        for name, share in reversed([*row.items()]):
            colour, shape = looks[name]
            page.dots(panel.x(share), middle, fill=colour, shape=shape, radius=5.5 if name == ours else 4)
    place = 16.0
    for name, (colour, shape) in looks.items():
        page.dots(place + 4, 17, fill=colour, shape=shape, radius=5 if name == ours else 4)
        page.text(place + 14, 21, name, bold=name == ours)
        place += 36 + width_of(name, bold=name == ours)
    return page


@drawing
def draw_growth(points: Mapping[str, Sequence[tuple[float, Mapping[str, float]]]], *, note: str = "") -> Page:
    """Rate and memory against each size, both by logarithm: {size: [(value, {"rate": ..., "memory": ...}), ...]}."""
    columns, rows = len(points), (("rate", "examples/s", BLUE), ("memory", "peak memory, MB", RED))
    page = Page(36 + 236 * columns, 420)
    for row, (key, name, colour) in enumerate(rows):
        every = [point[key] for column in points.values() for _, point in column]
        page.text(10, 40 + 190 * row, name, bold=True, size=10, colour=colour)
        for column, (label, measured) in enumerate(points.items()):
            sizes = [size for size, _ in measured]
            left, top = 52 + 236.0 * column, 48 + 190.0 * row
            box = (left, top, left + 180, top + 132)
            panel = Panel(page, box, (0, 1), (min(every) / 1.3, max(every) * 1.3), log=True)
            panel.x = Scale(min(sizes) / 1.4, max(sizes) * 1.4, box[0], box[2], log=True)
            panel.axes(ticks=5)
            panel.below(label if row else "", ticks=4)
            heights = panel.y([point[key] for _, point in measured])
            page.line(panel.x(sizes), heights, colour=colour)
            page.dots(panel.x(sizes), heights, fill=colour, radius=3)
            last = as_number(float(f"{measured[-1][1][key]:.2g}"))
            page.text(float(panel.x(sizes[-1])), float(heights[-1]) - 8, last, size=9, colour=colour, anchor="ms")
    page.text(10, 18, note, size=10, colour=GREY)
    return page
