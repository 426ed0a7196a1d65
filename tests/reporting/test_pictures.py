"""Single figures of a report: what they draw and say of given values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ensemble_distill.evaluation.each_head import EachHead
from ensemble_distill.evaluation.worth import Ladder, Worth
from ensemble_distill.reporting.drawing import Picture
from ensemble_distill.reporting.pictures import heads, ladder, rejection, reliability, spread
from ensemble_distill.reporting.seen import Seen
from ensemble_distill.tasks import Task
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.tasks.regression import Regression


def seen_of(kl: list[float], collapsed: list[float], **facts: Any) -> Seen:
    """What the figures of heads and of the ladder are drawn from."""
    evaluation: Any = SimpleNamespace(run="hydra-s0", **facts)
    names = tuple(f"member-{at}" for at in range(len(kl)))
    each = EachHead(np.array(kl), np.array(collapsed), ())
    return Seen(evaluation, names, {}, {}, {}, {}, each, {}, {})


def heads_of(kl: list[float], collapsed: list[float]) -> Picture:
    means = {"member_kl": 0.5, "collapsed_kl": 0.25}  # weighted, unlike the means of the bars
    found = heads.picture(seen_of(kl, collapsed, fidelity=means))
    assert found is not None
    return found


def test_each_head_has_its_own_mark() -> None:
    found = heads_of([0.1, 0.4, np.nan, 0.9], [0.2, 0.3, np.nan, 0.8])
    assert found.told.startswith("Farthest: member-3 0.9, member-1 0.4, member-0 0.1. The mean is 0.5. ")
    assert found.told.endswith("2 of the 3 bars pass their marks.")
    assert found.data["kl"] == [0.1, 0.4, None, 0.9]
    assert found.data["collapsed_kl"] == [0.2, 0.3, None, 0.8]
    assert found.data["means"] == {"member_kl": 0.5, "collapsed_kl": 0.25}
    assert heads_of([0.1, 0.4], [0.2, 0.5]).told.endswith("None of the 2 bars passes its mark.")


def test_a_student_better_than_its_ensemble_is_worth_more_than_it() -> None:
    steps = Ladder([4.0, 3.0, 2.0, 1.0], [3.0, 2.0, 1.0, 0.0], [1.0, 0.5, 0.2, 0.0])
    worth = Worth(4.0, 4.0, 2.5, 1.0, ("prediction",), {"latency": 2.0, "macs": None, "parameters": None})
    found = ladder.picture(seen_of([0.1], [0.2], ladder=steps, worth={"student": worth}))
    assert found is not None
    told = "hydra-s0 is worth more than 4 members in prediction, 2.5 members in uncertainty; it costs 2.0 in latency."
    assert found.told == told
    assert [found.data["steps"][name]["beyond"] for name in ("nll", "model_uncertainty_l1")] == [True, False]
    assert b"worth more than 4<" in found.svg


def seen_of_rows(task: Task, **values: list[float]) -> Seen:
    """What figures of rows are drawn from; the ensemble's rows are the student's."""
    evaluation: Any = SimpleNamespace(run="hydra-s0", task=task)
    rows = {name: np.array(of) for name, of in values.items()}
    return Seen(evaluation, (), rows, rows, rows, {}, EachHead(None, None, ()), {}, {})


def seen_classes(confidence: list[float], correct: list[float], uncertainty: list[float]) -> Seen:
    task = Classification(("a", "b"))
    return seen_of_rows(task, confidence=confidence, correct=correct, total_uncertainty=uncertainty)


def test_a_confidence_on_an_edge_counts_below_it_as_in_the_calibration_error() -> None:
    found = reliability.picture(seen_classes([0.5, 0.45, 0.2 + 0.2 + 0.2, 1.0], [1, 0, 1, 1], [0.1] * 4))
    assert found is not None
    assert [(of["rows"], round(of["confidence"], 6), of["accuracy"]) for of in found.data["student"]] == [
        (2, 0.475, 0.5),
        (1, 0.6, 1.0),
        (1, 1.0, 1.0),
    ]


def test_equally_uncertain_rows_are_rejected_in_no_order() -> None:
    """As data sorted by class has them; some differ by rounding alone."""
    correct = [1.0] * 5 + [0.0] * 5
    found = rejection.picture(seen_classes([0.9] * 10, correct, [0.1 + 0.2] * 4 + [0.3] * 5 + [0.9]))
    assert found is not None
    kept = dict(zip(found.data["rejected"], found.data["student"], strict=True))
    assert kept[0] == 0.5
    for share in (0.1, 0.5, 0.9):
        assert kept[share] == pytest.approx(5 / 9), "of the nine that are equally uncertain, five are right"


def test_answers_of_equal_spread_have_the_same_error() -> None:
    """As those of a teacher with one fixed variance, for data sorted by target."""
    squared = [float(at) for at in range(20)]
    seen = seen_of_rows(Regression(), variance=[0.3] * 20, squared_error=squared, total_uncertainty=[0.3] * 20)
    found = spread.picture(seen)
    assert found is not None
    assert [of["rows"] for of in found.data["student"]] == [2] * 10
    assert [of["error"] for of in found.data["student"]] == pytest.approx([9.5**0.5] * 10)
