"""How close each head is to its member."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.evaluation.names import STUDENT
from ensemble_distill.reporting.drawing import COLORS, OTHER, Picture, drawn, shortened
from ensemble_distill.reporting.seen import Seen

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 24  # the members are numbered if there are more


def picture(seen: Seen) -> Picture | None:
    """The figure; None if heads do not imitate one member each.

    Its data are, for each member, "kl" to its head and "collapsed_kl" to the mean of all heads, in nats; null for a
    member of weight 0, or one that answers no row. "means" has both over all members and rows, as the evaluation does.
    """
    kl, collapsed = seen.heads.kl, seen.heads.collapsed_kl
    if kl is None or collapsed is None:
        return None
    named = len(kl) <= NAMED
    worst = [int(at) for at in np.argsort(-np.nan_to_num(kl, nan=-1.0))[:3] if not np.isnan(kl[at])]
    known = np.flatnonzero(~np.isnan(kl))
    beyond = int((kl[known] > collapsed[known]).sum())

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.barh(range(len(kl)), kl, color=COLORS[STUDENT])
        axes.vlines(
            collapsed[known],
            known - 0.45,
            known + 0.45,
            color=OTHER,
            linewidth=2,
            label="if it predicted the mean of all heads",
        )
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)  # above: bars are below
        axes.set(xlabel="KL(member ‖ head), nats", ylabel="" if named else "member", xlim=(0, None))
        axes.invert_yaxis()
        if named:
            axes.set_yticks(range(len(kl)), [shortened(name) for name in seen.members])

    told = ", ".join(f"{seen.members[at]} {kl[at]:.3g}" for at in worst)
    means = {name: seen.evaluation.fidelity[name] for name in ("member_kl", "collapsed_kl")}
    return Picture(
        "heads",
        "Which heads are close to their members?",
        "The shorter, the closer. The mark in each row shows how far the mean of all heads is from that member: a head "
        "whose bar passes its mark would be closer if it predicted that mean.",
        f"Farthest: {told}. The mean is {means['member_kl']:.3g}. "
        f"{beyond or 'None'} of the {len(known)} bars {'passes its mark' if beyond < 2 else 'pass their marks'}.",
        {
            "members": list(seen.members),
            "kl": _or_null(kl),
            "collapsed_kl": _or_null(collapsed),
            "means": means,
        },
        drawn(draw, 5.6, min(8.0, 1.2 + 0.22 * len(kl))),
    )


def _or_null(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
