"""`--help`: what a command does, examples, and each key with the comment that it has in the files of conf/."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lab.config.mistakes import CONF
from lab.config.quoting import as_value, printable

WIDTH, COLUMN = 80, 32  # of the page; where comments begin
LINE = re.compile(r"(\s*)([\w.-]+):\s*(.*?)(?:\s*#\s*(.*))?")


def help_text(config_name: str, overrides: Sequence[str]) -> str:
    """The help of a command, with the configuration as chosen."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = hydra.compose(config_name, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)  # a name may be made of what was chosen
    choices = {group: option for group, option in cfg.hydra.runtime.choices.items() if not group.startswith("hydra/")}
    files = [CONF / "train.yaml"] * (config_name == "search_hyperparams") + [CONF / f"{config_name}.yaml"]
    comments: dict[str, str] = {}
    for path in files:
        comments |= comments_of(path)
    for group, option in choices.items():
        comments |= comments_of(CONF / group / f"{option}.yaml", f"{group}.")
    parts = [
        textwrap.fill(cfg.hydra.help.header, WIDTH),
        "\n".join(textwrap.indent(example, "  ") for example in examples(files[-1])),
    ]
    if choices:
        parts += ["Choices, as GROUP=OPTION:", "\n".join(map(group_line, reversed(choices)))]
    parts += ["Keys, as KEY=VALUE" + ", with these choices" * bool(choices) + ":"]
    parts += ["\n".join(key_lines(key, value, comments.get(key, "")) for key, value in leaves(cfg))]
    if cfg.hydra.help.footer:
        parts += [textwrap.fill(cfg.hydra.help.footer, WIDTH)]
    return "\n".join(printable(line) for line in "\n\n".join(parts).split("\n"))


def examples(path: Path) -> Iterator[str]:
    """The commands that a file of conf/ opens with."""
    for line in path.read_text().splitlines():
        if line.startswith("# python "):
            yield " \\\n".join(textwrap.wrap(line[2:], WIDTH - 4, break_long_words=False, break_on_hyphens=False))


def comments_of(path: Path, prefix: str = "") -> dict[str, str]:
    """{dotted key: the comment beside it} of a YAML file."""
    comments: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        if match := LINE.fullmatch(line):
            indent, key, _, comment = match.groups()
            above = [*((depth, name) for depth, name in above if depth < len(indent)), (len(indent), key)]
            if comment:
                comments[prefix + ".".join(name for _, name in above)] = comment
    return comments


def leaves(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, its value as one would type it) of a composed configuration, without Hydra's own part."""
    for name in map(str, node):
        key = f"{prefix}{name}"
        if key in ("hydra", "search.space"):  # which is no key that can be given
            continue
        try:
            value = None if (is_missing := OmegaConf.is_missing(node, name)) else node[name]
        except OmegaConfBaseException:
            is_missing = True
        if is_missing:
            yield key, "..."
        elif isinstance(value, DictConfig) and value:
            yield from leaves(value, f"{key}.")
        else:
            yield key, as_value(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)


def key_lines(key: str, value: str, comment: str) -> str:
    """A key with its value, and its comment beside it or, where there is no room, below."""
    start = f"  {key}={value}"
    margin = " " * COLUMN
    if not comment:
        return start
    lines = textwrap.wrap(comment, WIDTH, initial_indent=margin, subsequent_indent=margin)
    if len(start) + 2 <= COLUMN:
        lines[0] = start.ljust(COLUMN) + lines[0][COLUMN:]
        return "\n".join(lines)
    return "\n".join([start, *lines])


def group_line(group: str) -> str:
    """A group with its options."""
    options = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
    return textwrap.fill(options, WIDTH, initial_indent=f"  {group:<12}", subsequent_indent=" " * 14)
