"""Heads in closed form: the options, and the solution, of every method whose targets allow it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from ensemble_distill.methods.method import Batch, Fit, Stage
from ensemble_distill.predictive.answered import who_answers
from ensemble_distill.predictive.protocol import Family, Predictive
from ensemble_distill.students.ridge import Ridge
from ensemble_distill.students.student import Student

Target = Callable[[Batch, Family], Predictive]  # what the heads of such a family are to say of B rows

SHRINKAGE = 1e-4
ClosedForm = Annotated[
    bool | None,
    Field(
        description="Solve for the heads' last layers by least squares, then train on from there; the default depends "
        "on the task and on whether the student starts from several members."
    ),
]
Shrinkage = Annotated[
    float,
    Field(gt=0, le=1e6, description="Ridge penalty of that solution, relative to the features' variance."),
]
SolveAfter = Annotated[
    float,
    Field(ge=0, lt=1, description="Share of training before that solution; 0 solves at the very start."),
]
AFTER = 0.3


def settled_form(options: BaseModel, default: bool) -> dict[str, Any]:
    """The update of options that leave `closed_form` to the task and the start."""
    return {"closed_form": default} if getattr(options, "closed_form", None) is None else {}


def idle_ridge(options: BaseModel) -> Mapping[str, str]:
    """See `Method.idle`: without a solution nothing shrinks, and nothing comes before it."""
    if getattr(options, "closed_form", None):
        return {}
    why = "no heads are solved for, since method.closed-form is off"
    known = (("ridge", "ridge"), ("solve-after", "solve_after"))
    return {name: why for name, key in known if key in type(options).model_fields}


def members_say(batch: Batch, family: Family) -> Predictive:
    """A head says what its member says."""
    return batch.teacher


def solved_on_the_way(options: BaseModel, stage: Stage, fit: Fit | None) -> Sequence[Stage]:
    """A single stage in two, of which the second begins with a solution: `solve_after` of it, and what is left under a
    fresh schedule.

    Features are worth solving for once they were trained a little. On the quickstart's digits, validation rows, kd
    from two members came to a mean KL of .0077 in 6 epochs with a first part of 30 %, to .0111 solved at the very start
    and to .0114 without; one fresh body came in 60 epochs to .0040, .0122 and .0048.
    """
    after: float = getattr(options, "solve_after", AFTER)
    if fit is None:
        return (stage,)
    if after == 0:
        return (replace(stage, fit=fit),)
    first = replace(stage, name="first", share=after * stage.share, optional=True)
    return (first, replace(stage, share=(1 - after) * stage.share, fit=fit))


def together(temperature: float) -> Target:
    """One head says what the members say together: where T² KL(pooled members ‖ head), T on both sides, is 0."""

    def target(batch: Batch, family: Family) -> Predictive:
        return batch.teacher.tempered(temperature).pooled().tempered(1 / temperature)

    return target


def solved_heads(options: BaseModel, target: Target) -> Fit | None:
    """Every head's last layer as the least-squares map from what it sees to what it is to say; None where
    `closed_form` is off.

    Linear heads see the same, so one Gram matrix serves all of them; where members do not answer every row, each head
    has its own, of the rows that its member answers. Least squares weighs what is said of impossible classes as much as
    the rest, and rows on which members agree as much as others: it is where the stage starts, and its loss does the
    rest.
    """
    if not getattr(options, "closed_form", None):
        return None
    ridge: float = getattr(options, "ridge", SHRINKAGE)

    def fit(student: Student, rows: Iterable[tuple[Tensor, Batch]]) -> None:
        regressions: list[Ridge] = []
        for features, batch in rows:
            seen, said = student.heads.hidden(features), target(batch, student.family)
            raw, there = student.family.raw(said), who_answers(said)
            if seen.dim() == 2 and there is None:
                own = [(seen, raw)]
            else:
                each = [seen.unsqueeze(1)] * raw.shape[1] if seen.dim() == 2 else seen.chunk(seen.shape[1], 1)
                own = list(zip(each, raw.chunk(raw.shape[1], 1), strict=True))
            if there is not None:  # each head from the rows that its member answers
                own = [(x[known], y[known]) for (x, y), known in zip(own, there.unbind(1), strict=True)]
            regressions = regressions or [Ridge() for _ in own]
            for regression, (x, y) in zip(regressions, own, strict=True):
                if len(x):
                    regression.add(x.flatten(1), y)
        last = student.heads.last
        solved = [
            regression.solve(ridge) if regression.rows else (last.weight[[head]].detach(), last.bias[[head]].detach())
            for head, regression in enumerate(regressions)
        ]
        last.weight.copy_(torch.cat([weight for weight, _ in solved]))
        last.bias.copy_(torch.cat([bias for _, bias in solved]))

    return fit
