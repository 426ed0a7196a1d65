"""The outputs of an ensemble's members on rows: read from the cache if it holds them, else computed now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ensemble_distill.cache.manifest import refuse_other_data
from ensemble_distill.cache.records import Records
from ensemble_distill.data.batches import at_once, plain_batches
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.source import Source
from ensemble_distill.evaluation.cost import Uncounted
from ensemble_distill.evaluation.given import Given
from ensemble_distill.predictive.answered import answered, those_who_answer
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.runs.run import Run
from ensemble_distill.teachers.answering import Answering


class Ensemble:
    """The members that runs were trained from.

    Args:
        given: the source of their answers.
        run: any of the runs, which all have the same members, pooled in the same way.
    """

    def __init__(self, given: Given, run: Run) -> None:
        self._given, self.task, self._average = given, run.architecture.task, run.architecture.average
        self.members = run.provenance.members
        self.family = self.task.members_family()
        weights = run.architecture.pooling()
        self._weights = None if weights is None else weights.double()

    def predictive(self, outputs: Tensor, some: Sequence[int] | None = None) -> Predictive:
        """The prediction of the ensemble, or of the members at some positions, from all members' outputs (B, M, W).

        On a row that some of them do not answer, it is the prediction of those who do.
        """
        at = list(range(len(self.members)) if some is None else some)
        weights = None if self._weights is None else self._weights[at]
        said = outputs[:, at]
        if outputs.isnan().any():
            said, weights = those_who_answer(said, weights)
        return self.family.predictive(said, weights, self._average)

    def answered(self, outputs: Tensor) -> Tensor:
        """Whether some member of nonzero weight answers each row, (B,), from all members' outputs (B, M, W)."""
        return answered(outputs[:, list(self.pooled)]).any(1)

    @property
    def pooled(self) -> tuple[int, ...]:
        """The positions of the members that are part of the ensemble: those with a weight above 0."""
        weights = [1.0] * len(self.members) if self._weights is None else self._weights.tolist()
        return tuple(at for at, weight in enumerate(weights) if weight > 0)

    @property
    def modules(self) -> list[nn.Module]:
        """The members as modules to be timed; empty if they are not at hand, or if one of them is a table of outputs.

        Raises:
            EdistillError: a member is missing.
        """
        if not self._given.at_hand or any(asked.wants is None for asked in self._asked):
            return []
        return [Uncounted(asked) if asked.module is None else asked.module for asked in self._asked]

    @cached_property
    def _asked(self) -> Sequence[Answering]:
        """The members, opened. Raises EdistillError if one is missing."""
        return self._given.members()

    def outputs(self, split: str, source: Source) -> Iterator[Tensor]:
        """All members' outputs (B, M, W) on a configured split, in the batches of `plain_batches`."""
        records = self._records(split, source)
        if records is None:
            yield from self.asked(source, split)
        else:
            at = [records.members.index(member.name) for member in self.members]
            size = at_once(source)
            for start in range(0, len(source), size):
                outputs = records.read(range(start, min(start + size, len(source))))[:, at]
                yield torch.from_numpy(outputs).double()

    def asked(self, source: Source, named: str) -> Iterator[Tensor]:
        """All members' outputs (B, M, W) on any rows, computed now, in the batches of `plain_batches`."""
        for asked in self._asked:
            asked.meets(named, source)
            asked.to(self._given.device)
        wanted = [None if asked.wants is None else asked.wants.preprocessing for asked in self._asked]
        for rows, inputs in plain_batches(source, wanted, self._given.workers, self._given.device):
            outputs = [
                asked.answers(named, rows, None if asked.wants is None else x)
                for asked, x in zip(self._asked, inputs, strict=True)
            ]
            yield torch.from_numpy(np.stack(outputs, axis=1)).double()

    def _records(self, split: str, source: Source) -> Records | None:
        """The cached outputs of a split; None unless they are dense, without transforms, and of all these members."""
        cache = self._given.cache
        if cache is None or cache.manifest.views(split) == 0:
            return None
        cached = cache.manifest.splits[split]
        here = {member.name: member for member in cache.manifest.members}
        if (
            cached.transform != "none"
            or cache.manifest.is_sampled(split)
            or any(here.get(m.name) != m for m in self.members)
        ):
            return None
        refuse_other_data(cache.folder, split, cached, SplitPlan.plain(source).facts())
        return cache.open(split)
