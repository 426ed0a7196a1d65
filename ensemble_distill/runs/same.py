"""Whether a folder's run was made from the current ensemble, data and method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.folder import CONFIG


def refuse_other_ensemble(
    folder: Path, cache: Path, members: Sequence[Member], digests: Mapping[str, str], *, done: bool = False
) -> None:
    """Raise EdistillError if a run was started with other members or data than a cache holds.

    Args:
        members, digests: those of the cache; one digest per split.
        done: whether the run has finished learning, so that the cache may have gained members since.
    """
    if not (folder / CONFIG).is_file():
        return
    origin = StudentConfig.load(folder).provenance
    held = [member for member in members if member in origin.members] if done else members
    if origin.members != tuple(held):
        raise EdistillError(
            f"{folder} was trained from members {', '.join(m.name for m in origin.members)}, and {cache} holds "
            f"{', '.join(m.name for m in members)}, or others of these names. Choose another --name, or pass "
            "--overwrite."
        )
    for name, digest in origin.trained_on.items():
        if (found := digests.get(name)) != digest:
            raise EdistillError(
                f"{folder} was trained on {name} data {digest[:12]}…, and {cache} holds "
                f"{'none' if found is None else found[:12] + '…'}. Choose another --name, or pass --overwrite."
            )


def refuse_other_method(folder: Path, source: str, named: str) -> None:
    """Raise EdistillError if a user's own method has changed since the run was started.

    Args:
        source: the current sha256 of the method's file; see `Method.source`.
        named: the method's name in the settings.
    """
    if not (folder / CONFIG).is_file():
        return
    then = StudentConfig.load(folder).provenance.source
    if then != source:
        raise EdistillError(
            f"{folder} was made by another {named} (its file had sha256 {then[:12] or 'none'}…, and now it has "
            f"{source[:12] or 'none'}…). Choose another --name, put the file back, or pass --overwrite."
        )
