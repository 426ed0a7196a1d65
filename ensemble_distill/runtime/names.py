"""Names from files and users: which of them can become paths, and how they are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# control characters except line feed and tab, line separators, changes of writing direction, and lone surrogates
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
FORMULAS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # first characters of a formula, full-width ones included
LONGEST = 255  # bytes of a file name on all common file systems


def is_plain(name: object) -> bool:
    """Whether a name can become a single file or folder below another: it is no path and hides nothing."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not re.search(r"[/\\\0\n\t]", name)
        and harmless(name) == name
        and len(name.encode("utf-8", "replace")) <= LONGEST
    )


def harmless(text: str) -> str:
    """The text with everything that a terminal would obey, or that hides other text, written as escapes.

    These are control characters except line feed and tab, line separators, characters that change the direction of
    writing, and lone surrogates, which stand for bytes of file names that are not UTF-8.
    """
    return OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """The text as `harmless` returns it, with line feeds and tabs escaped too, so that it cannot end a comment in code
    or settings."""
    return harmless(text).replace("\n", "\\n").replace("\t", "\\t")


def plain_markdown(text: str) -> str:
    """The text in one line, escaped so that Markdown renders it literally: no table, code, HTML or link."""
    return re.sub(r"[\\`*\[\]<>&|~]", r"\\\g<0>", harmless(text).replace("\n", "\\n"))


def harmless_json(text: str) -> str:
    """A JSON text with the characters that `harmless` escapes written as JSON escapes; its value is unchanged."""
    return OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def encodable(value: Any) -> Any:
    """A text, or the texts of a list, with everything UTF-8 cannot encode (bytes of file names) escaped; other values
    are unchanged."""
    if isinstance(value, list):
        return [encodable(one) for one in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def harmless_cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text that begins like one is prefixed with an apostrophe.

    So is text after a semicolon, tab or line feed, where a spreadsheet in another locale may split the cell. Numbers
    stay numbers, and control characters are escaped.
    """
    if not isinstance(value, str):
        return value
    value = "".join(f"'{part}" if _is_formula(part) else part for part in re.split(r"([;\t\n])", harmless(value)))
    return f"'{value}" if value[:1] in ("\t", "\n") else value


def natural_key(text: str) -> tuple[list[int | str], str]:
    """A sort key that puts member-2 before member-10, ignoring case, as timm sorts class folders.

    The text itself breaks ties, so that the order never depends on the file system's.
    """
    parts = re.split(r"(\d+)", text.lower())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], text


def places(names: Sequence[str]) -> list[int]:
    """The place of each name in natural order, the order in which the settings list members, whatever their order in
    a cache."""
    order = sorted(range(len(names)), key=lambda at: natural_key(names[at]))
    return [place for _, place in sorted((at, place) for place, at in enumerate(order))]


def _is_formula(text: str) -> bool:
    return text.lstrip()[:1] in FORMULAS and not _is_number(text)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE) is not None
