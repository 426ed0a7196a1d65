"""Choosing an ensemble's best sub-ensembles on the validation rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ensemble_distill.data.source import Array, Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.comparable import open_for
from ensemble_distill.evaluation.ensemble import Ensemble
from ensemble_distill.evaluation.given import Given
from ensemble_distill.evaluation.names import SUBENSEMBLES
from ensemble_distill.evaluation.rows import Answers
from ensemble_distill.evaluation.subensembles import SubEnsembles
from ensemble_distill.predictive.answered import answered
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.progress import Progress

Chosen = Mapping[str, tuple[int, ...] | None]  # sub-ensembles by name, as the positions of their members


class Choice(NamedTuple):
    """The chosen sub-ensembles, and the search that can choose others: None if there are no rows to choose on."""

    chosen: Chosen
    search: SubEnsembles | None


SPLIT = "validation"


def choose(given: Given, runs: Sequence[Run], ensemble: Ensemble, evaluated: str) -> Choice:
    """The sub-ensembles with the lowest NLL on the validation rows.

    If they cannot be chosen, all are None and a message says why: the rest of an evaluation stands without this
    baseline.

    Args:
        given: what the command has opened.
        runs: the runs to evaluate.
        ensemble: their ensemble.
        evaluated: the split on which the sub-ensembles will be reported.
    """
    nothing = Choice(dict.fromkeys(SUBENSEMBLES), None)
    members = len(ensemble.members)
    if members == 1:  # a single teacher has no parts
        return nothing
    if members <= min(SUBENSEMBLES.values()):
        given.progress.note(f"No sub-ensembles: the ensemble has {members} members, and a part of it fewer.")
        return nothing
    if SPLIT not in given.splits:
        given.progress.note("No sub-ensembles: data.validation, on which they would be chosen, is not set.")
        return nothing
    try:
        source = open_for(runs, given.splits, SPLIT)
        if source.labels is None:
            given.progress.note("No sub-ensembles: data.validation, on which they would be chosen, has no labels.")
            return nothing
        search = _searched(ensemble, source, source.labels, given.progress)
        if not search.rows:
            given.progress.note(
                "No sub-ensembles: they would be chosen on validation rows that every member answers, and there are "
                "none."
            )
            return nothing
        chosen = {name: search.best(size) for name, size in SUBENSEMBLES.items()}
    except EdistillError as error:
        given.progress.warn(f"No sub-ensembles, since they are chosen on validation rows. {error}")
        return nothing
    if evaluated == SPLIT:
        given.progress.note("The sub-ensembles were chosen on these same rows, so their figures are optimistic.")
    return Choice(chosen, search)


def _searched(ensemble: Ensemble, source: Source, labels: Array, progress: Progress) -> SubEnsembles:
    search, done = SubEnsembles(), 0
    progress.start("choosing sub-ensembles on validation", total=len(source), unit="rows")
    try:
        for outputs in ensemble.outputs(SPLIT, source):
            answers = Answers(ensemble.task, labels, range(done, done + len(outputs)))
            assert answers.labels is not None
            said = answers.of(outputs)
            whole = answered(said).all(1)  # sub-ensembles are compared on the same rows
            if whole.any():
                search.add(ensemble.predictive(said[whole]), answers.labels[whole])
            done += len(outputs)
            progress.advance(len(outputs))
    finally:  # an error here does not end the evaluation
        progress.finish()
    return search
