"""How many files this process may have open at once, and how many of these it keeps mapped.

A map of Python's holds a file descriptor for as long as it lives. Opening a file anew for each read costs seven times
as much as reading from an open map.
"""

from __future__ import annotations

import os

ENOUGH = 1 << 16  # files, as many as a process may map on Linux by default
SHARE = 4  # of the limit, for the maps of one split: several splits, loaders and libraries open files, too
FEWEST = 64  # the limit is 256 at least on the systems known
WITHOUT_LIMIT = 2048  # maps of one split where the system has no such limit (Windows)


def raise_limit() -> None:
    """Raise the soft limit of open files as far as the hard limit allows, for this process and those it starts.

    Soft limits are low, often 1,024 or 256, for programs that use `select`, which this one does not.
    """
    if os.name != "posix":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS names no hard limit, and still refuses more than the system's own
        return


def most_maps() -> int:
    """How many files of one split stay mapped at most."""
    if os.name != "posix":
        return WITHOUT_LIMIT
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return ENOUGH // SHARE if soft == resource.RLIM_INFINITY else max(FEWEST, min(soft, ENOUGH) // SHARE)
