"""What a manifest may not say, so that no cache is misread and nothing is written outside it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from ensemble_distill.cache.record_key import INPUTS, SAMPLES, InputKey, Key, RecordKey, SampleKey
from ensemble_distill.runtime.names import is_plain

if TYPE_CHECKING:
    from ensemble_distill.cache.manifest import Manifest

LARGEST_INPUT = 1 << 28  # values; NumPy supports no larger records


def problems(manifest: Manifest) -> Iterator[str]:
    """The problems of a manifest that its types do not rule out, one sentence each."""
    names, batch_size = set(manifest.names), manifest.caching.get("batch_size")
    if len(names) < len(manifest.members):
        yield "two members share a name"
    if type(batch_size) is not int or batch_size < 1:
        yield f"caching.batch_size is {batch_size!r}"
    if not _is_grouping(manifest.caching.get("together", [])):
        yield f"caching.together is {manifest.caching['together']!r}"
    for split in manifest.splits:
        if not _is_split(split):
            yield f"{split!r} is not a name of a split"
    for made, pushed in manifest.pushed.items():
        if made.split not in manifest.splits:
            yield f"pushed has view {made.view} of {made.split!r}, which is not a split"
        if math.prod(pushed.shape) > LARGEST_INPUT or not all(is_plain(asked) for asked, _ in pushed.members):
            yield f"pushed {made.text!r} is {pushed}"
    for drawn, how in manifest.drawn.items():
        if drawn.split not in manifest.splits:
            yield f"drawn has view {drawn.view} of {drawn.split!r}, which is not a split"
        if not all(is_plain(asked) for asked, _ in how.members) or how.samples > manifest.settled.shape[-1]:
            yield f"drawn {drawn.text!r} is {how}"
    for key, sha256 in manifest.records.items():
        known = _is_known(manifest, key, names)
        if key.split not in manifest.splits or not known:
            yield f"{key.text!r} is not a record of its splits, members and views"
        elif isinstance(key, RecordKey) and _lacks_ids(manifest, SampleKey(key.split, key.view)):
            yield f"{key.text!r} is of drawn ids, and there are none"
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            yield f"the sha256 of {key.text!r} is {sha256!r}"
    for answered, rows in manifest.unanswered.items():
        of = manifest.splits.get(answered.split)
        if answered not in manifest.records or of is None or rows > of.rows:
            yield f"{answered.text!r} is said to lack answers of {rows} rows"


def _is_grouping(groups: object) -> bool:
    """Whether this is a list of lists of names, with no name twice."""
    if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
        return False
    names = [name for group in groups for name in group]
    return all(isinstance(name, str) for name in names) and len(set(names)) == len(names)


def _is_known(manifest: Manifest, key: Key, names: Collection[str]) -> bool:
    if isinstance(key, InputKey):
        return key in manifest.pushed
    return key in manifest.drawn if isinstance(key, SampleKey) else key.member in names


def _lacks_ids(manifest: Manifest, draws: SampleKey) -> bool:
    return draws in manifest.drawn and draws not in manifest.records


def _is_split(name: str) -> bool:
    """Whether a name is plain, or of the form ood/NAME."""
    return name not in (INPUTS, SAMPLES) and is_plain(name.removeprefix("ood/"))
