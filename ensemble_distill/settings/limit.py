"""`limit`: the whole workflow on a few rows, in folders of its own, so that a trial is never mistaken for a real
run."""

from __future__ import annotations

from pathlib import Path

from ensemble_distill.settings.sections import Settings

EPOCHS = 5  # of a trial without a given length: at least one step for each stage of a method


def mark(limit: int | str) -> str:
    """The suffix of the names of a trial's folders."""
    return f"-limit-{limit}"


def limited(settings: Settings, beside: Path | None = None) -> Settings:
    """The settings as a limit changes them: another cache, other runs, and a short training.

    Applying it again changes nothing, so that a run's own file replays it.

    Args:
        beside: the folder of a settings file that a command wrote beside its output; its paths into folders of the same
            trial stay unchanged.
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
    """Whether a path lies in the trial's folder that also contains the settings file."""
    if beside is None:
        return False
    folders = [folder for folder in path.parents if folder.name.endswith(of_trial)]
    return any(beside.absolute().is_relative_to(folder) for folder in folders)
