"""Members' answers for a split: computed, asked again, compared with the labels, and only then joined into records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.cache.reader import StoredInputs
from ensemble_distill.cache.record_key import RecordKey, Said
from ensemble_distill.cache.writer import Writer
from ensemble_distill.caching.again import ask_again
from ensemble_distill.caching.complete import keys
from ensemble_distill.caching.filling import fill
from ensemble_distill.caching.meaning import refuse_other_meaning
from ensemble_distill.caching.panel import Panel, wanted
from ensemble_distill.caching.probe import asked_as
from ensemble_distill.caching.sampling import Sampling, draw_keys
from ensemble_distill.caching.seen import Seen
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.runtime import ranks
from ensemble_distill.teachers.answering import Inputs


class Answers:
    """Makes records of members' answers from batches of rows; see `Maker`."""

    def __init__(self, writer: Writer, split: str, panel: Panel) -> None:
        self.format, self.split = writer.manifest.format, split
        self.transform = writer.manifest.splits[split].transform
        self.members, self.device = panel.by_name, panel.asking.device
        self.together = panel.batch_by_name

    def wants(self, keys: Sequence[RecordKey]) -> list[Inputs]:
        return wanted([self.members[name] for name in dict.fromkeys(key.member for key in keys)])

    def make(self, keys: Sequence[RecordKey], rows: range, seen: Seen) -> dict[RecordKey, NDArray[np.void]]:
        here = {what: x.to(self.device, non_blocking=True) for what, x in seen.items()}
        records: dict[RecordKey, NDArray[np.void]] = {}
        for key in keys:
            if key not in records:  # members asked in one batch get their records together
                asked = self.members[key.member]
                x = here.get((key.view, asked.wants))
                made = self._in_one_batch(key, rows, x)
                if not made:
                    named = asked_as(asked, self.split, self.transform, key.view)
                    made = {key: self.format.encode(asked.answers(named, rows, x))}
                records |= made
        return {key: records[key] for key in keys}

    def _in_one_batch(self, key: RecordKey, rows: range, x: Tensor | None) -> dict[RecordKey, NDArray[np.void]]:
        """The records of all members asked in one batch with this one.

        They include members whose records are not missing, so that a resumed pass makes the same bytes. Empty if the
        member is asked alone, or if the batch declines so that one member can raise its own error.
        """
        batch = self.together.get(key.member)
        answers = None if batch is None or x is None else batch.answers(self.split, rows, x)
        if batch is None or answers is None:
            return {}
        encoded = self.format.encode(answers.reshape(-1, *answers.shape[2:])).reshape(answers.shape[:2])
        return {replace(key, member=name): of_one for name, of_one in zip(batch.names, encoded, strict=True)}


def cache_answers(
    writer: Writer, name: str, plan: SplitPlan, todo: Sequence[RecordKey], panel: Panel, inputs: StoredInputs | None
) -> None:
    """Compute these records of a split and join them into the cache.

    They hold drawn ids only if `Asking.drawn` names the split.

    Raises:
        EdistillError: a member fails, answers differently when asked again, or means something else by its answers than
            the settings say.
    """
    rows = plan.rows(inputs)
    asking, told = panel.asking, f"caching {name}{panel.named}"
    samples = asking.drawn.get(name)
    made: Sequence[Said] = todo
    if samples is None:
        fill(writer, rows, todo, Answers(writer, name, panel), asking, told)
    else:
        made = draw_keys(writer, todo, samples, panel.facts)
        sampling = Sampling(writer, name, plan, panel)
        fill(writer, rows, made, sampling, asking, told)
    ranks.of_first(lambda: ask_again(writer, name, rows, todo, panel))
    ranks.of_first(lambda: refuse_other_meaning(writer, name, plan.source, todo, panel))
    later = set(writer.pending(list(keys({name: plan}, writer.manifest.members)))).difference(todo)
    writer.join(made, len(plan.source), asking.batch_size, sorted(later))
    asking.progress.finish()
    for remark in sampling.remarks() if samples is not None else ():
        asking.progress.warn(remark)
