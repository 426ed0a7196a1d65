"""`calibration.json`: the correction of a run's predictions, and the weights it belongs to; read without torch."""

from __future__ import annotations

from pathlib import Path

from ensemble_distill import __version__
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Calibration, MadeFrom
from ensemble_distill.runs.folder import CALIBRATION, WEIGHTS, content_of
from ensemble_distill.runtime.files import sha256_file, write_whole
from ensemble_distill.runtime.seals import WRITTEN_BY, parse_sealed_json, sealed_json
from ensemble_distill.runtime.words import shell


def write_calibration(folder: Path, calibration: Calibration, weights: str) -> None:
    record = {WRITTEN_BY: __version__, "weights": weights, **calibration.to_json()}
    write_whole(folder / CALIBRATION, sealed_json(record))


def parse_calibration(content: bytes, folder: Path, weights: str) -> Calibration:
    """The calibration in the bytes of a run's `calibration.json`.

    Args:
        weights: the sha256 of the run's weights.

    Raises:
        EdistillError: the bytes are damaged, or belong to other weights.
    """
    path = folder / CALIBRATION
    again = f"Run edistill calibrate {shell(folder)}, or edistill calibrate {shell(folder)} --remove."
    try:
        record, _ = parse_sealed_json(content)
        if not isinstance(record, dict):
            raise ValueError("it is not a table")
        of, version = record.pop("weights", None), record.pop(WRITTEN_BY, None)
        if (of is None) != (version is None):  # version 0.1.0 wrote neither
            raise ValueError("it does not say of which weights it is")
        found = Calibration.from_json(record)
    except (ValueError, TypeError, AttributeError, EdistillError) as error:
        raise EdistillError(f"{path} is damaged ({error}). {again}") from None
    if of not in (None, weights):
        raise EdistillError(
            f"{path} is of weights {str(of)[:12]}…, and those of the run are {weights[:12]}…: it corrects another "
            f"student. {again}"
        )
    return found


def made_from_now(folder: Path) -> MadeFrom:
    """The current weights and calibration of the run in a folder; raises EdistillError as `parse_calibration` does."""
    weights = sha256_file(folder / WEIGHTS)
    calibrated = content_of(folder / CALIBRATION)
    return MadeFrom(weights, None if calibrated is None else parse_calibration(calibrated, folder, weights))
