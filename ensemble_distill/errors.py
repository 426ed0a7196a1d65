"""The one error a user is meant to read, and what it quotes of others."""

from __future__ import annotations

from collections.abc import Sequence


class EdistillError(Exception):
    """A mistake the user can mend: the text says what is wrong, with both values, then what to do.

    The command line prints the text alone, without a traceback, and exits with status 2.
    """


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


def nearest(name: str, known: Sequence[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """What an unknown name may have meant: of those that are known the most alike, if any is alike at all."""
    import difflib

    return difflib.get_close_matches(name, known, n=count, cutoff=cutoff)
