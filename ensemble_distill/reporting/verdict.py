"""Whether to ship a student: what its worth and cost come to, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ensemble_distill.evaluation.names import STUDENT
from ensemble_distill.evaluation.remarks import slower_than_all
from ensemble_distill.evaluation.result import Evaluation
from ensemble_distill.evaluation.worth import Worth


@dataclass(frozen=True)
class Verdict:
    """What a reader should do.

    Attributes:
        ship: whether the student is worth more members than it costs; None where that can't be said.
        headline: one sentence.
        reasons: a sentence each.
    """

    ship: bool | None
    headline: str
    reasons: tuple[str, ...]


def verdict(found: Evaluation) -> Verdict:
    """By worth and latency, both in members."""
    worth = found.worth and found.worth[STUDENT]
    if not worth or found.ladder is None:
        return Verdict(None, "Nothing says whether fewer members would do as well.", (_without_ladder(found),))
    told = _worths(worth, len(found.ladder.mean_kl))
    if math.isnan(worth.cost_in_members):
        why = "Its cost in members is not known: the members are not at hand, or another runtime runs them."
        return Verdict(None, f"{found.run} is worth {told}.", (why,))
    cost = f"for the time of {worth.cost_in_members:.1f}"
    if worth.falls_short:
        instead = "" if found.instead is None else f" The best of that time: {' + '.join(found.instead)}."
        short = " and in ".join(worth.falls_short)
        return Verdict(
            False,
            f"Serve some members instead: {found.run} costs more than it is worth in {short}.",
            (f"It is worth {told}, {cost}.{instead}", *_beside(worth)),
        )
    if slower_than_all(found) is not None:
        return Verdict(
            False,
            f"Serve the ensemble itself: together its members take less time than {found.run}.",
            (f"It is worth {told}, {cost}. What it saves is memory and arithmetic, not time.", *_beside(worth)),
        )
    return Verdict(True, f"{found.run} is worth having.", (f"It is worth {told}, {cost}.", *_beside(worth)))


def _worths(worth: Worth, members: int) -> str:
    each = {"prediction": worth.prediction, "uncertainty": worth.uncertainty}
    told = [
        f"{'more than ' if name in worth.beyond else ''}{value:.1f} members in {name}"
        for name, value in each.items()
        if value is not None
    ]
    return f"{' and '.join(told)}, of {members}" if told else f"what can't be told of {members}"


def _beside(worth: Worth) -> list[str]:
    """What its total uncertainty is worth, where that is no less."""
    own, control = worth.uncertainty, worth.uncertainty_control
    if control is None:
        return []
    if own is None:
        return [
            "It has one head, and so no model uncertainty: what is uncertain about the model can't be told from the "
            "rest."
        ]
    if own <= control:
        return [
            f"Its total uncertainty alone is worth {control:.1f}: use that, its model uncertainty ({own:.1f}) says "
            "no more."
        ]
    return []


def _without_ladder(found: Evaluation) -> str:
    if found.answering is not None and found.answering.most == 1:
        return "One member answers each row, so the rows have no ensemble of several."
    return "There is one member, or rows have no ladder: see the table."
