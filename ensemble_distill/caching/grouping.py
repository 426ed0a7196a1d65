"""Which members a pass asks in one batch: as it was begun or, of those that are new, as `together` finds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from torch import Tensor

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.caching.panel import Asking, Panel
from ensemble_distill.caching.seen import seen
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.teachers.answering import Answering, Inputs
from ensemble_distill.teachers.together import together

NOTED = "together"  # in what the manifest says of the caching: lists of names


def grouped(
    members: Sequence[Answering], splits: Mapping[str, SplitPlan], asking: Asking, there: Manifest | None
) -> Panel:
    """The members with their batches, compared on the first rows of the largest split.

    Args:
        members: on the device where they answer.
        there: what the cache says that is there already: its members stay as they are asked, so that a pass which goes
            on ends with the bytes of one that was never interrupted.
    """
    plan = max(splits.values(), key=lambda one: len(one.source))
    rows = range(min(asking.batch_size, len(plan.source)))
    noted, settled = ((), ()) if there is None else (there.caching.get(NOTED, ()), there.names)

    @cache
    def shown(to: Inputs) -> Tensor:
        return seen(plan.rows(), rows, [0], [to])[0, to].to(asking.device)

    return Panel(members, asking, together(members, shown, noted, settled))


def noting(manifest: Manifest, panel: Panel) -> Manifest:
    """The manifest, which says who is asked in one batch; as it was where nobody is."""
    batches = [list(batch.names) for batch in panel.together]
    rest = {key: value for key, value in manifest.caching.items() if key != NOTED}
    return replace(manifest, caching=rest | ({NOTED: batches} if batches else {}))
