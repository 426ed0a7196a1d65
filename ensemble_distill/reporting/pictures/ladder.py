"""The ladder of sub-ensembles, with the student on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ensemble_distill.evaluation.names import ENSEMBLE, STUDENT
from ensemble_distill.reporting.drawing import COLORS, Picture, drawn
from ensemble_distill.reporting.seen import Seen

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNGS = {"nll": ("prediction", "NLL (nats)"), "model_uncertainty_l1": ("uncertainty", "l1 of the model uncertainty")}


def picture(seen: Seen) -> Picture | None:
    """The figure; None without a ladder or the student's worth."""
    ladder, worths = seen.evaluation.ladder, seen.evaluation.worth
    worth = worths and worths[STUDENT]
    if ladder is None or not worth:
        return None
    steps = {"nll": ladder.nll, "model_uncertainty_l1": ladder.model_uncertainty_l1}
    found = {
        name: {"ladder": of, "worth": own, "beyond": rung in worth.beyond}
        for name, (rung, _) in RUNGS.items()
        if (of := steps[name]) is not None and (own := getattr(worth, rung)) is not None
    }
    counts_told = {name: worth.counted(RUNGS[name][0]) for name in found}
    cost = None if worth.cost is None else worth.cost["latency"]
    if not found:
        return None

    def draw(figure: Figure) -> None:
        for axes, (name, of) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
            members, own = of["ladder"], of["worth"]
            counts = range(1, len(members) + 1)
            axes.plot(counts, members, "o-", color=COLORS[ENSEMBLE], label="so many members")
            axes.axvline(own, color=COLORS[STUDENT], label=f"{seen.label(STUDENT)}: worth {counts_told[name]}")
            if cost is not None and cost <= 1.5 * len(members):
                axes.axvline(cost, color=COLORS[STUDENT], linestyle=":", label=f"and costs {cost:.1f}")
            axes.set(xlabel="members", ylabel=RUNGS[name][1])
            axes.legend(framealpha=1, edgecolor="none", fontsize=8)  # opaque, since lines end behind it

    costs = "" if cost is None else f"; it costs {cost:.1f} in latency"
    told = ", ".join(f"{count} members in {RUNGS[name][0]}" for name, count in counts_told.items())
    return Picture(
        "ladder",
        "What fewer members would get",
        "Blue: the mean of sub-ensembles by size. The student's line marks the size that does as well. If the dotted "
        "line of its cost is to the left of it, the student is worth more than it costs.",
        f"{seen.run} is worth {told}{costs}.",
        {"steps": found, "cost": cost},
        drawn(draw),
    )
