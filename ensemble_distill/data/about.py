"""What `inspect` says about data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_distill.data import open_inputs
from ensemble_distill.data.columns import Declared
from ensemble_distill.data.several import held


def about(path: Path, task: str, columns: Declared | None = None) -> dict[str, Any]:
    """The facts that `inspect` shows about a data set.

    Args:
        columns: what the columns of a table are.

    Raises:
        EdistillError: the path is not data.
    """
    source = open_inputs([str(path)], task, columns=columns)
    source.item(0)  # raises if a file named like a picture is not one
    return {
        "kind": "data",
        "rows": len(source),
        "holds": held(source),
        "classes": None if source.classes is None else list(source.classes),
        "labels": source.labels is not None,
        "digest": source.digest,
        "digest_scope": source.digest_scope,
        **({"remarks": list(source.remarks)} if source.remarks else {}),
    }
