"""The one error a user is meant to read, and what it quotes of others."""

from __future__ import annotations

import re
from collections.abc import Sequence

# where a sentence begins that says what to do; a message has what is wrong before it
REMEDY = re.compile(
    r"(?<=[.?!]) (?=(Add|Ask|Begin|Build|Call|Check|Choose|Close|Convert|Copy|Count|Cut|Declare|Delete|Derive|Did|Draw|"
    "Drop|Either|End|Evaluate|Export|Fetch|Fill|Fit|Fix|Give|Import|Install|Keep|Leave|List|Look|Lower|Make|Merge|Move|"
    "Name|Pass|Permit|Please|Pool|Put|Raise|Read|Remove|Rename|Repeat|Replace|Restore|Return|Rewrite|Run|Save|Say|"
    "Separate|Set|Share|Start|Store|Take|Tell|Train|Transpose|Try|Unpack|Unset|Untie|Update|Use|Wait|Wrap|Write) )"
)


class EdistillError(Exception):
    """A mistake the user can mend: the text says what is wrong, with both values, then what to do.

    The command line prints the text alone, without a traceback, and exits with status 2.
    """


def parted(message: str) -> tuple[str, str]:
    """What is wrong, and what to do: from the first sentence on that tells somebody to do something; "" for nothing."""
    found = REMEDY.search(message)
    return (message, "") if found is None else (message[: found.start()], message[found.end() :])


class CacheError(EdistillError):
    """A cache that is not what is asked for, and that edistill cache-logits mends.

    A chain, whose caches are its own, has another remedy.
    """


def first_line(error: object) -> str:
    """What an error says in its first line, without the stop; the name of its class where it says nothing."""
    return str(error).strip().partition("\n")[0].rstrip(" .:") or type(error).__name__


def quoted(error: BaseException) -> str:
    """The same behind the name of its class: `ValueError: not enough values to unpack`."""
    kind, said = type(error).__name__, first_line(error)
    return said if said == kind else f"{kind}: {said}"


def first_few(items: Sequence[str], count: int = 3) -> str:
    """`a, b, c and 4 more`, for messages."""
    rest = len(items) - count
    return ", ".join(items[:count]) + (f" and {rest} more" if rest > 0 else "")


def meant(name: str, known: Sequence[str], otherwise: str) -> str:
    """A remedy for a name that is unknown: the nearest that there is, or else that sentence."""
    close = nearest(name, known)
    return f"Did you mean {close[0]}?" if close else otherwise


def nearest(name: str, known: Sequence[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """What an unknown name may have meant: of those that are known the most alike, if any is alike at all."""
    import difflib

    close = difflib.get_close_matches(name, known, n=len(known) or 1, cutoff=cutoff)
    likeness = {one: difflib.SequenceMatcher(None, one, name).ratio() for one in close}
    return sorted(close, key=lambda one: (-likeness[one], known.index(one)))[:count]  # the first of equals
