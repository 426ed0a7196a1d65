"""`limit`: the whole road on a few rows, in folders of its own, so that a trial is never taken for the real thing."""

from __future__ import annotations

from ensemble_distill.settings.sections import Settings

EPOCHS = 5  # of a trial for which nobody says how long it is: a step at least of each of a method's stages


def limited(settings: Settings) -> Settings:
    """The settings as a limit changes them: another cache, other runs, and a training of a few steps.

    They are the same when they are read again, so that a run's own file replays it.
    """
    if settings.limit is None:
        return settings
    mark = f"-limit-{settings.limit}"
    output = {
        name: path if path.endswith(mark) else f"{path}{mark}"
        for name in ("cache", "runs")
        if (path := getattr(settings.output, name))
    }
    short = settings.train.epochs is None and settings.train.effort == "default"
    train = {"epochs": EPOCHS} if short else {}
    return settings.model_copy(
        update={
            "output": settings.output.model_copy(update=output),
            "train": settings.train.model_copy(update=train),
        }
    )
