"""What the settings of a chain say of each of its generations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ensemble_distill.runs.folder import CACHES, generation_name
from ensemble_distill.runtime.keys import uniforms
from ensemble_distill.settings import Settings, TeacherSettings

# what a later generation's file still says of the ensemble: a run, which knows what it returns, is not asked by these
OF_THE_ENSEMBLE = frozenset({"output", "standardized", "variance", "inputs"})


def generation_settings(settings: Settings, folder: Path, generation: int) -> Settings:
    """The settings of one generation, a run by itself: its own seed, and from the second on the generation before as
    its teacher.

    A start of the body from a member, compressed or not, is the first one's alone: the later ones begin at random, as
    in the paper.
    """
    seed = int(uniforms(1, "generation", settings.train.seed, generation)[0] * 2**31)
    train = {"generations": None, "seed": seed}
    output = {"runs": str(folder), "name": generation_name(generation)}
    if generation == 1:
        return _replaced(settings, train=train, output=output)
    before = generation_name(generation - 1)
    return _replaced(
        settings,
        train={**train, "teacher": None},
        output={**output, "cache": str(folder / CACHES / before)},
        teachers={**_of_one_run(), "path": str(folder / before)},
        # what the first took from the teacher is in each student under the student's own names
        student={"init": None, "compress": None, "share": {name: name for name in settings.student.share}},
    )


def _of_one_run() -> dict[str, object]:
    """`[teachers]` without what chooses, builds or weighs the members of the ensemble: the default of each such key."""
    fields = TeacherSettings.model_fields
    return {name: fields[name].get_default(call_default_factory=True) for name in fields if name not in OF_THE_ENSEMBLE}


def _replaced(settings: Settings, **tables: Mapping[str, object]) -> Settings:
    changed = {name: getattr(settings, name).model_copy(update=values) for name, values in tables.items()}
    return settings.model_copy(update=changed)
