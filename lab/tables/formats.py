"""Tables as files of text: Markdown, CSV and LaTeX, with every value escaped and nothing in them of what a run is."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from lab.tables.cells import Cell, Estimate, Table, words


def to_markdown(table: Table) -> str:
    """A table in GitHub's Markdown."""

    def shown(cell: Cell) -> str:
        text = escape_markdown(words(cell))
        return f"**{text}**" if isinstance(cell, Estimate) and cell.bold else text

    rules = ["---:" if right else "---" for right in table.columns_of(Estimate, int)]
    lines = [map(escape_markdown, table.header), rules, *(map(shown, row) for row in table.rows)]
    title = f"### {escape_markdown(table.title)}\n\n" if table.title else ""
    return title + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is; an underscore within a word means nothing there, and stays."""
    return re.sub(r"([\\`*<>\[\]|$~&#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", text)


def to_csv(table: Table) -> str:
    """Every number in full: an estimate fills three columns, its mean and the two ends of its interval."""
    wide = table.columns_of(Estimate)
    header: list[str] = []
    for name, is_wide in zip(map(harmless, table.header), wide, strict=True):
        header += [name, f"{name} low", f"{name} high"] if is_wide else [name]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header + ["runs"] * bool(table.sources))
    for index, row in enumerate(table.rows):
        cells: list[object] = []
        for cell, is_wide in zip(row, wide, strict=True):
            if isinstance(cell, Estimate):
                cells += [cell.mean, *(cell.ends() or ("", ""))]
            else:
                cells += [harmless(cell), "", ""] if is_wide else [harmless(cell)]
        paths = [" ".join(to_url(path) for _, path in table.sources[index])] if table.sources else []
        writer.writerow(cells + paths)
    return buffer.getvalue()


def harmless(cell: Any) -> Any:
    """Text that no spreadsheet takes for a formula: an apostrophe before what begins like one and is no number."""
    if isinstance(cell, str) and cell[:1] in "=+-@" and cell not in ("", "-"):
        try:
            float(cell)
        except ValueError:
            return f"'{cell}"
    return cell


def to_url(path: str) -> str:
    """A path below the page's own folder as a link."""
    return "./" + quote(os.fsencode(path))


LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # else an argument of what ends the line before
    "]": "{]}",
    '"': r"\textquotedblright{}",  # plain \textquotedbl is not in LaTeX's default encoding
    "±": r"$\pm$",
}


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(LATEX.get(character, character) for character in text)


def to_latex(table: Table) -> str:
    r"""A tabular for \usepackage{booktabs}."""

    def line(cells: Iterable[str]) -> str:
        return " & ".join(cells) + r" \\"

    def shown(cell: Cell) -> str:
        if not isinstance(cell, Estimate):
            return "--" if cell is None else escape_latex(str(cell))
        mean, *half = (re.sub(r"e([+-]\d+)", lambda m: rf" \times 10^{{{int(m[1])}}}", t) for t in cell.numbers())
        mean = rf"\mathbf{{{mean}}}" if cell.bold else mean
        return "$" + r" \pm ".join([mean, *half]) + "$" + escape_latex(cell.remark())

    columns = "".join("r" if right else "l" for right in table.columns_of(Estimate, int))
    title = [f"% {table.title}"] if table.title else []
    rows = [line(map(shown, row)) for row in table.rows]
    parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(map(escape_latex, table.header)), r"\midrule"]
    return "\n".join([*title, *parts, *rows, r"\bottomrule", r"\end{tabular}"]) + "\n"
