"""Cells in, text out: a table for the terminal, Markdown, CSV, LaTeX or a web page, with every value escaped.

Apart from synthesize_results.py because nothing here knows what a run is, as nothing in plots/ knows what a network is.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote


@dataclass(frozen=True)
class Estimate:
    """A mean of n values and the half-width of its 95% interval, which is None where n = 1 allows no interval.

    digits: the format that both are written in; signed: with a sign before what is positive, too; note: what follows.
    """

    mean: float
    half: float | None
    n: int
    digits: str = ".4g"
    signed: bool = False
    bold: bool = False
    note: str = ""

    def numbers(self) -> list[str]:
        """The mean, and the half-width where there is one, as text."""
        mean = format(self.mean, "+" * self.signed + self.digits)
        return [mean] if self.half is None else [mean, format(self.half, self.digits)]


Cell = Estimate | str | int | None


@dataclass(frozen=True)
class Table:
    """A header, rows of as many cells, and for each row what it is made from, as (label, path) pairs."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    sources: Sequence[Sequence[tuple[str, str]]] = field(default_factory=list)

    def columns_of(self, *kinds: type) -> list[bool]:
        """For each column, whether a cell of it is of these kinds."""
        return [any(isinstance(row[index], kinds) for row in self.rows) for index in range(len(self.header))]


def digits_for(values: Iterable[float]) -> str:
    """The format for a column of numbers: four digits of the largest, or an exponent where small ones would vanish."""
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    if not sizes:
        return ".4f"
    decimals = max(0, 3 - math.floor(math.log10(max(sizes))))
    return f".{decimals}f" if decimals <= 6 and max(sizes) < 1e7 and min(sizes) >= 10.0 ** (1 - decimals) else ".3e"


def _words(cell: Cell) -> str:
    if isinstance(cell, Estimate):
        return " ± ".join(cell.numbers()) + cell.note
    return "-" if cell is None else str(cell)


def to_text(table: Table) -> str:
    """Aligned columns for a terminal."""
    lines = [list(table.header), *([_words(cell) for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    to_the_right = table.columns_of(int)
    aligned = [
        [text.rjust(width) if right else text.ljust(width) for text, width, right in columns]
        for columns in (zip(line, widths, to_the_right, strict=True) for line in lines)
    ]
    return "\n".join([table.title] * bool(table.title) + ["  ".join(line).rstrip() for line in aligned])


# ----------------------------------------------------------------------------------------------------- files of text


def to_markdown(table: Table) -> str:
    """A table in GitHub's Markdown."""

    def shown(cell: Cell) -> str:
        words = escape_markdown(_words(cell))
        return f"**{words}**" if isinstance(cell, Estimate) and cell.bold else words

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
    for name, is_wide in zip(table.header, wide, strict=True):
        header += [name, f"{name} low", f"{name} high"] if is_wide else [name]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header + ["runs"] * bool(table.sources))
    for index, row in enumerate(table.rows):
        cells: list[object] = []
        for cell, is_wide in zip(row, wide, strict=True):
            if isinstance(cell, Estimate):
                cells += [cell.mean, *_ends(cell)]
            else:
                cells += [cell, "", ""] if is_wide else [cell]
        paths = [" ".join(_url(path) for _, path in table.sources[index])] if table.sources else []
        writer.writerow(cells + paths)
    return buffer.getvalue()


def _ends(cell: Estimate) -> list[object]:
    return ["", ""] if cell.half is None else [cell.mean - cell.half, cell.mean + cell.half]


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
        return "$" + r" \pm ".join([mean, *half]) + "$" + escape_latex(cell.note)

    columns = "".join("r" if right else "l" for right in table.columns_of(Estimate, int))
    title = [f"% {table.title}"] if table.title else []
    rows = [line(map(shown, row)) for row in table.rows]
    parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(map(escape_latex, table.header)), r"\midrule"]
    return "\n".join([*title, *parts, *rows, r"\bottomrule", r"\end{tabular}"]) + "\n"


# -------------------------------------------------------------------------------------------------------- the web page

STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; color: #222; max-width: 1700px; margin: 2rem auto; padding: 0 1.2rem }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; overflow-wrap: anywhere } h2 { font-size: 1.1rem; margin-top: 2rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 0.3rem 0.6rem; border-bottom: 1px solid #e4e4e4; white-space: nowrap }
th { border-bottom: 2px solid #222; cursor: pointer; user-select: none } .number { text-align: right }
th::after { content: "\\2195"; color: #bbb; padding-left: 0.3em }
th[aria-sort=ascending]::after { content: "\\2191"; color: #222 }
th[aria-sort=descending]::after { content: "\\2193"; color: #222 }
tbody tr:hover { background: #f5f8fb } td.runs { white-space: normal; min-width: 14rem }
td.runs a { margin-right: 0.5em; white-space: nowrap } a { color: #0072b2 }
ul { padding-left: 1.2rem; color: #444 } img { max-width: min(100%, 1000px); height: auto }
"""
SCRIPT = """
for (const head of document.querySelectorAll("th")) {
  const sort = () => {
    const body = head.closest("table").tBodies[0], index = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    const key = row => row.cells[index].dataset.value;
    const number = text => text === "" ? NaN : Number(text);
    const compare = (a, b) => {
      const x = number(key(a)), y = number(key(b));
      if (!isNaN(x) && !isNaN(y)) return down ? y - x : x - y;
      if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;  // what has no number stays at the end
      return key(a).localeCompare(key(b)) * (down ? -1 : 1);
    };
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...[...body.rows].sort(compare));
  };
  head.tabIndex = 0;
  head.addEventListener("click", sort);
  head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
}
"""


def to_html(title: str, tables: Sequence[Table], notes: Sequence[str], pictures: Sequence[tuple[str, bytes]]) -> str:
    """One page that needs nothing else: tables that sort by a click, notes, and (heading, PNG) pictures."""
    body = [f"<h1>{html.escape(title)}</h1>", "<ul>", *(f"<li>{html.escape(note)}</li>" for note in notes), "</ul>"]
    body += map(_html_table, tables)
    for heading, png in pictures:
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        body += [f"<h2>{html.escape(heading)}</h2>", f'<img src="{source}" alt="{html.escape(heading)}">']
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    page = ["<!DOCTYPE html>", f'<html lang="en"><head>{head}</head><body>', *body]
    return "\n".join([*page, f"<script>{SCRIPT}</script></body></html>"]) + "\n"


def _html_table(table: Table) -> str:
    right = [' class="number"' * is_number for is_number in table.columns_of(Estimate, int)]
    heads = [f"<th{align}>{html.escape(name)}</th>" for name, align in zip(table.header, right, strict=True)]
    lines = [f"<h2>{html.escape(table.title)}</h2>"] if table.title else []
    lines += ['<div class="scroll"><table><thead><tr>', *heads, "<th>runs</th>" * bool(table.sources)]
    lines += ["</tr></thead><tbody>"]
    for index, row in enumerate(table.rows):
        cells = [_html_cell(cell, align) for cell, align in zip(row, right, strict=True)]
        if table.sources:
            links = [f'<a href="{_url(path)}">{html.escape(label)}</a>' for label, path in table.sources[index]]
            cells.append(f'<td class="runs" data-value="{len(links)}">{" ".join(links)}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def _html_cell(cell: Cell, align: str) -> str:
    value = repr(cell.mean) if isinstance(cell, Estimate) else "" if cell is None else str(cell)
    words = html.escape(_words(cell))
    words = f"<b>{words}</b>" if isinstance(cell, Estimate) and cell.bold else words
    return f'<td{align} data-value="{html.escape(value)}">{words}</td>'


def _url(path: str) -> str:
    return "./" + quote(os.fsencode(path))
