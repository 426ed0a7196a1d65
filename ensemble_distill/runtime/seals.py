"""Files that contain their own digest, so that damage is found when they are opened.

The digest covers every byte of the file, with `BLANK` in the digest's place. This works for any format with room for 64
characters: a key of a JSON document, the metadata of safetensors and ONNX files, a comment.

Files of version 0.1.0 have no digest. A file that names a later version as its writer must have one.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ensemble_distill import __version__
from ensemble_distill.runtime.files import DOCUMENT, read_whole, write_whole
from ensemble_distill.runtime.jsons import json_text, parse_json

KEY = "sha256"  # key of the digest in JSON documents and safetensors metadata
ONNX_KEY = "edistill.sha256"
WRITTEN_BY = "edistill"  # key of the version in JSON documents
VERSION = "version"  # key of the version in safetensors metadata
LARGEST_HEADER = 100_000_000  # bytes, the limit of safetensors itself
BLANK = ("edistill seal " * 5)[:64]  # as long as a digest, and in no file by chance
UNSEALED = (None, "0.1.0")  # versions without seals; None is a file that names none, as most of them did
# the first line; versions before 0.3.0 wrote it last, where a file cut short at a line's end has lost it
_COMMENT = re.compile(rb"\A# edistill \S+, sha256 ([0-9a-f]{64})\n|# edistill \S+, sha256 ([0-9a-f]{64})\n\Z")


def seal(content: bytes) -> bytes:
    """The content with its digest in place of `BLANK`, which must occur once."""
    if content.count(BLANK.encode()) != 1:
        raise ValueError(f"there are {content.count(BLANK.encode())} places for a digest, and not one")
    return content.replace(BLANK.encode(), hashlib.sha256(content).hexdigest().encode())


def is_whole(content: bytes, digest: object) -> bool:
    """Whether the content is unchanged since it was sealed with `digest`, the one it contains."""
    if not isinstance(digest, str) or len(digest) != len(BLANK):
        return False
    at = content.find(digest.encode())
    if at < 0:
        return False
    sha, view = hashlib.sha256(), memoryview(content)
    for part in (view[:at], BLANK.encode(), view[at + len(BLANK) :]):
        sha.update(part)
    return sha.hexdigest() == digest


def check(content: bytes, digest: object, version: object) -> None:
    """Raise ValueError if the content has changed since it was sealed, or lacks a seal that it should have.

    Args:
        digest: the one that the content contains; None if it has none.
        version: of edistill, which the content names as its writer; None if it names none.
    """
    if digest is None and version not in UNSEALED:
        raise ValueError(f"it says that edistill {version} wrote it, and the sha256 is missing that such a file holds")
    if digest is not None and not is_whole(content, digest):
        raise ValueError("its sha256 is not that of what it says")


# --- JSON -------------------------------------------------------------------------------------------------------


def sealed_json(record: dict[str, Any]) -> bytes:
    """A JSON document as `jsons.write_json` writes it, with the digest as the last key."""
    return seal(json_text({**record, KEY: BLANK}).encode())


def write_sealed_json(path: Path, record: dict[str, Any], *, within: Path | None = None) -> None:
    write_whole(path, sealed_json(record), within=within)


def parse_sealed_json(content: bytes) -> tuple[Any, bool]:
    """The document without its digest, and whether it had one.

    Raises:
        ValueError: it is not JSON, or has changed since it was sealed.
    """
    record = parse_json(content)
    if not isinstance(record, dict):
        return record, False
    digest = record.pop(KEY, None)
    check(content, digest, record.get(WRITTEN_BY))
    return record, digest is not None


def read_sealed_json(path: Path) -> tuple[Any, bool]:
    """The document of a file without its digest, and whether it had one.

    Raises:
        ValueError: it is not JSON, or has changed since it was sealed.
        OSError: it cannot be read.
    """
    return parse_sealed_json(read_whole(path, DOCUMENT))


# --- safetensors ------------------------------------------------------------------------------------------------


def sealed_metadata() -> dict[str, str]:
    """The entries that a safetensors file's metadata need for a seal."""
    return {VERSION: __version__, KEY: BLANK}


def seal_safetensors(content: bytes) -> tuple[bytes, memoryview]:
    """The sealed header and the tensors of a safetensors file whose metadata include `sealed_metadata`.

    The library writes metadata in no fixed order; here they are sorted, so that equal tensors give equal bytes.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header, tensors = json.loads(content[8:end]), memoryview(content)[end:]
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    blank = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(blank)
    digest.update(tensors)
    return blank.replace(BLANK.encode(), digest.hexdigest().encode()), tensors


def safetensors_metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, with its digest under `KEY`; the digest is not checked.

    Raises:
        ValueError: it is not a safetensors file.
    """
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > len(content) - 8:
        raise ValueError(f"its header should have {size} bytes, and it has {max(0, len(content) - 8)}")
    header = parse_json(content[8 : 8 + size])
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its header is not that of safetensors")
    return metadata


def read_safetensors_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file on disk, whose weights, which may be many GB, are neither read nor checked.

    Raises:
        ValueError: it is not a safetensors file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = file.read(8)
        if int.from_bytes(size, "little") > LARGEST_HEADER:
            raise ValueError("no header of safetensors is that large")
        return safetensors_metadata(size + file.read(int.from_bytes(size, "little")))


def checked_metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, whose seal is checked; raises ValueError if it is damaged."""
    metadata = safetensors_metadata(content)
    check(content, metadata.get(KEY), metadata.get(VERSION))
    return metadata


# --- ONNX and comments ------------------------------------------------------------------------------------------


def onnx_metadata(content: bytes, key: str) -> str | None:
    """The value of a key in an ONNX file's metadata, found without parsing the graph; None if the key is missing.

    An entry is a protobuf message: field 1 is the key, field 2 the value, each preceded by its length. The metadata
    follow the graph.
    """
    named = key.encode()
    marked = b"\x0a" + bytes([len(named)]) + named + b"\x12"
    at = content.rfind(marked)
    if at < 0:
        return None
    at += len(marked)
    size, shift = 0, 0
    for byte in content[at : at + 5]:  # a varint: seven bits per byte, the lowest first
        at, size, shift = at + 1, size | (byte & 127) << shift, shift + 7
        if byte < 128:
            return content[at : at + size].decode("utf-8", "replace")
    return None


def sealed_comment(text: str) -> bytes:
    """A text with its digest in a first line, a comment that begins with #."""
    return seal(f"# edistill {__version__}, sha256 {BLANK}\n{text.rstrip()}\n".encode())


def check_comment(content: bytes) -> None:
    """Raise ValueError if a text with a digest in a comment has changed since it was sealed.

    If the comment itself is damaged, there is nothing to check, and the rest of the text says the same.
    """
    if (found := _COMMENT.search(content)) is not None:
        check(content, (found[1] or found[2]).decode(), None)
