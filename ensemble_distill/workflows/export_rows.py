"""The real rows that an export is verified on, or learns from."""

from __future__ import annotations

from collections.abc import Collection

from ensemble_distill.data.rows import plain_inputs
from ensemble_distill.data.source import Array
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.spread import spread
from ensemble_distill.students.architecture import Architecture
from ensemble_distill.workspace.workspace import Workspace

CHECKED_ROWS = 32
CHECKED_ON = ("validation", "test", "train")  # the first one configured; no choice depends on it


def checked_on(splits: Collection[str]) -> str:
    """The split to verify on. Raises EdistillError if there is none."""
    for name in CHECKED_ON:
        if name in splits:
            return name
    raise EdistillError("An export is verified on real rows, and no data is configured. Set data.validation.")


def real_rows(workspace: Workspace, split: str, count: int, of: Architecture, told: str) -> Array:
    """At most `count` evenly spaced rows of a split, preprocessed for the student.

    Args:
        told: what messages call the student.

    Raises:
        EdistillError: the student takes inputs of another shape.
    """
    source = workspace.source(split)
    x = plain_inputs(source, spread(len(source), count), of.preprocessing)
    if x.shape[1:] != of.shape:
        raise EdistillError(
            f"{told} takes inputs of shape {of.shape}, but the configured data gives {x.shape[1:]}. Export "
            "from the folder it was trained in."
        )
    return x
