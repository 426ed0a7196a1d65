"""Extending an existing cache with new members and splits, once nothing contradicts it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ensemble_distill.cache.manifest import Manifest, refuse_other_data, refuse_other_members
from ensemble_distill.cache.writer import drop_drawn, drop_inputs, drop_member, drop_parts
from ensemble_distill.caching.replay import drop_samples
from ensemble_distill.errors import CacheError


def extended(folder: Path, manifest: Manifest, asked: Manifest) -> Manifest:
    """The manifest with new members and splits added, after comparing everything it already says.

    A member or a split that failed in its first pass may be removed or replaced, since its error asks for that.

    Args:
        asked: the manifest of a cache made from nothing.

    Raises:
        EdistillError: the cache was made from other data, views or members, or is stored differently.
    """
    if not manifest.answers:  # a first pass that ran out of memory may resume with smaller batches or another dtype
        manifest = _stored_anew(folder, manifest, asked)
    refuse_other_storage(folder, manifest, asked)
    for name in manifest.splits.keys() & asked.splits.keys():
        if manifest.holds(name):
            refuse_other_data(folder, name, manifest.splits[name], asked.splits[name])
        elif manifest.splits[name] != asked.splits[name]:
            drop_parts(folder, name)
            drop_samples(folder, name)
            manifest = _without_made(folder, manifest, name)
    now = {member.name: member for member in asked.members}
    for member in manifest.members:
        if now.get(member.name) != member and manifest.unfinished(member.name):
            manifest = drop_member(folder, manifest, member.name)
    refuse_other_members(folder, manifest.members, asked.members)
    kept = {name: split for name, split in manifest.splits.items() if name not in asked.splits or manifest.holds(name)}
    return replace(manifest, members=asked.members, splits={**asked.splits, **kept})


def refuse_other_storage(folder: Path, manifest: Manifest, asked: Manifest) -> None:
    """Raise EdistillError if a cache has another task, dtype or batch size than the settings."""
    for what, there, here in (
        ("task", manifest.task, asked.task),
        ("cache.dtype", manifest.dtype, asked.dtype),
        ("cache.batch-size", manifest.caching["batch_size"], asked.caching["batch_size"]),
    ):
        if there != here:
            raise CacheError(
                f"{folder} was made with {what} = {there!r}, but the settings say {here!r}. Set {what} to {there!r}, "
                "name another output.cache, or run edistill cache-logits --overwrite."
            )


def _stored_anew(folder: Path, manifest: Manifest, asked: Manifest) -> Manifest:
    """A manifest without answers, with the storage now asked for; library versions stay those of its first pass."""
    if (manifest.dtype, manifest.caching["batch_size"]) != (asked.dtype, asked.caching["batch_size"]):
        drop_parts(folder)
        for name in manifest.splits:
            manifest = _without_made(folder, manifest, name)
    versions = {name: manifest.caching[name] for name in ("versions",) if name in manifest.caching}
    return replace(manifest, dtype=asked.dtype, caching={**manifest.caching, **asked.caching, **versions})


def _without_made(folder: Path, manifest: Manifest, split: str) -> Manifest:
    """The manifest without the stored inputs and the drawn ids of a split."""
    for key in manifest.pushed_views(split):
        manifest = drop_inputs(folder, manifest, key)
    for drawn in [key for key in manifest.drawn if key.split == split]:
        manifest = drop_drawn(folder, manifest, drawn)
    return manifest
