"""Files that hold their own digest, so that damage is found when they are opened.

The digest is of every byte of the file, with `BLANK` where the digest stands. It works for any format that has room for
64 characters: a key of a JSON document, the metadata of safetensors and of ONNX.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ensemble_distill.runtime.files import json_text, parse_json, write_whole

KEY = "sha256"  # where JSON documents and safetensors metadata hold it
BLANK = ("edistill seal " * 5)[:64]  # as long as a digest, and in no file by chance


def seal(content: bytes) -> bytes:
    """The content with its digest in the place of its one `BLANK`."""
    if content.count(BLANK.encode()) != 1:
        raise ValueError(f"there are {content.count(BLANK.encode())} places for a digest, and not one")
    return content.replace(BLANK.encode(), hashlib.sha256(content).hexdigest().encode())


def is_whole(content: bytes, digest: object) -> bool:
    """Whether the content is what was sealed, `digest` being what it says of itself."""
    if not isinstance(digest, str) or len(digest) != len(BLANK):
        return False
    at = content.find(digest.encode())
    if at < 0:
        return False
    sha, view = hashlib.sha256(), memoryview(content)
    for part in (view[:at], BLANK.encode(), view[at + len(BLANK) :]):
        sha.update(part)
    return sha.hexdigest() == digest


def write_sealed_json(path: Path, record: dict[str, Any]) -> None:
    """As `files.write_json` does, with the digest as the last key."""
    write_whole(path, seal(json_text({**record, KEY: BLANK}).encode()))


def read_sealed_json(path: Path) -> tuple[Any, bool]:
    """The document without its digest, and whether it had one: files of version 0.1.0 have none.

    Raises:
        ValueError: it is no JSON, or not what was written.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    record = parse_json(content)
    if not isinstance(record, dict) or KEY not in record:
        return record, False
    if not is_whole(content, record.pop(KEY)):
        raise ValueError("its sha256 is not that of what it says")
    return record, True


def safetensors_metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, whose digest stands under `KEY`.

    Raises:
        ValueError: it is no such file.
    """
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > len(content) - 8:
        raise ValueError(f"its header should have {size} bytes, and it has {max(0, len(content) - 8)}")
    header = parse_json(content[8 : 8 + size])
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its header is not that of safetensors")
    return metadata
