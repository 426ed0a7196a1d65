"""Asking each member again about a few rows of a split before its records count.

What it said in the pass it has to say still, whatever it was asked about in between, and in batches of whatever size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.cache.record_key import RecordKey
from ensemble_distill.cache.writer import Writer, blocks
from ensemble_distill.caching.panel import Panel, wanted
from ensemble_distill.caching.probe import asked_as
from ensemble_distill.caching.seen import seen
from ensemble_distill.data.rows import ViewedRows
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.own_row import some_rows
from ensemble_distill.teachers.trial import Few, refuse_other_answers


def ask_again(writer: Writer, name: str, rows: ViewedRows, todo: Sequence[RecordKey], panel: Panel) -> None:
    """Compare some rows of each member's first new view. The few rows that a member is tried on before the pass do not
    tell one that changes over thousands, as an adapting one does, or that treats batches by their size.

    Raises:
        EdistillError: a member answers otherwise; what it said of the split goes, to be asked again once it is mended.
    """
    some, form, asking = some_rows(len(rows.source)), writer.manifest.format, panel.asking

    def kept(outputs: NDArray[np.float32]) -> NDArray[np.float32]:
        return form.decode(form.encode(outputs))

    first = {key.member: min(other.view for other in todo if other.member == key.member) for key in todo}
    for view in sorted(set(first.values())):
        members = [asked for asked in panel.members if first.get(asked.member.name) == view]
        here = {what: x.to(asking.device) for what, x in seen(rows, some, [view], wanted(members)).items()}
        for asked in members:
            said = _said(writer, RecordKey(name, asked.member.name, view), len(rows.source), some, asking.batch_size)
            try:
                named = asked_as(asked, name, writer.manifest.splits[name].transform, view)
                few = Few(named, some, here.get((view, asked.wants)))
                refuse_other_answers(asked, few, said, asking.batch_size, kept)
            except EdistillError:
                writer.drop_parts(name)
                raise


def _said(writer: Writer, key: RecordKey, total: int, rows: Sequence[int], batch_size: int) -> NDArray[np.float32]:
    """What a member said of some rows, (B, W), from the parts of the pass."""
    answers = []
    for block, records in writer.written(key, blocks(total, batch_size)):
        here = [row - block.start for row in rows if block.start <= row < block.stop]
        answers.append(writer.manifest.format.decode(records[here]))
    return np.concatenate(answers)
