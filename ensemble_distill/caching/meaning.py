"""Whether the members' answers mean what the settings say, told from the labels before their records count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ensemble_distill.cache.parts import Column
from ensemble_distill.cache.records import decode
from ensemble_distill.cache.writer import Writer, blocks
from ensemble_distill.data.source import Source
from ensemble_distill.facts import Member
from ensemble_distill.tasks.checks.class_order import check_class_order
from ensemble_distill.tasks.checks.moments import check_spread, check_units


def check_meaning(
    writer: Writer,
    name: str,
    source: Source,
    todo: Sequence[Column],
    members: Mapping[str, Member],
    batch_size: int,
) -> None:
    """Refuse a member whose classes are plainly in another order than the data's, or whose numbers are in another
    unit, before its records count."""
    if source.labels is None or name.startswith("ood/"):
        return
    classes = writer.manifest.classes
    for column in todo:
        if column[1] != 0:
            continue
        answers = ((block, decode(r)) for block, r in writer.written(name, column, blocks(len(source), batch_size)))
        if classes:
            predicted = np.concatenate([logits.argmax(1) for _, logits in answers])
            check_class_order(column[0], source.labels, predicted, classes)
        else:
            moments = np.concatenate([answer for _, answer in answers])
            check_units(column[0], moments[:, 0], source.labels, members[column[0]].units)
            if name not in ("train", "transfer"):  # there views may mix rows, and members know the targets by heart
                check_spread(members[column[0]], moments, source.labels)
