"""Asking each member again about a few rows of a split before its records are accepted.

It has to repeat what it answered in the pass, whatever it was asked in between, and for batches of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.cache.record_key import RecordKey, SampleKey
from ensemble_distill.cache.records import mapped
from ensemble_distill.cache.writer import Writer
from ensemble_distill.caching.kept import Kept
from ensemble_distill.caching.panel import Panel, wanted
from ensemble_distill.caching.probe import asked_as
from ensemble_distill.caching.seen import seen
from ensemble_distill.data.rows import ViewedRows
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.own_row import some_rows
from ensemble_distill.teachers.trial import Few, refuse_other_answers


def ask_again(writer: Writer, name: str, rows: ViewedRows, todo: Sequence[RecordKey], panel: Panel) -> None:
    """Ask each member again about some rows of its first new view, and compare.

    The few rows that a member is tried on before the pass do not expose one that changes over thousands of rows, as an
    adapting one does, or whose answers depend on the batch size.

    Raises:
        EdistillError: a member answers differently. All parts of the split are dropped, to be computed again once the
            member is fixed.
    """
    some, asking = some_rows(len(rows.source)), panel.asking
    first = {key.member: min(other.view for other in todo if other.member == key.member) for key in todo}
    for view in sorted(set(first.values())):
        members = [asked for asked in panel.members if first.get(asked.member.name) == view]
        here = {what: x.to(asking.device) for what, x in seen(rows, some, [view], wanted(members)).items()}
        for asked in members:
            key = RecordKey(name, asked.member.name, view)
            kept = Kept(writer.manifest, key, partial(_written, writer, len(rows.source), some))
            try:
                named = asked_as(asked, name, writer.manifest.splits[name].transform, view)
                few = Few(named, some, here.get((view, asked.wants)))
                refuse_other_answers(asked, few, kept.said, asking.batch_size, kept.of)
            except EdistillError:
                writer.drop_parts(name)
                raise


def _written(writer: Writer, total: int, rows: Sequence[int], key: RecordKey | SampleKey) -> NDArray[np.void]:
    """The records of some rows, (B,): from the parts of the pass or, if the record is already joined, from its file."""
    if key in writer.manifest.records:
        return np.asarray(mapped(key.path(writer.folder), writer.manifest.format_of(key).record, total)[list(rows)])
    found = []
    for block, records in writer.written(key, writer.cut(key, total, writer.manifest.caching["batch_size"])):
        found.append(records[[row - block.start for row in rows if block.start <= row < block.stop]])
    return np.concatenate(found)
