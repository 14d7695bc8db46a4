"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from lab.tables.cells import Table, words
from lab.tables.content import heading, table_of
from lab.tables.summary import Summary


def to_text(table: Table) -> str:
    """Aligned columns."""
    lines = [list(table.header), *([words(cell) for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    to_the_right = table.columns_of(int)
    aligned = [
        [text.rjust(width) if right else text.ljust(width) for text, width, right in columns]
        for columns in (zip(line, widths, to_the_right, strict=True) for line in lines)
    ]
    return "\n".join([table.title] * bool(table.title) + ["  ".join(line).rstrip() for line in aligned])


def format_terminal(summary: Summary, pivots: Sequence[Table] = ()) -> str:
    """The whole answer."""
    parts = [*heading(summary), "", to_text(table_of(summary))]
    for table in pivots:
        parts += ["", to_text(table)]
    return "\n".join([*parts, *[""] * bool(summary.notes), *summary.notes])
