"""Derive the settings of each generation from those of its chain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ensemble_distill.runs.folder import CACHES, generation_name
from ensemble_distill.runtime.keys import uniforms
from ensemble_distill.settings import Settings, TeacherSettings

# keys of the ensemble that stay in later generations' settings: they do not apply to a run, which knows its output
OF_THE_ENSEMBLE = frozenset({"output", "standardized", "variance", "inputs"})


def generation_settings(settings: Settings, folder: Path, generation: int) -> Settings:
    """The settings of one generation as a run of its own.

    It has its own seed and, from the second generation on, the generation before as its teacher. Only the first may
    start its body from a member, compressed or not: later ones start at random, as in Born-Again Neural Networks
    (Furlanello et al. 2018).
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
        # modules that the first took from its teacher are in each student under the student's names for them
        student={"init": None, "compress": None, "share": {name: name for name in settings.student.share}},
    )


def _of_one_run() -> dict[str, object]:
    """The defaults of all `[teachers]` keys that choose, build or weigh the members of the ensemble."""
    fields = TeacherSettings.model_fields
    return {name: fields[name].get_default(call_default_factory=True) for name in fields if name not in OF_THE_ENSEMBLE}


def _replaced(settings: Settings, **tables: Mapping[str, object]) -> Settings:
    changed = {name: getattr(settings, name).model_copy(update=values) for name, values in tables.items()}
    return settings.model_copy(update=changed)
