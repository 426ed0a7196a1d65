"""An exported `.safetensors`: weights and, in the metadata, everything else about a student except the code of its
body."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import MadeFrom
from ensemble_distill.predictive.outputs import named_outputs
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.exports import REFERENCE, STUDENT, damaged_export
from ensemble_distill.runs.folder import MADE_FROM, code_at, export_again, run_of
from ensemble_distill.runs.rebuilding import rebuilt
from ensemble_distill.runs.trust import NOTHING, Trust
from ensemble_distill.runtime.factories import load_factory, portable
from ensemble_distill.runtime.files import read_whole
from ensemble_distill.runtime.jsons import parse_json
from ensemble_distill.runtime.seals import VERSION, WRITTEN_BY, checked_metadata
from ensemble_distill.serving.by_torch import ByTorch
from ensemble_distill.serving.card_of import card_of
from ensemble_distill.students.bodies import BodyFactory
from ensemble_distill.students.student import Student
from ensemble_distill.tasks.reference import Reference


class WeightsFile(ByTorch):
    """The weights of a student that edistill exported.

    Attributes:
        config: the student's architecture and provenance.
    """

    def __init__(self, path: Path, trust: Trust = NOTHING) -> None:
        """Open an exported file.

        Args:
            trust: whose code may make a body that is not one of timm's.

        Raises:
            EdistillError: edistill did not write it, or it is damaged.
        """
        self.path, self.trust = path, trust
        try:
            self._content = read_whole(path)
            metadata = checked_metadata(self._content)
            if STUDENT not in metadata:
                raise EdistillError(
                    f"{path} was not written by edistill export: its metadata hold no {STUDENT!r}, so its "
                    "architecture, preprocessing and classes are unknown. Give a file that edistill export "
                    "--safetensors wrote; weights alone can be a member (teachers.path)."
                )
            record = parse_json(metadata[STUDENT])
            self.config: StudentConfig = StudentConfig.from_json(record)
            said = {key: parse_json(metadata[key]) for key in (MADE_FROM, REFERENCE) if key in metadata}
            made = MadeFrom.from_json(said[MADE_FROM]) if MADE_FROM in said else None
            known = Reference.from_json(said[REFERENCE]) if REFERENCE in said else None
            version = metadata.get(VERSION) or record.get(WRITTEN_BY, "0.1.0")
            self.card = card_of(self.config, made, known, version)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise damaged_export(path, error) from None

    def module(self, trust: Trust = NOTHING) -> Student:
        """The trained student, with the calibration of its run.

        Raises:
            EdistillError: the code of its body is missing or may not be executed; the weights do not fit it.
        """
        what = self.config.architecture
        body = self._factory(trust) if what.names_code else None
        otherwise = f"Use the body it was trained with, or export the run again: {export_again(self.path)}."
        damaged = partial(damaged_export, self.path)
        student = rebuilt(self.config, self._content, self.path, body, portable(what.model), damaged, otherwise)
        made = self.card.made_from
        student.calibration = None if made is None else made.calibration
        return student

    def said(self, module: nn.Module, x: Tensor) -> dict[str, Tensor]:
        student: Any = module
        return named_outputs(student.predictive(student(x)))

    def _factory(self, trust: Trust) -> BodyFactory:
        """The factory of its body, if it exists and may be executed."""
        model = self.config.architecture.model
        run, named = run_of(self.path), portable(model)
        # for a run's export the path that the run names, for a file on its own one beside it
        home = self.path.parent if run is None else run
        place, _, name = (named if run is None else model).rpartition(":")
        is_file = place.endswith(".py")
        there = code_at(home, place)
        if trust.covers(home) and (there.is_file() or not is_file):
            return load_factory(f"{there}:{name}" if is_file else model, "the student's body")
        if (own := trust.factory(model)) is not None:
            return load_factory(own, "student.model")
        file, put = Path(place).name, ""
        if is_file and not there.is_file():
            put = f"put {file} {f'beside {self.path.name}' if run is None else f'at {there}'} and "
        raise EdistillError(
            f"{self.path} holds the weights of a student, and not the code of its body, {named}. Set student.model = "
            f'"{named}" in an edistill.toml here{f", with {file} beside it" if is_file else ""}. Or {put}pass '
            "--trust-checkpoints, which runs that code. Files of edistill export --onnx and --program need none."
        )
