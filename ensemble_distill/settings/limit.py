"""`limit`: the whole road on a few rows, in folders of its own, so that a trial is never taken for the real thing."""

from __future__ import annotations

from pathlib import Path

from ensemble_distill.settings.sections import Settings

EPOCHS = 5  # of a trial for which nobody says how long it is: a step at least of each of a method's stages


def mark(limit: int | str) -> str:
    """How the names of a trial's folders end."""
    return f"-limit-{limit}"


def limited(settings: Settings, beside: Path | None = None) -> Settings:
    """The settings as a limit changes them: another cache, other runs, and a training of a few steps.

    They are the same when they are read again, so that a run's own file replays it.

    Args:
        beside: the folder of the file that they are read from, where a command wrote it beside what it made: in a
            trial's folder it names folders of that trial.
    """
    if settings.limit is None:
        return settings
    of_trial = mark(settings.limit)
    output = {
        name: path if path.endswith(of_trial) or _within_trial(Path(path), of_trial, beside) else f"{path}{of_trial}"
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


def _within_trial(path: Path, of_trial: str, beside: Path | None) -> bool:
    """Whether a path lies in a folder of the trial that the file of the settings lies in, too."""
    if beside is None:
        return False
    folders = [folder for folder in path.parents if folder.name.endswith(of_trial)]
    return any(beside.absolute().is_relative_to(folder) for folder in folders)
