"""Tables as text, CSV, LaTeX and web pages: every number in full, and no value that does harm."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import scipy.stats
from studies import MLP, make_run, make_study, make_unbegun

from lab.tables.cells import Estimate, Table, digits_for
from lab.tables.content import pivot_tables
from lab.tables.formats import escape_latex, to_csv, to_latex, to_markdown
from lab.tables.page import with_minus
from lab.tables.summary import summarize
from lab.tables.text import format_terminal, to_text
from synthesize_results import write_report

HOSTILE = '<script>alert("1")</script> & 50% of $x_1$ {\\input{/etc/passwd}} | `*#~^\' \x1b[31m\n\u202e end'


class Page(HTMLParser):
    """The tags, the links and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else_and_links_to_every_run(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.8, 0.9], 0.01: [0.85, 0.95]})
    make_run(tmp_path, lr=0.1, seed=2, state="failed", path="a dir/seed-2 <b>&%41")
    write_report(summarize(tmp_path))
    page = Page((tmp_path / "results.html").read_text())
    links = page.attributes["href"]
    assert sorted(unquote(link) for link in links) == sorted(
        f"./{path.parent.relative_to(tmp_path)}" for path in tmp_path.rglob("config.yaml")
    )
    assert all((tmp_path / unquote(link)).is_dir() for link in links)
    assert "2 failed" in page.text
    assert len(page.attributes["src"]) == 3
    for source in page.attributes["src"]:
        kind, _, data = source.partition("base64,")
        assert kind == "data:image/png;" and base64.b64decode(data).startswith(b"\x89PNG")
    assert set(page.tags) & {"link", "iframe", "object"} == set() and page.tags.count("script") == 1


def test_hostile_values_are_harmless_everywhere(tmp_path: Path) -> None:
    root = tmp_path / "<img src=x onerror=alert(1)>&_%"
    for seed in (0, 1):
        make_run(root, 0.8 + seed / 10, model=MLP | {"note": HOSTILE}, seed=seed, path=f"{seed}<script>", test=0.5)
        make_run(root, 0.7 + seed / 10, model=MLP | {"note": "plain"}, seed=seed, path=f'{seed}"onclick="x')
    (make_run(root, path="<b>bad</b>\x1b") / "metrics.json").write_text("<script>")
    summary = summarize(root, pivot=["note", "model"])
    write_report(summary, pivot_tables(summary, ["note", "model"]))
    page = Page((root / "results.html").read_text())
    assert page.tags.count("script") == 1 and page.tags.count("img") == 3
    assert not {"onclick", "onerror"} & page.attributes.keys()
    assert '<script>alert("1")</script> & 50% of $x_1$' in page.text  # as text
    latex = "".join(line for line in (root / "results.tex").read_text().splitlines(True) if not line.startswith("%"))
    for formula in re.findall(r"(?<!\\)\$(.*?)(?<!\\)\$", latex):
        assert re.fullmatch(r"(\\mathbf\{)?[-\d.]+\}?( \\pm [\d.]+)?", formula), formula
    assert not re.search(r"(?<!\\)[%#_~^]", latex)
    assert r"\input" not in latex and r"\textbackslash{}input\{" in latex
    for name in ("results.md", "results.tex", "results.csv"):
        assert all(c.isprintable() for c in (root / name).read_text().replace("\n", "")), name
    assert "\\<script\\>" in (root / "results.md").read_text()
    terminal = format_terminal(summary)
    assert all(c.isprintable() for c in terminal.replace("\n", ""))


@pytest.mark.skipif(
    not shutil.which("kpsewhich")
    or subprocess.run(["kpsewhich", "booktabs.sty"], check=False, stdout=subprocess.DEVNULL).returncode,
    reason="there is no LaTeX with booktabs on this machine",
)
def test_latex_takes_the_table_whatever_is_in_it(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path, 0.8 + seed / 10, model=MLP | {"note": HOSTILE}, seed=seed, path=f"{seed}$x_{{1}}%", test=0.5)
        make_run(tmp_path, 1e-9 * seed, model=MLP | {"note": r"$\\alpha$ #1 & \\end{tabular}"}, seed=seed)
        make_run(tmp_path, 0.5, model=MLP | {"note": [1, 2]}, seed=seed)  # \\ takes what is in brackets after it
    make_unbegun(tmp_path, "\\input{x}", "100% \\undefined $")
    pivot = ["note", "model"]
    summary = summarize(tmp_path, pivot=pivot)
    write_report(summary, pivot_tables(summary, pivot))
    text = (tmp_path / "results.tex").read_text()
    paper = r"\documentclass{article}\usepackage{booktabs}\begin{document}" + f"\n{text}\n" + r"\end{document}"
    (tmp_path / "paper.tex").write_text(paper)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_latex_escapes() -> None:
    assert escape_latex(r"50% & $a_1$ #{x} ~^\ <>|") == (
        r"50\% \& \$a\_1\$ \#\{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \textless{}\textgreater{}\textbar{}"
    )


def test_one_table_in_four_formats() -> None:
    table = Table(
        ["lr", "n", "val/loss"],
        [
            ["a_b", 3, Estimate(0.5, 0.25, 3, ".4f", bold=True)],
            ["c|d", 1, Estimate(2e-5, None, 1, ".3e")],
            ["e", 0, None],
        ],
    )
    assert to_text(table).splitlines() == [
        "lr   n  val/loss",
        "---  -  ---------------",
        "a_b  3  0.5000 ± 0.2500",
        "c|d  1  2.000e-05",
        "e    0  -",
    ]
    assert to_markdown(table).splitlines()[2:] == [
        "| a_b | 3 | **0.5000 ± 0.2500** |",
        "| c\\|d | 1 | 2.000e-05 |",
        "| e | 0 | - |",
    ]
    assert to_latex(table).splitlines()[4:7] == [
        r"a\_b & 3 & $\mathbf{0.5000} \pm 0.2500$ \\",
        r"c\textbar{}d & 1 & $2.000 \times 10^{-5}$ \\",
        r"e & 0 & -- \\",
    ]
    assert to_csv(table).splitlines() == [
        "lr,n,val/loss,val/loss low,val/loss high",
        "a_b,3,0.5,0.25,0.75",
        "c|d,1,2e-05,,",
        "e,0,,,",
    ]


def test_no_cell_of_a_csv_is_a_formula() -> None:
    texts = ["=1+2", "+SUM(A1)", "-cmd", "@x", "-0.5", "+3", "-", "a=b", "=HYPERLINK(1)"]
    rows = list(csv.reader(to_csv(Table(["=name"], [[text] for text in texts])).splitlines()))
    assert [row[0] for row in rows] == [
        *("'=name", "'=1+2", "'+SUM(A1)", "'-cmd", "'@x", "-0.5", "+3", "-", "a=b", "'=HYPERLINK(1)")
    ]


def test_the_page_is_for_phones_and_dark_rooms_and_says_what_it_was_made_from(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.8, 0.81], 0.01: [-0.85, -0.95]})
    for seed, state in enumerate(("failed", "interrupted")):
        make_run(tmp_path, lr=0.1, seed=seed + 5, state=state)
    record = {"git_commit": "0123456789abcdef", "git_patch_sha256": "x"}
    (tmp_path / "run0000" / "provenance.json").write_text(json.dumps(record))
    write_report(summarize(tmp_path))
    text = (tmp_path / "results.html").read_text()
    page = Page(text)
    assert page.tags.count("main") == 1 and "width=device-width, initial-scale=1" in page.attributes["content"]
    assert "prefers-color-scheme: dark" in text and "default-src 'none'" in text
    assert not re.search(r"https?:|@import|url\(", text)
    assert "\N{MINUS SIGN}0.9000" in page.text and "-0.9000" not in page.text
    assert any(value.startswith("-0.8999") for value in page.attributes["data-value"])
    assert "0123456789 with changes (1 of 6 runs)" in page.text
    assert "18.0 seconds of epochs that ended, of them 6.0 seconds in runs that did not finish" in page.text
    assert re.search(r'<tr class="best"><td data-value="0.1">', text)
    assert text.count("data-down") - text.partition("<script>")[2].count("data-down") == 2  # the metric, the difference


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-0.5 ± 0.1", "\N{MINUS SIGN}0.5 ± 0.1"),
        ("2.000e-05", "2.000e\N{MINUS SIGN}05"),
        ("seed-2 lr-0.1", "seed-2 lr-0.1"),
        ("Tukey-Kramer, n = -1", "Tukey-Kramer, n = \N{MINUS SIGN}1"),
        ("-", "-"),
    ],
)
def test_a_minus_is_no_hyphen(text: str, shown: str) -> None:
    assert with_minus(text) == shown


def test_csv_has_every_number_in_full(tmp_path: Path) -> None:
    make_study(tmp_path, {0.1: [0.8, 0.9, 0.95]})
    write_report(summarize(tmp_path))
    with (tmp_path / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    low, high = scipy.stats.t.interval(0.95, 2, np.mean([0.8, 0.9, 0.95]), scipy.stats.sem([0.8, 0.9, 0.95]))
    assert [float(row[f"val/accuracy{end}"]) for end in ("", " low", " high")] == pytest.approx(
        [2.65 / 3, low, high], rel=1e-12
    )
    assert row["runs"].split() == [f"./run{i:04}" for i in range(3)]


@pytest.mark.parametrize(
    ("values", "digits"),
    [
        ([0.95, 0.9], ".4f"),
        ([12.3, 4.0], ".2f"),
        ([0.05], ".5f"),
        ([2e-9, 0.5], ".3e"),
        ([1e-8], ".3e"),
        ([3e9], ".3e"),
    ],
)
def test_numbers_show_four_digits(values: list[float], digits: str) -> None:
    assert digits_for(values) == digits
