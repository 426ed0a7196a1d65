"""Files and folders inside a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_distill.cache.manifest import NAME, Manifest, is_cache
from ensemble_distill.inspecting.listed import listed
from ensemble_distill.runtime.files import sha256_file
from ensemble_distill.runtime.words import shell

PLACES = {
    "records": "a file that is not a record any more",
    "parts": "a part of a record",
    "decoded": "decoded pictures, or what says which,",
    "replay": "rendered inputs, the proof of what members were shown,",
}
DEEPEST = 4  # folders between a file and its cache: records/ood/NAME/


def _size(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size}


def of_cache(path: Path) -> dict[str, Any] | None:
    """The description of a path below a cache: its manifest, a record, another file or a folder; None for any other
    path."""
    whole = path.absolute()
    folder = next((one for one in list(whole.parents)[:DEEPEST] if is_cache(one)), None)
    if folder is None:
        return None
    named = whole.relative_to(folder)
    shown = Path(*path.parts[: -len(named.parts)]) if len(path.parts) > len(named.parts) else Path(folder.name)
    following = {"next": f"edistill inspect {shell(shown)}"}
    if path.is_dir():
        return {"what": f"a part of {shown}", **listed(path), **following}
    manifest = Manifest.load(folder)
    if str(named) == NAME:
        facts = {"members": len(manifest.members), "splits": len(manifest.splits), "records": len(manifest.records)}
        return {"what": f"what {shown} holds and was made from", "facts": facts, **following}
    key = next((key for key in manifest.records if key.path(folder) == whole), None)
    if key is None:
        known = PLACES.get(named.parts[0])
        return None if known is None else {"what": f"{known} of {shown}", "facts": _size(path), **following}
    rows = manifest.splits[key.split].rows
    says = sha256_file(path)
    return {
        "what": f"a record of {shown}",
        "facts": {
            "of split": key.split,
            **({"of member": key.member} if hasattr(key, "member") else {}),
            "view": key.view,
            "rows": rows,
            "bytes a row": manifest.format_of(key).record.itemsize,
            "whole": "yes" if says == manifest.records[key] else f"no: its sha256 is {says[:12]}…",
        },
        **following,
    }
