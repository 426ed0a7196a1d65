"""Types of settings that are paths: relative to their file, absolute once loaded, and written relative to the new
file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, PlainSerializer, SerializationInfo, ValidationInfo

from ensemble_distill.runtime.names import LONGEST


def _is_file_spec(text: str) -> bool:
    """Whether the text is `file.py:factory`, and not a timm name or `package.module:factory`."""
    return text.rpartition(":")[0].endswith(".py")


def _absolute(text: str, info: ValidationInfo) -> str:
    root = (info.context or {}).get("root", Path())
    if "\0" in text:
        raise ValueError("no path has a null character in it")
    if any(len(part.encode("utf-8", "surrogateescape")) > LONGEST for part in Path(text).parts):
        raise ValueError(f"no part of a path is longer than {LONGEST} bytes")
    try:
        return os.path.normpath(Path(root).absolute() / Path(text).expanduser())
    except RuntimeError:  # ~ of an unknown user
        raise ValueError("there is no such home folder") from None


def _absolute_spec(text: str, info: ValidationInfo) -> str:
    if not _is_file_spec(text):
        return text
    file, _, factory = text.rpartition(":")
    return f"{_absolute(file, info)}:{factory}"


def _absolute_data(text: str, info: ValidationInfo) -> str:
    if re.fullmatch(r"torch/\w+", text) and not Path(_absolute(text, info)).exists():
        return text  # a torchvision data set
    if _is_file_spec(text) or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        return _absolute_spec(text, info)
    return _absolute(text, info)


def _relative(text: str | None, info: SerializationInfo) -> str | None:
    root = (info.context or {}).get("root")
    if root is None or text is None or not Path(text.rpartition(":")[0] or text).is_absolute():
        return text
    file, colon, factory = text.rpartition(":") if _is_file_spec(text) else (text, "", "")
    return Path(os.path.relpath(file, root)).as_posix() + colon + factory


def file_name(name: str) -> str:
    """Check a name that becomes a file or folder: letters, digits, spaces, dots, dashes and underscores."""
    if not re.fullmatch(r"\w[\w .-]{0,99}", name):
        raise ValueError(f"{name!r} names files: use letters, digits, spaces, dots, dashes and underscores")
    return name


_OUT = PlainSerializer(_relative, return_type=str | None)
PathText = Annotated[str, AfterValidator(_absolute), _OUT]
ModelSpec = Annotated[str, AfterValidator(_absolute_spec), _OUT]
DataPath = Annotated[str, AfterValidator(_absolute_data), _OUT]
