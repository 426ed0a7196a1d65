"""The card of an exported student, from the config of its run."""

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
    """The card of an exported student.

    Args:
        config: that of its run.
        made_from: the weights and the calibration of its run.
        reference: statistics of calibration rows; None without any.
        version: the edistill version that wrote the file.
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
