"""The pages of docs/ and the README: what they name is there, and what they link can be followed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

PROJECT = Path(__file__).parents[1]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
TEXT = {page.name: page.read_text() for page in PAGES}
COMMANDS = ("train.py", "evaluate.py", "search_hyperparams.py", "synthesize_results.py")
MOST_BYTES = 400_000  # of a picture


def links(text: str) -> list[str]:
    """What a page links or shows, of its own project."""
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|srcset)=\"([^\"]+)\"", text)
    return [link.partition("#")[0] for link in found if not link.startswith(("http", "#"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    there = {link for link in links(page.read_text()) if Path(link).name != "extending.md"}  # which others write
    assert [link for link in sorted(there) if not (page.parent / link).is_file()] == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached = {Path(link).name for link in links(TEXT["README.md"])}
    assert {page.name for page in PAGES} - reached == {"README.md"}


def test_the_readme_is_read_in_three_screens() -> None:
    assert len(TEXT["README.md"].splitlines()) <= 160


def test_every_option_that_is_named_exists_and_none_is_left_out() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", TEXT["configuration.md"], re.MULTILINE)
    groups = {group: names(text) for group, text in rows if (PROJECT / "conf" / group).is_dir()}
    assert groups.keys() == {
        "data", "model", "loss", "metrics", "learner", "optimizer", "scheduler", "trainer", "debug"
    }  # fmt: skip
    presets = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| .* \|$", TEXT["presets.md"], re.MULTILINE)
    groups["experiment"] = set.union(*map(names, presets))
    (searches,) = re.findall(r"^\| `search` \| (.*) \|$", TEXT["sweeps-and-search.md"], re.MULTILINE)
    groups["search"] = names(searches)
    for group, named in groups.items():
        there = {path.stem for path in (PROJECT / "conf" / group).glob("*.yaml")}
        assert named == {option for option in there if not option.endswith("_best")}, group  # which searches write


def names(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_0-9]+)`", text))


def test_every_key_that_is_named_exists() -> None:
    """Dotted keys in code, of the groups whose keys are all of the schema; and what the four commands take."""
    from dataclasses import fields

    from lab.config import schema

    known = {
        "trainer": {field.name for field in fields(schema.TrainerOptions)},
        "search": {field.name for field in fields(schema.SearchOptions)},
    }
    found = re.findall(r"(?<![\w.-])(trainer|search)\.(\w+)", "\n".join(TEXT.values()))
    assert len(found) > 20
    assert {f"{group}.{key}" for group, key in found if key not in known[group]} == set()


def test_every_command_that_is_named_exists() -> None:
    scripts = set(re.findall(r"python (\w+\.py)", "\n".join(TEXT.values())))
    assert scripts == set(COMMANDS)
    targets = set(re.findall(r"make ([a-z-]+)", "\n".join(code(text) for text in TEXT.values())))
    assert targets <= set(re.findall(r"^([a-z-]+):.*##", (PROJECT / "Makefile").read_text(), re.MULTILINE))


def code(text: str) -> str:
    """What stands between backticks, in lines and blocks."""
    return "\n".join(re.findall(r"`([^`\n]+)`", text) + re.findall(r"```\n(.*?)```", text, re.DOTALL))


def test_each_group_of_a_command_has_the_option_that_it_names() -> None:
    groups = {path.name for path in (PROJECT / "conf").iterdir() if path.is_dir()} - {"hydra"}
    own = set(re.findall(r"# conf/(\w+/\w+)\.yaml", "\n".join(TEXT.values())))  # of the examples
    for name, text in TEXT.items():
        for command in re.findall(r"python (?:train|search_hyperparams)\.py [^`\n]*", text):
            for group, options in re.findall(r"(?<= )(\w+)=([\w,]+)", command):
                if group not in groups:
                    continue
                for option in options.split(","):
                    exists = (PROJECT / "conf" / group / f"{option}.yaml").is_file()
                    is_placed = option == "NAME" or option.endswith("_best")  # that a search writes
                    assert exists or is_placed or f"{group}/{option}" in own, f"{name}: {command}"


@pytest.mark.parametrize("picture", sorted((PROJECT / "docs").glob("*.[pg][ni][gf]")), ids=lambda path: path.name)
def test_a_picture_is_small_and_shown(picture: Path) -> None:
    assert picture.stat().st_size < MOST_BYTES
    assert any(picture.name in text for text in TEXT.values())
    with Image.open(picture) as image:
        assert image.width > 300
