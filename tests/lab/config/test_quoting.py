"""What is printed for a user to type is read back as what was meant, and a terminal is not moved by it."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lab.config.quoting import as_typed, printable

TEXTS = [
    *("runs/mlp", "/home/jürgen/x", "a=b", "a,b", "a=b,c=[d]", "[x]", "{x}", "(x)", "a:b", "日本語", "e\u0301", "🎉"),
    *("it's", 'say "x"', "a'b\"c", "''", "a b", " lead", "trail ", "a\tb", "a\nb", "", "\udcff"),
    *("a\\b", "a\\", "a\\'", "\\\\'", "a\\b'c\\", "$HOME", "$", "$$", "${oc.env:HOME}", "\\${x}", "\\\\${x}", "a$b{c}"),
    *("~/x", "*?", "#x", "x#y", "50%", "+x", "!x", "x;rm -rf y", "a&b", "a|b<c>", "`x`", "@x", "^x", "-m", "--help"),
    *("1e3", "3", "0x1", "1_0", ".1", "1.", "-1", "null", "True", "off", "INF", "nan", "range(3)", "glob(*)", "???x"),
]
VALUES = [None, True, False, 3, -1, 1.5, 1e-7, [1, "a b"], [], {"a": [1, None]}, ["x,y", "z]"], {"b": {"c": "it's"}}]


@pytest.mark.parametrize("value", TEXTS + VALUES, ids=ascii)
def test_what_is_typed_is_read_as_it_was_meant(value: Any) -> None:
    (word,) = shlex.split(as_typed("resume", value))
    override = OverridesParser.create().parse_override(word)
    read = OmegaConf.to_container(OmegaConf.create({"value": override.value()}), resolve=True)["value"]  # type: ignore
    assert override.key_or_group == "resume"
    assert (read, type(read)) == (value, type(value))


def test_a_plain_path_stays_plain() -> None:
    assert as_typed("run", "experiments/lr_study/lr-1e-3/seed-0") == "run=experiments/lr_study/lr-1e-3/seed-0"
    assert as_typed("run", "./x") == "run=./x"


def test_what_moves_a_terminal_is_spelled_out() -> None:
    assert printable("a\x1b[31m\r\nb\x07\u202e\udcff ü") == "a\\x1b[31m\\r\\nb\\x07\\u202e\\udcff ü"
