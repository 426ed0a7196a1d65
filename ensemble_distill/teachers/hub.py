"""Members of the Hugging Face hub: found in the local cache, and fetched where that has not got them.

A revision that is a commit is the same for ever; a branch is what the cache last saw of it.
"""

from __future__ import annotations

import re
from pathlib import Path

from ensemble_distill.errors import EdistillError, first_line

NAME = re.compile(r"hf(?:-hub)?:(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")
PASSED_OVER = ["*.h5", "*.msgpack", "*.onnx", "*.ot", "*.tflite", "onnx/*", "openvino/*"]  # of other frameworks


def snapshot(name: str, given: str) -> Path:
    """The folder of a member's files.

    Args:
        name: of the member.
        given: `hf:OWNER/MODEL`, or `hf-hub:OWNER/MODEL`, with `@REVISION` if it is not the main one.

    Raises:
        EdistillError: it is no such name, or it is neither in the cache nor to be had.
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
    except Exception as error:  # what is wrong with a cache has many names
        raise _unusable(key, given, error) from None
    try:
        return Path(snapshot_download(repo, revision=revision, ignore_patterns=PASSED_OVER))
    except Exception as error:  # as what is wrong with a network has
        cache = constants.HF_HUB_CACHE
        raise EdistillError(
            f"{key} is {given!r}, which is not in {cache}, and the hub does not give it: {first_line(error)}. Where "
            f"there is a network run hf download {repo}, or put the folder into teachers.path."
        ) from None


def _unusable(key: str, given: str, error: Exception) -> EdistillError:
    return EdistillError(f"{key} is {given!r}, and its cache cannot be read: {first_line(error)}. Fetch it again.")
