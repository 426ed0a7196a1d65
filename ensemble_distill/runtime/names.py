"""Names that come from files and from users: which may become paths, and how they are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# control characters but for the line feed and the tab, line separators, the direction of writing, and lone surrogates
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
FORMULAS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # how they begin, in full width too
LONGEST = 255  # bytes of one file name, on every common file system


def is_plain(name: object) -> bool:
    """Whether a name can become one file or folder below another: no path, nothing hidden in it."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not re.search(r"[/\\\0\n\t]", name)
        and harmless(name) == name
        and len(name.encode("utf-8", "replace")) <= LONGEST
    )


def harmless(text: str) -> str:
    """The text with what a terminal would obey, or what hides other text, written as escapes.

    Those are control characters but for the line feed and the tab, characters that change the direction of writing, and
    lone surrogates, which are bytes of file names that are no UTF-8.
    """
    return OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """The text as `harmless` gives it, line feeds and tabs as escapes too: what stands in a comment of code or settings
    may not end it."""
    return harmless(text).replace("\n", "\\n").replace("\t", "\\t")


def plain_markdown(text: str) -> str:
    """A text that markdown shows as it is: no table, no code, no HTML, no link in it, and in one line."""
    return re.sub(r"[\\`*\[\]<>&|~]", r"\\\g<0>", harmless(text).replace("\n", "\\n"))


def harmless_json(text: str) -> str:
    """A JSON text with the same characters written as JSON escapes: what it says stays exactly the same."""
    return OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def encodable(value: Any) -> Any:
    """A text, or the texts of a list, with what UTF-8 cannot say (bytes of file names that are none) as escapes. All
    else stays as it is."""
    if isinstance(value, list):
        return [encodable(one) for one in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def harmless_cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text that begins like one gets an apostrophe before it.

    So does what follows a semicolon, a tab or a line feed, at which a spreadsheet of another country may cut the cell.

    Numbers stay numbers, and a control character is written as an escape.
    """
    if not isinstance(value, str):
        return value
    value = "".join(f"'{part}" if _is_formula(part) else part for part in re.split(r"([;\t\n])", harmless(value)))
    return f"'{value}" if value[:1] in ("\t", "\n") else value


def natural_key(text: str) -> tuple[list[int | str], str]:
    """Sorts member-2 before member-10, without regard to case, as timm sorts class folders.

    The text itself breaks ties, so that the order never depends on the file system's.
    """
    parts = re.split(r"(\d+)", text.lower())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], text


def places(names: Sequence[str]) -> list[int]:
    """Of each name its place in their natural order: what the settings list of members goes by that, wherever members
    stand in a cache."""
    order = sorted(range(len(names)), key=lambda at: natural_key(names[at]))
    return [place for _, place in sorted((at, place) for place, at in enumerate(order))]


def _is_formula(text: str) -> bool:
    return text.lstrip()[:1] in FORMULAS and not _is_number(text)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE) is not None
