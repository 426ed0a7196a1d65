"""The folder of a run, and the student rebuilt from it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Calibration, MadeFrom
from ensemble_distill.runs.calibration import parse_calibration, write_calibration
from ensemble_distill.runs.config import Provenance, StudentConfig
from ensemble_distill.runs.folder import ARGS, CALIBRATION, CONFIG, WEIGHTS, code_at, content_of, go_on, train_again
from ensemble_distill.runs.rebuilding import rebuilt
from ensemble_distill.runs.trust import NOTHING, Trust
from ensemble_distill.runtime.factories import load_factory, portable
from ensemble_distill.runtime.files import remove_file, sha256_file, write_whole
from ensemble_distill.runtime.seals import VERSION, checked_metadata, seal_safetensors, sealed_metadata
from ensemble_distill.settings import OutputSettings, settings_here
from ensemble_distill.students.architecture import Architecture
from ensemble_distill.students.bodies import BodyFactory
from ensemble_distill.students.same_function import answers_to, fixed_input
from ensemble_distill.students.student import Student
from ensemble_distill.tasks.reference import Reference


@dataclass(frozen=True)
class Run:
    """A finished run as it was when opened: `student.safetensors`, `config.json` and perhaps `calibration.json`.

    Each file holds its own sha256, and config and calibration name the weights they belong to, so that everything read
    comes from one training even while another one replaces it.

    Attributes:
        weights: the sha256 of the weights file.
        calibrated: the bytes of the calibration; None if there is none.
    """

    folder: Path
    config: StudentConfig
    weights: str
    calibrated: bytes | None = None

    @classmethod
    def open(cls, folder: Path) -> Run:
        """The run in a folder; raises EdistillError if it is unfinished, or its config or weights are damaged."""
        refuse_unfinished(folder)
        config, of, sealed = StudentConfig.parse(content_of(folder / CONFIG) or b"", folder / CONFIG)
        content = content_of(folder / WEIGHTS) or b""
        try:
            version = checked_metadata(content).get(VERSION)
        except ValueError as error:
            raise _damaged(folder / WEIGHTS, error) from None
        weights = _sha256(content)
        if of != weights if sealed else version is not None:
            raise EdistillError(
                f"{CONFIG} and {WEIGHTS} in {folder} are not of one training: one of them was replaced. If a training "
                f"is replacing them just now, wait until it ends. Otherwise restore them, or run {train_again(folder)}."
            )
        return cls(folder, config, weights, content_of(folder / CALIBRATION))

    @classmethod
    def save(cls, folder: Path, config: StudentConfig, student: Student) -> Run:
        """Write a finished student; the weights come last, since their presence marks a finished run."""
        # cloned, since safetensors refuses tensors that share memory, as tied weights do
        tensors = {name: t.detach().cpu().clone().contiguous() for name, t in student.state_dict().items()}
        content = seal_safetensors(save(tensors, metadata=sealed_metadata()))
        weights = _sha256(*content)
        config = config.answering(answers_to(student, fixed_input(config.architecture)))
        write_whole(folder / CONFIG, config.content(weights))
        write_whole(folder / WEIGHTS, content)
        return cls(folder, config, weights, content_of(folder / CALIBRATION))

    @property
    def carries(self) -> Reference | None:
        """The calibration rows that an exported file carries; None for a run, which is asked instead."""
        return None

    @property
    def keeps(self) -> bool:
        """Whether results about the student are kept in its folder."""
        return True

    @property
    def architecture(self) -> Architecture:
        """The architecture of the student."""
        return self.config.architecture

    @property
    def provenance(self) -> Provenance:
        """Where the student came from."""
        return self.config.provenance

    @property
    def calibration(self) -> Calibration | None:
        """The calibration that `calibrate` left in the run, if any; raises EdistillError as `parse_calibration`
        does."""
        if self.calibrated is None:
            return None
        return parse_calibration(self.calibrated, self.folder, self.weights)

    @property
    def digest(self) -> str:
        """The sha256 that identifies its predictions: of weights and calibration, or of the weights alone without
        one."""
        if self.calibration is None:
            return self.weights
        return _sha256(f"{self.weights}/{json.dumps(self.calibration.to_json())}".encode())

    @property
    def made_from(self) -> MadeFrom:
        """What files made from this run record as their origin; raises EdistillError as `calibration` does."""
        return MadeFrom(self.weights, self.calibration)

    @property
    def whole(self) -> MadeFrom | None:
        """The student that this one equals up to rounding; None if it has less precision, or does not record its
        origin."""
        return self.made_from

    def refuse_other_weights(self) -> None:
        """Raise EdistillError if the folder no longer holds the weights that were opened.

        To be called with the folder locked, before anything about these weights is written there.
        """
        there = self.folder / WEIGHTS
        now = sha256_file(there) if there.is_file() else "none"
        if now != self.weights:
            raise self._replaced(now)

    def _replaced(self, now: str) -> EdistillError:
        return EdistillError(
            f"{self.folder} was replaced meanwhile: its weights were {self.weights[:12]}… and are {now[:12]}…. Nothing "
            "was written. Run the command again, once the training has ended."
        )

    def refuse_replaced(self) -> None:
        """Raise EdistillError if the folder no longer holds the weights or the calibration that were opened."""
        self.refuse_other_weights()
        if content_of(self.folder / CALIBRATION) != self.calibrated:
            raise EdistillError(
                f"{self.folder} was calibrated otherwise meanwhile. Nothing was written. Run the command again."
            )

    def keep_calibration(self, calibration: Calibration) -> None:
        """Write a calibration; an equal one leaves the file unchanged, including its time."""
        try:
            same = self.calibration == calibration and content_of(self.folder / CALIBRATION) == self.calibrated
        except EdistillError:
            same = False
        if not same:
            write_calibration(self.folder, calibration, self.weights)

    def forget_calibration(self) -> None:
        """Remove the calibration; raises EdistillError if there is none."""
        if not os.path.lexists(self.folder / CALIBRATION):
            raise EdistillError(f"{self.folder} is not calibrated. There is nothing to remove.")
        remove_file(self.folder / CALIBRATION, within=self.folder)

    def student(self, body: BodyFactory | None = None, *, trust: Trust = NOTHING, calibrated: bool = True) -> Student:
        """The trained student in eval mode, on the CPU.

        Args:
            body: the factory of its body, in place of the one that the run names.
            trust: whether code that the run names may be executed.
            calibrated: whether the student applies the run's calibration, if there is one.

        Raises:
            EdistillError: the code may not be executed, or is missing; the weights do not fit it, or were replaced.
        """
        calibration = self.calibration if calibrated else None
        if body is None and self.architecture.names_code:
            body = self._factory(trust)
        weights = self.folder / WEIGHTS
        content = content_of(weights) or b""
        if (now := _sha256(content)) != self.weights:
            raise self._replaced(now)
        otherwise = f"Put back the body it was trained with, or pass it: load_student({str(self.folder)!r}, body=...)."
        damaged = partial(_damaged, weights)
        student = rebuilt(self.config, content, weights, body, self.body_named, damaged, otherwise)
        student.calibration = calibration
        return student

    def with_heads(self, some: Sequence[int], trust: Trust) -> Student:
        """A student with some of the heads alone, in eval mode with fresh weights, to measure their cost.

        Raises:
            EdistillError: see `student`.
        """
        what = self.architecture
        count, bodies, compressed = len(some), what.bodies, what.compressed
        if what.own_body:  # a member that is left out needs no body
            bodies, compressed = count, tuple(compressed[at] for at in some if compressed)
        own = replace(what, heads=count, weights=None, bodies=bodies, compressed=compressed)
        with torch.random.fork_rng(devices=[]):
            return own.build(self._factory(trust) if what.names_code else None).eval().requires_grad_(False)

    @property
    def body_named(self) -> str:
        """What makes its body, for messages; a file's path, stored relative to the run, is made absolute."""
        model = self.architecture.model
        file, _, name = model.rpartition(":")
        # without resolving links: the path may come from someone else's run
        return f"{os.path.abspath(self.folder / file)}:{name}" if file.endswith(".py") else model  # noqa: PTH100

    def _factory(self, trust: Trust) -> BodyFactory:
        """The factory of the run's body, if it may be executed."""
        model = self.architecture.model
        file, _, name = model.rpartition(":")
        if not trust.covers(self.folder):
            own = trust.factory(model)
            if own is not None:
                return load_factory(own, "student.model")
            raise EdistillError(
                f"{self.folder} is none of your own runs, and its body is made by {self.body_named}, code that "
                "would run. If you trust where the run comes from, pass --trust-checkpoints (in Python trust=True). Or "
                f"name a {portable(model)} of your own in student.model (in Python body=...)."
            )
        if not file.endswith(".py"):
            return load_factory(model, "the student's body")
        there = code_at(self.folder, file)
        if not there.is_file():
            raise EdistillError(
                f"{self.folder} was trained with the body {there}:{name}, and that file is not there. Put it "
                f"back, or pass the factory in Python: load_student({str(self.folder)!r}, body={name})."
            )
        return load_factory(f"{there}:{name}", "the student's body")


def refuse_unfinished(folder: Path) -> None:
    """Raise EdistillError if a folder holds no finished run, or is a file."""
    if folder.is_file():
        raise EdistillError(
            f"{folder} is a file, and no run. Give a run's folder; an exported file is run by edistill predict and by "
            "ensemble_distill.predict."
        )
    missing = next((name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()), None)
    if missing is not None:
        begun, left = (folder / ARGS).is_file(), (folder / WEIGHTS).is_file()
        again = (train_again if left else go_on)(folder) if begun else "edistill train" + " --overwrite" * left
        what = "an unfinished run" if begun else "no run"
        raise EdistillError(f"{folder} holds {what} ({missing} is missing). Run {again}.")


def _damaged(path: Path, error: Exception) -> EdistillError:
    return EdistillError(f"{path} is damaged ({error}). Restore it, or run {train_again(path.parent)}.")


def _sha256(*content: bytes | memoryview) -> str:
    sha = hashlib.sha256()
    for part in content:
        sha.update(part)
    return sha.hexdigest()


def load_student(run: str | Path, body: BodyFactory | None = None, *, trust: bool = False) -> Student:
    """The trained student of a run folder, in eval mode on the CPU; it maps x (B, ...) to each head's numbers (B, H,
    W).

    `student.predictive(student(x)).summary()` gives the mean and the three uncertainties.

    A run may name code that makes its body. That code is executed if the run lies in the working folder's own runs,
    which are `output.runs` of its `edistill.toml`, or `runs`. Elsewhere, state that you trust it, or pass the body.

    Args:
        body: the factory of its body, in place of the one that the run names.
        trust: execute the code that the run names, wherever the run comes from.

    Raises:
        EdistillError: there is no finished run, or its body cannot be rebuilt or is made by code that may not run.
    """
    found = Run.open(Path(run))
    if trust or body is not None or not found.architecture.names_code:
        return found.student(body, trust=Trust(everything=trust))
    here = settings_here()
    output = OutputSettings.model_validate({}) if here is None else here.output
    return found.student(trust=Trust(Path(output.runs)))
