"""Whether to ship a student, judged by its worth and cost, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ensemble_distill.evaluation.comparison import Comparison
from ensemble_distill.evaluation.names import ENSEMBLE, STUDENT
from ensemble_distill.evaluation.remarks import slower_than_all, when_instead
from ensemble_distill.evaluation.result import Evaluation
from ensemble_distill.evaluation.worth import Worth


@dataclass(frozen=True)
class Verdict:
    """A recommendation.

    Attributes:
        ship: whether the student is worth more members than it costs; None if that is unknown, or if those members are
            worth even less.
        headline: one sentence.
        reasons: a sentence each.
    """

    ship: bool | None
    headline: str
    reasons: tuple[str, ...]


def verdict(found: Evaluation) -> Verdict:
    """The verdict from worth and latency, both in members."""
    worth = found.worth and found.worth[STUDENT]
    if not worth or found.ladder is None:
        return Verdict(None, "It is unknown whether fewer members would do as well.", (_without_ladder(found),))
    members = len(found.ladder.mean_kl)
    told = worth.told(members)
    if not told:
        why = "These rows have no labels, and it has no model uncertainty to compare with the ensemble's."
        return Verdict(None, f"It is unknown whether {found.run} is worth having.", (why,))
    if math.isnan(worth.cost_in_members):
        why = "Its cost in members is unknown: the members are not available to be timed."
        return Verdict(None, f"{found.run} is worth {told}.", (why,))
    figures = f"It is worth {told}, for the time of {worth.cost_in_members:.1f}."
    if slower_than_all(found) is not None:  # all members in less time are better than some of them, too
        return Verdict(
            False,
            f"Serve the ensemble itself: together its members take no more time than {found.run}.",
            (f"{figures} {_saves(found)}", *_beside(worth)),
        )
    if worth.falls_short:
        return _dear(found, worth, figures)
    return Verdict(True, f"{found.run} is worth having.", (figures, *_beside(worth)))


def _dear(found: Evaluation, worth: Worth, figures: str) -> Verdict:
    """The verdict on a student that is worth fewer members than it costs, if not all members together are faster."""
    dear = f"{found.run} costs more than it is worth in {' and in '.join(worth.falls_short)}"
    when = when_instead(found, worth)
    if when is None:
        headline = f"{dear}, but the best members for that time are worth even less."
        return Verdict(None, headline, (figures, *_beside(worth)))
    best = "" if found.instead is None else f" The best for that time: {' + '.join(found.instead)}."
    advice = f"{when}serve some members instead"
    return Verdict(False, f"{advice[0].upper()}{advice[1:]}: {dear}.", (f"{figures}{best}", *_beside(worth)))


def _saves(found: Evaluation) -> str:
    """What is saved by a student that is no faster than all members."""
    own, whole = found.cost[STUDENT] or {}, found.cost[ENSEMBLE] or {}
    each = {name: (own.get(key), whole.get(key)) for name, key in (("memory", "parameters"), ("arithmetic", "macs"))}
    saved = [name for name, (mine, theirs) in each.items() if mine is not None and theirs and mine < theirs]
    if saved:
        return f"It saves {' and '.join(saved)}, not time."
    unknown = None in (*each["memory"], *each["arithmetic"])
    return "Whether it saves anything is unknown." if unknown else "It saves neither memory nor arithmetic."


def _beside(worth: Worth) -> list[str]:
    """A remark on the worth of its total uncertainty, if that is at least as high."""
    own, control = worth.uncertainty, worth.uncertainty_control
    if control is None:
        return []
    if own is None:
        return ["It has one head and therefore no model uncertainty: it cannot separate that from the rest."]
    if own <= control:
        return [
            f"Its total uncertainty alone is worth {control:.1f}: use that; its model uncertainty ({own:.1f}) adds "
            "nothing."
        ]
    return []


def _without_ladder(found: Evaluation) -> str:
    if found.answering is not None and found.answering.most == 1:
        return "One member answers each row, so the rows have no ensemble of several."
    if Comparison((found,)).of_one_teacher:
        return "There is a single teacher: compare the student with it in the table."
    return "The rows have no ladder of sub-ensembles: see the table."
