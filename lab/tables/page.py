"""The report: one page that needs nothing else, is read without its script, and asks nobody for anything."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.tables.cells import Cell, Estimate, Table, words
from lab.tables.comparisons import AMONG_BEST, BEST
from lab.tables.formats import to_url

Pictures = Sequence[tuple[str, bytes]]  # (heading, PNG) of each
CLASSES = {BEST: "best", AMONG_BEST: "among"}


def to_page(
    title: str,
    tables: Sequence[Table],
    *,
    heading: Sequence[str] = (),
    notes: Sequence[str] = (),
    first: Pictures = (),
    pictures: Pictures = (),
    facts: Sequence[tuple[str, str]] = (),
) -> str:
    """The report with tables that sort by a click.

    heading: how to read it; first: the pictures above the tables; facts: (name, value) of what it is made from.
    """
    import jinja2

    # Whatever is in a run's files is text: every value is escaped.
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(
        (Path(__file__).parent / "page.html.j2").read_text()
    )
    return template.render(
        title=title,
        heading=list(map(with_minus, heading)),
        first=[(text, base64.b64encode(png).decode()) for text, png in first],
        tables=list(map(plain, tables)),
        pictures=[(text, base64.b64encode(png).decode()) for text, png in pictures],
        notes=list(map(with_minus, notes)),
        facts=facts,
    )


def plain(table: Table) -> dict[str, Any]:
    """A table as the template takes it."""
    numeric = table.columns_of(Estimate, int)
    heads = [
        {"name": name, "is_number": is_number, "down": table.better.get(name, False)}
        for name, is_number in zip(table.header, numeric, strict=True)
    ]
    rows = [
        {
            "cells": [shown(cell, is_number) for cell, is_number in zip(row, numeric, strict=True)],
            "links": [(label, to_url(path)) for label, path in table.sources[index]] if table.sources else [],
            "standing": CLASSES.get(table.standings[index], "") if table.standings else "",
        }
        for index, row in enumerate(table.rows)
    ]
    return {"title": table.title, "heads": heads, "rows": rows, "has_runs": bool(table.sources)}


def shown(cell: Cell, is_number: bool) -> dict[str, Any]:
    """A cell as the template takes it: what one reads, and what it sorts by."""
    value = repr(cell.mean) if isinstance(cell, Estimate) else "" if cell is None else str(cell)
    bold = isinstance(cell, Estimate) and cell.bold
    return {"words": with_minus(words(cell)), "value": value, "is_number": is_number, "bold": bold}


def with_minus(text: str) -> str:
    """Text in which a sign before a number is a minus, and no hyphen."""
    return re.sub(r"(?<![\w.)\]-])-(?=\.?\d)|(?<=\de)-(?=\d)", "\N{MINUS SIGN}", text)
