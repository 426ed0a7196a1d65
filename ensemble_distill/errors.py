"""The error that a user is meant to read, and helpers for its messages."""

from __future__ import annotations

import re
from collections.abc import Sequence

# the start of the first sentence that says what to do; the sentences before it say what is wrong
REMEDY = re.compile(
    r"(?<=[.?!]) (?=(Add|Ask|Begin|Build|Call|Check|Choose|Close|Convert|Copy|Count|Cut|Declare|Delete|Derive|Did|Draw|"
    "Drop|Either|End|Evaluate|Export|Fetch|Fill|Fit|Fix|Give|Import|Install|Keep|Leave|List|Look|Lower|Make|Merge|Move|"
    "Name|Pass|Permit|Please|Pool|Put|Raise|Read|Remove|Rename|Repeat|Replace|Restore|Return|Rewrite|Run|Save|Say|"
    "Separate|Set|Share|Start|Store|Take|Tell|Train|Transpose|Try|Unpack|Unset|Untie|Update|Use|Wait|Wrap|Write) )"
)


class EdistillError(Exception):
    """A mistake that the user can fix: the text says what is wrong, with both values, then what to do.

    The command line prints the text alone, without a traceback, and exits with status 2.
    """


def parted(message: str) -> tuple[str, str]:
    """Split a message into what is wrong and what to do; the second part is "" if no sentence says what to do."""
    found = REMEDY.search(message)
    return (message, "") if found is None else (message[: found.start()], message[found.end() :])


class CacheError(EdistillError):
    """The cache is not the one asked for, and edistill cache-logits fixes that.

    Caches of a chain's own have another remedy.
    """


def first_line(error: object) -> str:
    """The first line of an error's message without its final stop; the name of its class if there is no message."""
    return str(error).strip().partition("\n")[0].rstrip(" .:") or type(error).__name__


def quoted(error: BaseException) -> str:
    """The first line of an error after the name of its class: `ValueError: not enough values to unpack`."""
    kind, said = type(error).__name__, first_line(error)
    return said if said == kind else f"{kind}: {said}"


def first_few(items: Sequence[str], count: int = 3) -> str:
    """`a, b, c and 4 more`, for messages."""
    rest = len(items) - count
    return ", ".join(items[:count]) + (f" and {rest} more" if rest > 0 else "")


def meant(name: str, known: Sequence[str], otherwise: str) -> str:
    """A remedy for an unknown name: a question with the nearest known name, or the sentence `otherwise`."""
    close = nearest(name, known)
    return f"Did you mean {close[0]}?" if close else otherwise


def nearest(name: str, known: Sequence[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known names that an unknown one may have meant, most alike first; empty if none is alike."""
    import difflib

    close = difflib.get_close_matches(name, known, n=len(known) or 1, cutoff=cutoff)
    likeness = {one: difflib.SequenceMatcher(None, one, name).ratio() for one in close}
    return sorted(close, key=lambda one: (-likeness[one], known.index(one)))[:count]  # ties in the order of `known`
