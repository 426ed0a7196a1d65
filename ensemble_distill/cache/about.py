"""What `inspect` shows about a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_distill.cache.manifest import Manifest, bytes_of_records


def about(path: Path) -> dict[str, Any]:
    """The facts about a cache as a JSON table. Raises EdistillError if the manifest is damaged."""
    manifest = Manifest.load(path)
    return {
        "kind": "cache",
        "task": manifest.task,
        "classes": list(manifest.classes),
        **manifest.settled.more_json(),
        "dtype": manifest.dtype,
        "members": [member.to_json() for member in manifest.members],
        "splits": {
            name: {**vars(split), "views": manifest.views(name), "answered": manifest.answered(name)}
            for name, split in manifest.splits.items()
        },
        "caching": dict(manifest.caching),
        **({"pushed": manifest.told_pushed()} if manifest.pushed else {}),
        **({"drawn": manifest.told_drawn()} if manifest.drawn else {}),
        "bytes": bytes_of_records(path),
    }
