"""How close each head is to its member."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ensemble_distill.evaluation.names import STUDENT
from ensemble_distill.reporting.drawing import COLORS, OTHER, Picture, drawn, shortened
from ensemble_distill.reporting.seen import Seen

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 24  # the members are numbered if there are more


def picture(seen: Seen) -> Picture | None:
    """The figure; None if heads do not imitate one member each."""
    kl, collapsed = seen.heads.kl, seen.evaluation.fidelity["collapsed_kl"]
    if kl is None:
        return None
    named = len(kl) <= NAMED
    worst = [int(at) for at in np.argsort(-np.nan_to_num(kl, nan=-1.0))[:3] if not np.isnan(kl[at])]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.barh(range(len(kl)), kl, color=COLORS[STUDENT])
        if collapsed is not None:
            axes.axvline(collapsed, color=OTHER, linestyle="--", label="if all predicted their mean")
            axes.legend(frameon=False)
        axes.set(xlabel="KL(member ‖ head), nats", ylabel="" if named else "member")
        axes.invert_yaxis()
        if named:
            axes.set_yticks(range(len(kl)), [shortened(name) for name in seen.members])

    told = ", ".join(f"{seen.members[at]} {kl[at]:.3g}" for at in worst)
    return Picture(
        "heads",
        "Which heads are close to their members?",
        "The shorter, the closer. A head beyond the dashed line would be closer if it predicted the mean of all heads.",
        f"Farthest: {told}. The mean is {float(np.nanmean(kl)):.3g}.",
        {
            "members": list(seen.members),
            "kl": [None if np.isnan(value) else float(value) for value in kl],
            "collapsed": collapsed,
        },
        drawn(draw, 5.6, min(8.0, 1.2 + 0.22 * len(kl))),
    )
