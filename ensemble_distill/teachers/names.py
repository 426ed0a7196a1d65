"""Names of members, taken from their files and folders."""

from __future__ import annotations

from pathlib import Path

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.names import LONGEST, is_plain

ROOM = 15  # bytes that a record's file name needs besides the member's name
SUFFIXES = (".safetensors", ".pth.tar", ".pth", ".pt", ".bin", ".ckpt", ".tar")
WHOLE = (".onnx", ".npz", ".pt2", ".skops", ".joblib")  # files that need no module beside them


def is_weights_file(path: Path) -> bool:
    """Whether a file's name has a checkpoint's ending; the file is not read."""
    return path.name.lower().endswith(SUFFIXES)


def member_name(path: Path) -> str:
    """The name of the member at `path`: `member-00` for `member-00.pth.tar`. A folder keeps its whole name."""
    if path.is_dir():
        return path.resolve().name
    ending = next((suffix for suffix in (*SUFFIXES, *WHOLE) if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(ending)]


def refuse_unfit(path: Path) -> None:
    """Refuse a member whose name cannot be used for the files of its outputs.

    Raises:
        EdistillError: the name has control characters, backslashes or bytes that are not UTF-8, is empty, or is too
            long.
    """
    name = member_name(path)
    if not is_plain(name) or len(name.encode()) > LONGEST - ROOM:
        raise EdistillError(
            f"{path} would be member {name!r}, and a member's name becomes that of files: at most {LONGEST - ROOM} "
            "bytes of UTF-8, without control characters and backslashes. Rename it."
        )


def gone(path: Path) -> EdistillError:
    """The error for a member that has disappeared since its folder was listed."""
    return EdistillError(
        f"{path} has changed since it was listed: its weights are gone. Run the command again when nothing writes to "
        "the teachers."
    )
