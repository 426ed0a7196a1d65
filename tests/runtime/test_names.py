"""Names from files and users: which may become paths, and how they are shown."""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import Any

import pytest

from ensemble_distill.runtime.jsons import json_text, parse_json
from ensemble_distill.runtime.names import harmless, harmless_cell, is_plain

PLAIN = ["member-0", "a b", "café", "x.y", "..x", "=1+1", "x" * 255]
OTHER: list[Any] = [
    "",
    ".",
    "..",
    "a/b",
    "/etc",
    "../x",
    "a\\b",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "x" * 256,
    "\u202eabc",
    7,
    None,
    ["a"],
]


@pytest.mark.parametrize("name", PLAIN)
def test_one_part_of_a_path_is_plain(name: str) -> None:
    assert is_plain(name)


@pytest.mark.parametrize("name", OTHER, ids=ascii)
def test_anything_else_is_not(name: Any) -> None:
    assert not is_plain(name)


def test_what_a_terminal_would_obey_is_shown_as_text() -> None:
    for text, shown in [
        ("plain µ → ü", "plain µ → ü"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("bell\x07 back\x08 return\r", r"bell\x07 back\x08 return\r"),
        ("\x9b2J", r"\x9b2J"),
        ("gnp.\u202eexe", r"gnp.\u202eexe"),
        ("file\udcff", r"file\udcff"),
    ]:
        assert harmless(text) == shown
        shown.encode()


@pytest.mark.thorough
def test_every_character_a_terminal_obeys_is_escaped() -> None:
    """Unicode's own tables say which those are."""
    turning = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    for character in map(chr, range(sys.maxunicode + 1)):
        obeyed = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and character not in "\n\t"
        obeyed |= unicodedata.bidirectional(character) in turning or character in "\u061c\u200e\u200f"
        assert (harmless(character) != character) is obeyed, ascii(character)


def test_json_says_the_same_and_shows_nothing_to_obey() -> None:
    record = {"name": "\x1b[2J\x7f\x9b \u202e \udcff µ \n"}
    text = json_text(record)
    assert harmless(text) == text
    assert json.loads(text.encode()) == record
    assert "µ" in text
    assert json_text(record, only_ascii=True).isascii()


def test_json_that_cannot_be_read_is_a_value_error() -> None:
    for text in ["[" * 100_000, '{"a":' * 100_000, "{", "\xff", "1" * 5000]:
        with pytest.raises(ValueError, match=r"\S"):
            parse_json(text.encode("latin-1"))


def test_no_spreadsheet_takes_a_cell_for_a_formula() -> None:
    for value, cell in [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1+1", "'+1+1"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("  =1", "'  =1"),
        ("\t=1", "'\t'=1"),
        ("a;=1", "a;'=1"),
        ("a; @b;-3;-x", "a;' @b;-3;'-x"),
        ("a\n+1+1", "a\n'+1+1"),
        ("\uff1dSUM(A1)", "'\uff1dSUM(A1)"),
        ("", ""),
        ("-0.5", "-0.5"),
        ("+1e-7", "+1e-7"),
        ("cat", "cat"),
        ("a-b", "a-b"),
        ("\x1b=1", r"\x1b=1"),
        (-0.5, -0.5),
        (None, None),
    ]:
        assert harmless_cell(value) == cell
