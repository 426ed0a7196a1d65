"""Training from records of a few drawn classes: whatever needs all classes is refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ensemble_distill.cache.sampled_records import SampledRecords
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.training.asked import Asked, Learned

DENSE = 'Set cache.records = "dense" and run edistill cache-logits --overwrite'


def from_samples(asked: Asked, learned: Learned, given: Callable[[str], bool], progress: Progress) -> Asked:
    """The settings, with the closed-form solve turned off if the records hold drawn classes only.

    Args:
        given: whether a dotted key of the settings was given.

    Raises:
        EdistillError: the method, its options, the members' pooling or a start from members needs whole distributions.
    """
    records = learned.splits["train"].records
    if not isinstance(records, SampledRecords) or "teacher" not in asked.needs:
        return asked
    alone = len(records.members) == 1
    if asked.teachers.average != "probabilities" and not alone:
        raise _refused(learned, f"teachers.average is {asked.teachers.average!r}, which takes all of a member's logits")
    if asked.student.from_members:
        raise _refused(learned, "student.init lists members, whose heads are solved for from all classes")
    equal = asked.teachers.weights is None and not any(one.weight for one in asked.teachers.members.values())
    if why := asked.method.beyond_samples(asked.options, alone or (equal and records.of_all)):
        raise _refused(learned, why)
    if not getattr(asked.options, "closed_form", None):
        return asked
    if given("method.closed-form"):
        raise _refused(learned, "method.closed-form is on, and least squares need the logits of all classes")
    progress.note("The records hold drawn classes alone, so no heads are solved for (method.closed-form).")
    return replace(asked, options=asked.options.model_copy(update={"closed_form": False}))


def _refused(learned: Learned, why: str) -> EdistillError:
    n = getattr(learned.splits["train"].records, "samples", 0)
    return EdistillError(
        f"The records of {learned.cache.folder} hold {n} drawn {learned.task.called} of {learned.task.width:,}, and "
        f"{why}. {DENSE}, or leave that out."
    )
