"""Whether the members' answers mean what the settings say, judged by the labels before their records are accepted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ensemble_distill.cache.record_key import RecordKey
from ensemble_distill.cache.writer import Writer
from ensemble_distill.caching.panel import Panel
from ensemble_distill.data.source import Source
from ensemble_distill.errors import EdistillError, parted
from ensemble_distill.facts import TRAINED

UNLESS = "If it is right as it is, set cache.check-labels = false."


def refuse_other_meaning(writer: Writer, name: str, source: Source, todo: Sequence[RecordKey], panel: Panel) -> None:
    """Refuse a member whose answers are plainly in another order or unit than the data's.

    This happens before its records are accepted. A mere suspicion is a warning; without `Asking.check_labels`, so is a
    plain contradiction.

    Raises:
        EdistillError: `Asking.check_labels` is on, and a member's answers plainly mean something else.
    """
    if (
        panel.asking.check_labels is None
        or source.labels is None
        or name.startswith("ood/")
        or writer.manifest.is_sampled(name)
    ):
        return  # a few drawn classes do not suffice to judge; other splits are whole
    manifest, members = writer.manifest, panel.by_name
    for key in todo:
        if key.view == 0:
            asked = members[key.member]
            parts = writer.written(key, writer.cut(key, len(source), panel.asking.batch_size))
            said, answered = [], []
            for _, records in parts:
                answers = manifest.format.decode(records)
                there = ~np.isnan(answers.reshape(len(answers), -1)).all(1)
                said.append(asked.task.gist(answers[there]))
                answered.append(there)
            gist, labels = np.concatenate(said), source.labels[np.concatenate(answered)]
            if len(gist):
                try:
                    told = asked.task.refuse_other_meaning(
                        asked.member, gist, labels, manifest.classes, name in TRAINED
                    )
                except EdistillError as error:
                    if panel.asking.check_labels:
                        raise type(error)(f"{name}: {error} {UNLESS}") from None
                    told = parted(str(error))[0]
                if told:
                    panel.asking.progress.warn(f"{name}: {told}")
