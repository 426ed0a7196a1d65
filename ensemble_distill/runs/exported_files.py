"""Locating exported files by a file's or a folder's name, and checking that the content fits the name; all without
torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.runs.exports import ONNX_PREFIX, PROGRAM_CARD, STUDENT, onnx_content
from ensemble_distill.runs.folder import (
    ARGS,
    CONFIG,
    EXPORTED,
    EXPORTS,
    FLOAT16,
    INT8,
    ONNX,
    PROGRAM,
    RAW,
    SAFETENSORS,
    WEIGHTS,
    export_again,
)
from ensemble_distill.runtime.files import refuse_special
from ensemble_distill.runtime.seals import LARGEST_HEADER, read_safetensors_metadata

SUFFIXES = {".onnx": "an ONNX file", ".pt2": "a program of torch", ".safetensors": "a safetensors file"}
# which file stands for a folder: whole precision first, and formats that need no other code
ORDER = (ONNX, PROGRAM, SAFETENSORS, RAW[ONNX], FLOAT16, INT8, RAW[FLOAT16], RAW[INT8])
RULE = "model.onnx before .pt2 before .safetensors, whole precision before less"
ZIP, PICKLE, ONNX_BEGINS = b"PK\x03\x04", b"\x80", b"\x08"

Tell = Callable[[str], None]


def is_exported_name(name: str) -> bool:
    """Whether the name has the suffix of an exported file; the content is not read."""
    return Path(name).suffix.lower() in SUFFIXES


def located(runs: Path, name: str, tell: Tell) -> Path | None:
    """The exported file that a name refers to, directly or below a folder of runs, or the one in the folder of that
    name.

    Returns None for a run, a chain, and anything else that is not an exported file.

    Args:
        tell: called with a message if one of several files in a folder is chosen.

    Raises:
        EdistillError: a folder of exports is empty, or a file's content does not fit its name.
    """
    places = (Path(name), runs / name)
    if is_exported_name(name) and not any(place.is_dir() for place in places):
        return next((place for place in places if place.is_file()), places[0])
    if (file := next((place for place in places if place.is_file()), None)) is not None:
        refuse_other_content(file)
    folders = [place for place in places if place.is_dir()]
    if any((folder / own).is_file() for folder in folders for own in (ARGS, WEIGHTS)):
        return None
    for folder in folders:
        if (found := taken(folder, tell)) is not None:
            return found
    if empty := next((folder for folder in folders if folder.absolute().name == EXPORTS), None):
        raise EdistillError(f"{empty} holds no exported file. Run {export_again(empty / ONNX)}.")
    return None


def export_at(path: Path, tell: Tell) -> Path:
    """The exported file at a path, or the one that stands for a folder: a run, its folder of exports, or any other.

    Raises:
        EdistillError: there is none.
    """
    refuse_special(path)
    if not path.is_dir():
        if not path.is_file():
            raise EdistillError(f"There is no {path}. Run {export_again(path)}, or pass --model FILE.")
        return path
    found = taken(path, tell)
    if found is None:
        raise EdistillError(f"{path} holds no {EXPORTED}. Run edistill export --onnx, or pass --model FILE.")
    return found


def taken(folder: Path, tell: Tell) -> Path | None:
    """The exported file that stands for a folder, the first by `RULE`, then by name; None if it holds none.

    A damaged file with one of the project's own names counts; opening it reports the damage.
    """
    for place in (folder / EXPORTS, folder):
        found = sorted((file for file in _files(place) if _is_ours(file) is not False), key=_rank)
        if len(found) > 1 and found[0].name != ONNX:
            names = first_few([file.name for file in found], 6)
            tell(f"{place} holds {names}: {found[0]} is taken ({RULE}, then by name). Name a file to take that.")
        if found:
            return found[0]
    return None


def _files(folder: Path) -> list[Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    return [file for file in files if is_exported_name(file.name) and file.name[0] != "." and file.is_file()]


def _rank(file: Path) -> tuple[int, int, str]:
    own = ORDER.index(file.name) if file.name in ORDER else len(ORDER)
    return own, list(SUFFIXES).index(file.suffix.lower()), file.name


def holds_exports(folder: Path) -> bool:
    """Whether a folder contains a file that edistill certainly exported."""
    return any(_is_ours(file) for file in _files(folder))


def _is_ours(file: Path) -> bool | None:
    """Whether edistill wrote a file, judged without reading all of it; None for an unreadable file with one of the
    project's names."""
    try:
        if file.suffix.lower() == ".onnx":
            return ONNX_PREFIX.encode() in onnx_content(file) or (None if file.name in ORDER else False)
        if file.suffix.lower() == ".safetensors":
            return STUDENT in read_safetensors_metadata(file)
        with ZipFile(file) as archive:
            return any(name.endswith(f"/{PROGRAM_CARD}") for name in archive.namelist())
    except (ValueError, OSError, BadZipFile, EdistillError):
        return None if file.name in ORDER else False


# --- what a file contains ---------------------------------------------------------------------------------------


def refuse_other_content(file: Path) -> None:
    """Raise EdistillError if a file's name is not that of an exported file, or its content is of another kind than
    its name."""
    suffix = file.suffix.lower()
    if file.name == WEIGHTS and (file.parent / CONFIG).is_file():
        raise EdistillError(f"{file} holds the weights of a run and nothing else of it. Give the run, {file.parent}.")
    content = _suffix_of_content(file)
    if suffix not in SUFFIXES:
        *some, last = SUFFIXES
        raise EdistillError(
            f"{file} is not an exported file: their names end in {', '.join(some)} or {last}. "
            + (f"Rename it to {file.with_suffix(content)}." if content else "Give a file that edistill export wrote.")
        )
    if content == "":
        raise EdistillError(
            f"{file} is called {suffix}, and holds a checkpoint of torch, which edistill export does not write. Give a "
            "file that it wrote; a checkpoint can be a member (teachers.path)."
        )
    if content not in (None, suffix):
        raise EdistillError(
            f"{file} is called {suffix}, and by its content it is {SUFFIXES[content]}. Rename it to "
            f"{file.with_suffix(content).name}."
        )


def _suffix_of_content(file: Path) -> str | None:
    """The suffix that fits a file's first bytes; "" for a torch checkpoint, None for an unknown beginning."""
    with file.open("rb") as opened:
        begins = opened.read(9)
    # first, since this header's length may begin with any byte
    if begins[8:] == b"{" and int.from_bytes(begins[:8], "little") <= LARGEST_HEADER:
        return ".safetensors"
    if begins.startswith(ZIP):
        return ".pt2" if _is_program(file) else ""
    if begins[:1] == PICKLE:
        return ""
    return ".onnx" if begins[:1] == ONNX_BEGINS else None


def _is_program(file: Path) -> bool:
    try:
        with ZipFile(file) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except (BadZipFile, OSError):
        return file.suffix.lower() == ".pt2"  # damaged, so its content does not tell
    return PROGRAM_CARD in names or "archive_format" in names
