"""Whether a split's records hold all classes or a few drawn ones, by the settings and by what is already stored.

Only splits that students are trained on are ever drawn: fidelity and uncertainties need all classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ensemble_distill.cache.formats.drawn import MOST_CLASSES
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.caching.panel import Asking
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.errors import CacheError, EdistillError
from ensemble_distill.facts import TRAINED
from ensemble_distill.runtime.progress import Progress

TOO_LARGE = 2**34  # bytes of dense records above which "auto" draws


def samples_of(folder: Path, manifest: Manifest, splits: Mapping[str, SplitPlan], asking: Asking) -> dict[str, int]:
    """The number of ids per position, for each split that is stored as drawn ids.

    Args:
        manifest: with a settled task.

    Raises:
        EdistillError: the cache is stored differently than the settings say, or there is nothing to draw from.
    """
    trained = [name for name in splits if name in TRAINED]
    there = {key.split: how.samples for key, how in manifest.drawn.items() if manifest.holds(key.split)}
    held = [name for name in manifest.splits if name in TRAINED and manifest.holds(name)]
    if held:
        _refuse_other_records(folder, there, asking)
        return dict.fromkeys(trained, next(iter(there.values()))) if there else {}
    if asking.records == "sampled":
        refuse_nothing_drawn(manifest, asking.samples)
    large = asking.records == "auto" and asking.samples < manifest.settled.shape[-1] <= MOST_CLASSES
    large = large and manifest.settled.one_class and dense_bytes(manifest, splits) > TOO_LARGE
    return dict.fromkeys(trained, asking.samples) if large or asking.records == "sampled" else {}


def dense_bytes(manifest: Manifest, splits: Mapping[str, SplitPlan]) -> int:
    """Bytes that records of all classes would fill, for the splits that are trained on."""
    rows = sum(len(plan.source) * plan.count for name, plan in splits.items() if name in TRAINED)
    return rows * len(manifest.members) * manifest.format.record.itemsize


def tell_drawn(manifest: Manifest, splits: Mapping[str, SplitPlan], samples: Mapping[str, int], to: Progress) -> None:
    """Report, before the pass, that ids are drawn, and what this gives up."""
    if not samples:
        return
    n, dense = next(iter(samples.values())), dense_bytes(manifest, splits)
    what = f"{n} drawn {manifest.settled.called} of {manifest.settled.width:,}"
    to.note(
        f"Records of {' and '.join(samples)} hold {what}, since all would fill {dense / 1e9:,.3g} GB (cache.records): "
        "unbiased for each member, at temperature 1."
    )


def refuse_nothing_drawn(manifest: Manifest, samples: int) -> None:
    """Raise EdistillError if there are no more classes than would be drawn, or more than ids can number."""
    classes = manifest.settled.shape[-1]
    if not samples < classes <= MOST_CLASSES:
        raise EdistillError(
            f'cache.records is "sampled" and cache.samples is {samples}, and there are {classes:,} '
            f"{manifest.settled.called}. Draw fewer than there are, or leave cache.records out to store all."
        )


def _refuse_other_records(folder: Path, there: Mapping[str, int], asking: Asking) -> None:
    is_there, wanted = "sampled" if there else "dense", asking.records
    if wanted not in ("auto", is_there):
        raise CacheError(
            f"{folder} was made with cache.records = {is_there!r}, but the settings say {wanted!r}. Set cache.records "
            f"to {is_there!r}, name another output.cache, or run edistill cache-logits --overwrite."
        )
    if there and asking.samples not in there.values():
        has = next(iter(there.values()))
        raise CacheError(
            f"{folder} was made with cache.samples = {has}, but the settings say {asking.samples}. Set cache.samples "
            f"to {has}, name another output.cache, or run edistill cache-logits --overwrite."
        )
