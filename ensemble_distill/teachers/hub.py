"""Members of the Hugging Face hub, taken from the local cache or downloaded if they are not in it.

A commit always gives the same files; a branch gives the state that the cache saw last.
"""

from __future__ import annotations

import re
from pathlib import Path

from ensemble_distill.errors import EdistillError, first_line

NAME = re.compile(r"hf(?:-hub)?:(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")
PASSED_OVER = ["*.h5", "*.msgpack", "*.onnx", "*.ot", "*.tflite", "onnx/*", "openvino/*"]  # for other frameworks


def snapshot(name: str, given: str) -> Path:
    """The local folder with a member's files.

    Args:
        name: the member's.
        given: `hf:OWNER/MODEL` or `hf-hub:OWNER/MODEL`, with `@REVISION` unless it is the main one.

    Raises:
        EdistillError: `given` has another form, the cache cannot be read, or the member is neither in the cache nor
            available from the hub.
    """
    found = NAME.fullmatch(given)
    key = f"teachers.hub.{name}"
    if found is None:
        raise EdistillError(f"{key} is {given!r}. Write hf:OWNER/MODEL, with @REVISION if it is not the main one.")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, revision = found["repo"], found["revision"]
    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    except Exception as error:  # a damaged cache raises many types
        raise _unusable(key, given, error) from None
    try:
        return Path(snapshot_download(repo, revision=revision, ignore_patterns=PASSED_OVER))
    except Exception as error:  # and so does a failed download
        cache = constants.HF_HUB_CACHE
        raise EdistillError(
            f"{key} is {given!r}, which is not in {cache}, and the hub does not give it: {first_line(error)}. Where "
            f"there is a network run hf download {repo}, or put the folder into teachers.path."
        ) from None


def _unusable(key: str, given: str, error: Exception) -> EdistillError:
    return EdistillError(f"{key} is {given!r}, and its cache cannot be read: {first_line(error)}. Fetch it again.")
