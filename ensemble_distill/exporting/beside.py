"""The files beside exported ones: the model card, and the settings that made the student or ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ensemble_distill.errors import EdistillError
from ensemble_distill.exporting.model_card import MARK, README, About, model_card
from ensemble_distill.runs.args import read_args, settings_content
from ensemble_distill.runs.evaluations import evaluation_of
from ensemble_distill.runs.exports import exports_of, stale_exports
from ensemble_distill.runs.folder import ARGS
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.files import write_whole
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.settings import FILE_NAME

OURS = {README: MARK.encode(), FILE_NAME: b"# edistill "}  # the beginning of those that edistill wrote


def write_card_of_run(run: Run, folder: Path, progress: Progress) -> tuple[Path, ...]:
    """Write the model card of a run's exported files, and the run's settings, to their folder.

    Args:
        progress: gets a warning for each file that edistill did not write, which is kept.
    """
    settings = _settings_of(run.folder, folder, progress)
    about = About(
        name=run.folder.name,
        task=run.architecture.task,
        method=run.provenance.method,
        members=run.provenance.members,
        trained_on=run.provenance.trained_on,
        weights=run.weights,
        calibration=run.calibration,
        evaluation=evaluation_of(run.folder, {"student": run.made_from}),
        settings=None if settings is None else FILE_NAME,
    )
    stale = stale_exports(run.folder)
    files = [file for file in exports_of(run.folder) if file not in stale]
    return write_card(about, files, folder, settings, progress)


def write_card(
    about: About, files: Sequence[Path], folder: Path, settings: bytes | None, progress: Progress
) -> tuple[Path, ...]:
    """Write a model card and settings to the folder of exported files; see `write_card_of_run`."""
    texts = {README: model_card(about, files).encode()}
    texts |= {} if settings is None else {FILE_NAME: settings}
    return tuple(_written(folder, texts, progress))


def _written(folder: Path, texts: Mapping[str, bytes], progress: Progress) -> list[Path]:
    written = []
    for name, content in texts.items():
        path = folder / name
        if path.is_file() and not _begins(path, OURS[name]):
            progress.warn(
                f"{path} is not what edistill export wrote, so it stays as it is. Move it away for a new one."
            )
        else:
            write_whole(path, content, within=folder)
            written.append(path)
    return written


def _begins(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(mark)) == mark


def _settings_of(run: Path, folder: Path, progress: Progress) -> bytes | None:
    """The bytes of a run's settings file for `folder`; None if the run has none that can be read."""
    if not (run / ARGS).is_file():
        return None
    try:
        return settings_content(read_args(run), folder)
    except EdistillError as error:
        progress.warn(f"{folder / FILE_NAME} is not written. {error}")
        return None
