"""Which steps of a training belong to which stage."""

from __future__ import annotations

from collections.abc import Sequence

from ensemble_distill.errors import EdistillError
from ensemble_distill.methods.method import Stage


def boundaries(stages: Sequence[Stage], steps: int) -> list[int]:
    """The step at which each stage ends; the last is `steps`.

    Raises:
        EdistillError: there are fewer steps than stages; or none, and the only stage solves for nothing.
    """
    if steps == 0:
        if len(stages) > 1 or stages[0].fit is None:
            raise EdistillError(
                f"train.epochs is 0, and the method begins with stage {stages[0].name}, which solves for nothing. "
                "Raise train.epochs. None is enough for hydra that starts from members, or whose hinton-share is 0."
            )
        return [0]
    if steps < len(stages):
        names = ", ".join(stage.name for stage in stages)
        raise EdistillError(
            f"Training has {steps} steps, and the method has {len(stages)} stages ({names}). Raise train.epochs, or "
            "lower train.batch-size."
        )
    ends: list[int] = []
    share = 0.0
    for index, stage in enumerate(stages):
        share += stage.share
        earliest = (ends[-1] if ends else 0) + 1
        latest = steps - (len(stages) - 1 - index)
        ends.append(min(max(round(share * steps), earliest), latest))
    ends[-1] = steps
    return ends
