"""What a member is called."""

from __future__ import annotations

from pathlib import Path

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.names import LONGEST, is_plain

ROOM = 15  # bytes of a file's name that say which view of a member it holds
SUFFIXES = (".safetensors", ".pth.tar", ".pth", ".pt", ".bin", ".ckpt", ".tar")
WHOLE = (".onnx", ".npz", ".pt2", ".skops", ".joblib")  # of files that need no module


def is_weights_file(path: Path) -> bool:
    """Whether a file's name ends as checkpoints' names do; says nothing of what is in it."""
    return path.name.lower().endswith(SUFFIXES)


def member_name(path: Path) -> str:
    """`member-00` for `member-00.pth.tar`; a folder keeps its whole name, dots and all."""
    if path.is_dir():
        return path.resolve().name
    ending = next((suffix for suffix in (*SUFFIXES, *WHOLE) if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(ending)]


def refuse_unfit(path: Path) -> None:
    """Refuse a member whose name cannot be that of the files that hold its outputs.

    Raises:
        EdistillError: it has control characters or bytes that are no UTF-8, is nothing, or is too long.
    """
    name = member_name(path)
    if not is_plain(name) or len(name.encode()) > LONGEST - ROOM:
        raise EdistillError(
            f"{path} would be member {name!r}, and a member's name becomes that of files: at most {LONGEST - ROOM} "
            "bytes of UTF-8, without control characters and backslashes. Rename it."
        )


def gone(path: Path) -> EdistillError:
    """What was there when its folder was listed, and is no longer."""
    return EdistillError(
        f"{path} has changed since it was listed: its weights are gone. Run the command again when nothing writes to "
        "the teachers."
    )
