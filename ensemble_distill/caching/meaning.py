"""Whether the members' answers mean what the settings say, told from the labels before their records count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ensemble_distill.cache.record_key import RecordKey
from ensemble_distill.cache.writer import Writer, blocks
from ensemble_distill.data.source import Source
from ensemble_distill.facts import Member
from ensemble_distill.tasks.checks.class_order import check_class_order
from ensemble_distill.tasks.checks.moments import check_spread, check_units


def check_meaning(
    writer: Writer,
    name: str,
    source: Source,
    todo: Sequence[RecordKey],
    members: Mapping[str, Member],
    batch_size: int,
) -> None:
    """Refuse a member whose classes are plainly in another order than the data's, or whose numbers are in another
    unit, before its records count."""
    if source.labels is None or name.startswith("ood/"):
        return
    classes = writer.manifest.classes
    for key in todo:
        if key.view != 0:
            continue
        parts = writer.written(key, blocks(len(source), batch_size))
        answers = [writer.manifest.format.decode(records) for _, records in parts]
        if classes:
            predicted = np.concatenate([logits.argmax(1) for logits in answers])
            check_class_order(key.member, source.labels, predicted, classes)
        else:
            moments = np.concatenate(answers)
            check_units(key.member, moments[:, 0], source.labels, members[key.member].units)
            if name not in ("train", "transfer"):  # there views may mix rows, and members know the targets by heart
                check_spread(members[key.member], moments, source.labels)
