"""What an exported student says of itself, from what its run says."""

from __future__ import annotations

from ensemble_distill import __version__
from ensemble_distill.facts import MadeFrom
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.serving.card import Card
from ensemble_distill.tasks.reference import Reference


def card_of(
    config: StudentConfig,
    made_from: MadeFrom | None,
    reference: Reference | None = None,
    version: str = __version__,
) -> Card:
    """What an exported student says of itself.

    Args:
        made_from: the run that it is of.
        reference: what it says of calibration rows; None where there are none.
        version: the edistill that wrote the file.
    """
    what, origin = config.architecture, config.provenance
    return Card(
        task=what.task,
        method=origin.method,
        version=version,
        kind=what.kind,
        shape=what.shape,
        preprocessing=what.preprocessing,
        members=origin.members,
        made_from=made_from,
        features=origin.features,
        columns=origin.columns,
        reference=reference,
        average=what.average,
        weights=what.weights,
    )
