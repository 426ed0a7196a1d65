"""Members' answers at drawn ids only, for splits whose records of all classes would be too large.

All members answer a batch before its ids are drawn, from their mean. What is stored of the batch is the ids and each
member's answer at them, in parts that are written whole. A member added later answers at the existing ids. That is
still unbiased, but nothing bounds its weights any more, so their size is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.cache.formats import Format
from ensemble_distill.cache.manifest import Drawn
from ensemble_distill.cache.record_key import RecordKey, Said, SampleKey
from ensemble_distill.cache.records import mapped
from ensemble_distill.cache.writer import Writer
from ensemble_distill.caching import drawing
from ensemble_distill.caching.noted import fresh_notes
from ensemble_distill.caching.panel import Panel, wanted
from ensemble_distill.caching.probe import asked_as
from ensemble_distill.caching.seen import Seen
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.errors import CacheError, EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.runtime import ranks
from ensemble_distill.teachers.answering import Inputs


class Sampling:
    """Makes records of ids, and of members' answers at them, from batches of rows; see `Maker`.

    Attributes:
        told: for each member added later: number of positions, sum of their summed weights, and the largest ratio.
    """

    def __init__(self, writer: Writer, split: str, plan: SplitPlan, panel: Panel) -> None:
        self.writer, self.split, self.seed = writer, split, plan.seed
        self.transform = writer.manifest.splits[split].transform
        self.members, self.device = panel.by_name, panel.asking.device
        self.cut = writer.cut(SampleKey(split, 0), len(plan.source), panel.asking.batch_size)
        self.told: dict[str, tuple[int, float, float]] = {}

    def wants(self, keys: Sequence[Said]) -> list[Inputs]:
        return wanted([self.members[name] for name in self._asked(keys)])

    def make(self, keys: Sequence[Said], rows: range, seen: Seen) -> dict[Said, NDArray[np.void]]:
        made: dict[Said, NDArray[np.void]] = {}
        for view in sorted({key.view for key in keys}):
            here = [key for key in keys if key.view == view]
            logits = {name: self._logits(name, view, rows, seen) for name in self._asked(here)}
            draws = SampleKey(self.split, view)
            fresh = draws in here
            ids, q, t = self._draw(logits, draws, rows) if fresh else self._stored(draws, rows)
            if fresh:
                numbers = np.concatenate([ids, q, t[..., None]], -1).reshape(len(rows), *self._form(draws).shape)
                made[draws] = self._form(draws).encode(numbers)
            for key in here:
                if isinstance(key, RecordKey):
                    said = self._said(logits[key.member], ids, q)
                    self._tell(key.member, draws, said, q, t)
                    made[key] = self._encoded(key, said, rows)
        return made

    def _asked(self, keys: Sequence[Said]) -> list[str]:
        """The members to ask: those whose records are made, and those that ids are drawn from."""
        names = [key.member for key in keys if isinstance(key, RecordKey)]
        drawn = self.writer.manifest.drawn
        names += [name for key in keys if isinstance(key, SampleKey) for name, _ in drawn[key].members]
        return list(dict.fromkeys(names))

    def _form(self, key: Said) -> Format:
        return self.writer.manifest.format_of(key)

    def _logits(self, name: str, view: int, rows: range, seen: Seen) -> NDArray[np.float32]:
        """A member's logits (B, L, K) in the split's order; L is 1 for rows without positions."""
        asked = self.members[name]
        x = None if asked.wants is None else seen[view, asked.wants].to(self.device)
        found = drawing.by_position(asked.answers(asked_as(asked, self.split, self.transform, view), rows, x))
        if np.isnan(found).any():
            raise EdistillError(
                f"Member {name} does not answer all rows of {self.split}, such as those from {rows.start} on, and ids "
                'are drawn from all members together. Set cache.records = "dense".'
            )
        return found

    def _draw(
        self, logits: Mapping[str, NDArray[np.float32]], key: SampleKey, rows: range
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Ids and q at them, each (B, L, n), and t (B, L); q and t as they will be stored."""
        how = self.writer.manifest.drawn[key]
        found = []
        for at, row in enumerate(rows):  # one by one, to hold all classes in double precision for one row only
            q = drawing.pooled(np.stack([drawing.probabilities(logits[name][at]) for name, _ in how.members]))
            uniforms = drawing.uniforms_of(self.seed, self.split, key.view, row, len(q))
            ids = drawing.drawn_ids(q, how.samples, uniforms)
            found.append((ids, np.take_along_axis(q, ids, -1), drawing.thresholds(q, how.samples)))
        ids, q, t = (np.stack(parts) for parts in zip(*found, strict=True))
        return ids, q.astype(np.float32).astype(np.float64), t.astype(np.float32).astype(np.float64)

    def _stored(
        self, key: SampleKey, rows: range
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Ids, q and t of rows whose ids were drawn before, in the shapes of `_draw`."""
        manifest = self.writer.manifest
        if key in manifest.records:
            total = manifest.splits[key.split].rows
            records = mapped(key.path(self.writer.folder), self._form(key).record, total)[rows.start : rows.stop]
        else:
            block = next(block for block in self.cut if block.start <= rows.start < block.stop)
            ((_, whole),) = self.writer.written(key, [block])
            records = whole[rows.start - block.start : rows.stop - block.start]
        return drawing.unpacked(self._form(key).decode(np.asarray(records)))

    @staticmethod
    def _said(logits: NDArray[np.float32], ids: NDArray[np.int64], q: NDArray[np.float64]) -> NDArray[np.float64]:
        """p ÷ q at the ids, then max p, (B, L, n + 1)."""
        each = zip(logits, ids, q, strict=True)
        return np.stack([drawing.ratios(drawing.probabilities(z), at, of) for z, at, of in each])

    def _encoded(self, key: RecordKey, said: NDArray[np.float64], rows: range) -> NDArray[np.void]:
        form = self._form(key)
        try:
            return form.encode(said.reshape(len(rows), *form.shape))
        except OverflowError as error:
            drawn = ", ".join(name for name, _ in self.writer.manifest.drawn[SampleKey(key.split, key.view)].members)
            raise CacheError(
                f"Member {key.member} came after the ids of {key.split} were drawn from {drawn}, and in rows "
                f"{rows.start} to {rows.stop - 1} it takes one for {error} as likely as they do: too much for "
                "float16. Run edistill cache-logits --overwrite to draw from all members."
            ) from None

    def _tell(
        self, name: str, key: SampleKey, said: NDArray[np.float64], q: NDArray[np.float64], t: NDArray[np.float64]
    ) -> None:
        if any(name == one for one, _ in self.writer.manifest.drawn[key].members):
            return
        count, total, largest = self.told.get(name, (0, 0.0, 0.0))
        over = np.maximum(q, t[..., None])
        over[..., 0] = q[..., 0]
        ratio = said[..., :-1]
        self.told[name] = (count + t.size, total + float((ratio * over).sum()), max(largest, float(ratio.max())))

    def remarks(self) -> list[str]:
        """Warnings about members added later: how well the ids of the others represent them.

        Every rank has to call it.
        """
        told: dict[str, tuple[int, float, float]] = {}
        for of_rank in ranks.of_each(self.told):
            for name, (count, total, largest) in of_rank.items():
                before = told.get(name, (0, 0.0, 0.0))
                told[name] = (before[0] + count, before[1] + total, max(before[2], largest))
        return [
            f"Member {name} came after the ids of {self.split} were drawn, and is asked about those. Its weights sum "
            f"to {total / count:.3f} a position (1 on average), and it takes one for up to {largest:.3g} times as "
            "likely as those did that were drawn from, whose own bound is their number. To draw from all, run edistill "
            "cache-logits --overwrite."
            for name, (count, total, largest) in told.items()
        ]


def draw_keys(writer: Writer, todo: Sequence[RecordKey], samples: int, members: Sequence[Member]) -> list[Said]:
    """The records of a split to make, with those of the ids they need first: a record without its ids means nothing.

    Args:
        samples: number of ids per position.
    """
    wanted = dict.fromkeys(SampleKey(key.split, key.view) for key in todo)
    draws = [key for key in wanted if key not in writer.manifest.records]
    _note(writer, draws, samples, members)
    for key in draws:
        ranks.of_first(partial(_drop_orphans, writer, key, todo))
    return [*draws, *todo]


def _note(writer: Writer, draws: Sequence[SampleKey], samples: int, members: Sequence[Member]) -> None:
    """Note which members ids are drawn from, before the first draw.

    A resumed pass draws from the same members, even if new ones have come.
    """
    now = Drawn(tuple((member.name, member.sha256) for member in members), samples)
    if fresh := fresh_notes(writer.manifest.drawn, draws, now, lambda noted: noted.samples == samples):
        writer.note_drawn(fresh)


def _drop_orphans(writer: Writer, key: SampleKey, todo: Sequence[RecordKey]) -> None:
    """Drop all parts of the split if some lack their ids, as when a part was damaged.

    Answers without ids mean nothing.
    """
    of_view = [said for said in todo if said.view == key.view]
    rows, size = writer.manifest.splits[key.split].rows, writer.manifest.caching["batch_size"]
    for block in writer.cut(key, rows, size):
        if writer.missing(block, [key]) and len(writer.missing(block, of_view)) < len(of_view):
            writer.drop_parts(key.parts_place)
            return
