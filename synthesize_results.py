"""From run directories to the answer: a table of what was varied, with intervals over seeds and honest comparisons.

python synthesize_results.py root=experiments/lr_study
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from lab.config.command import command
from lab.config.schema import SynthesizeConfig, nearest_name
from lab.runs.lock import held
from lab.runs.reading import printable
from lab.tables.cells import Table
from lab.tables.content import heading, pivot_tables, table_of
from lab.tables.curves import MOST_CURVES, best_curves, effects_of, forest_row, panels_of
from lab.tables.diff import describe_difference
from lab.tables.events import write_mean_curves
from lab.tables.facts import facts_of
from lab.tables.formats import escape_markdown, to_csv, to_latex, to_markdown
from lab.tables.page import to_page
from lab.tables.paper import to_paper
from lab.tables.summary import Summary, summarize, warning
from lab.tables.text import format_terminal
from utils import PROJECT, UserError, write_file


def draw_pictures(summary: Summary) -> list[tuple[str, Path]]:
    """Draws rows, learning curves and the effect of each key into the root: (heading, file) of each, the rows first."""
    from lab.plots.comparisons import EffectLine, ForestRow, MeanCurve, draw_effects, draw_forest, draw_mean_curves
    from lab.plots.figures import save_png

    metric, figures = summary.metric, {}
    if panels := panels_of(summary):
        forest = {data: [ForestRow(*forest_row(name, row, metric)) for name, row in of] for data, of in panels.items()}
        title = "Every row with its 95% interval: blue is what cannot be told from the best"
        figures["rows"] = (title, draw_forest(forest, metric, higher=summary.higher))
    if curves := best_curves(summary):
        shown = {data: {name: MeanCurve(*curve) for name, curve in of.items()} for data, of in curves.items()}
        title = f"Learning curves: the best {MOST_CURVES} rows at most, mean and 95% band over runs"
        figures["curves"] = (title, draw_mean_curves(shown, metric))
    if effects := effects_of(summary):
        lines = {key: [EffectLine(*line) for line in of] for key, of in effects.items()}
        figures["effects"] = (
            "Effect of each key: a line connects rows that agree in all others",
            draw_effects(lines, metric),
        )
    for name, (_, figure) in figures.items():
        save_png(figure, summary.root / f"results_{name}.png")
    return [(title, summary.root / f"results_{name}.png") for name, (title, _) in figures.items()]


def write_report(summary: Summary, pivots: Sequence[Table] = ()) -> list[Path]:
    """Writes tables and pictures into the root, as results.* and paper.md; adds a note on damaged curves."""
    table, title = table_of(summary), f"Results of {printable(summary.root.absolute().name)}"
    pictures, facts = draw_pictures(summary), facts_of(summary)
    damaged = [run for run in summary.runs if run.state == "finished" and run.problem.startswith("metrics.jsonl")]
    summary.notes += warning(damaged, "without a whole learning curve")
    notes = [*heading(summary), *summary.notes]
    markdown = [f"# {escape_markdown(title)}\n", to_markdown(table), *map(to_markdown, pivots)]
    markdown.append("".join(f"- {escape_markdown(note)}\n" for note in notes))
    markdown += [f"![{escape_markdown(text)}]({file.name})\n" for text, file in pictures]
    remarks = "".join(f"% {note}\n" for note in [*notes, "needs \\usepackage{booktabs}"])
    page = to_page(
        title,
        [table, *pivots],
        heading=heading(summary),
        notes=summary.notes,
        first=[(text, file.read_bytes()) for text, file in pictures[:1]],
        pictures=[(text, file.read_bytes()) for text, file in pictures[1:]],
        facts=facts,
    )
    contents = {
        "md": "\n".join(markdown),
        "csv": to_csv(table),
        "tex": remarks + "\n".join(map(to_latex, [table, *pivots])),
        "html": page,
    }
    files = {summary.root / f"results.{ending}": text for ending, text in contents.items()}
    files[summary.root / "paper.md"] = to_paper(summary)
    for file, text in files.items():
        write_file(file, text.encode())
    return list(files)


def find_folder(name: str) -> Path:
    """The folder of that name from here, or from the project's folder."""
    return next((folder for folder in (Path(name), PROJECT / name) if name and folder.is_dir()), Path(name))


def find_root(root: str) -> Path:
    """The folder of that name; UserError where there is none."""
    if root and (folder := find_folder(root)).is_dir():
        return folder
    parent = next((f for f in (Path(root).parent, PROJECT / Path(root).parent) if f.is_dir()), PROJECT / "experiments")
    near = nearest_name(Path(root).name, [path.name for path in parent.glob("*/")])
    hint = f"did you mean {parent / near}?" if near else f"experiments are in {PROJECT / 'experiments'}"
    raise UserError(f"root is {root!r}, which is no folder; {hint}")


@command("synthesize_results", SynthesizeConfig)
def main(ask: DictConfig) -> None:
    """Prints the answer, and writes it into the root; with `diff`, prints what two runs differ in."""
    if ask.diff is not None:
        if len(ask.diff) != 2:
            raise UserError(f"diff is [{','.join(ask.diff)}]; it takes two run directories: diff=[<run>,<run>]")
        print(*describe_difference(*map(find_folder, ask.diff)), sep="\n")
        return
    if ask.root is None:
        raise UserError("root is missing; it takes the folder of the runs: root=experiments/lr_study")
    pivot = list(ask.pivot or ())
    if pivot and len(set(pivot)) != 2:
        raise UserError(f"pivot is [{','.join(pivot)}]; it takes two keys, downwards and across, as pivot=[model,data]")
    summary = summarize(
        find_root(ask.root),
        metric=ask.metric,
        group_by=ask.group_by,
        pivot=pivot,
        higher_is_better=ask.higher_is_better,
        seeds_for_choosing=ask.seeds_for_choosing or (),
        plan=ask.plan,
        sequential=ask.sequential,
    )
    pivots = pivot_tables(summary, pivot) if pivot else []
    print(format_terminal(summary, pivots))
    with held(summary.root, "results"):
        num_notes, paths = len(summary.notes), write_report(summary, pivots)
        print(*summary.notes[num_notes:], "", "written: " + printable(" ".join(map(str, paths))), sep="\n")
        if ask.tensorboard:
            print(f"written: {printable(str(write_mean_curves(summary)))}")


if __name__ == "__main__":
    main()
