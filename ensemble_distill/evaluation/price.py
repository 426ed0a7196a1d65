"""What exported files of lower precision lose and gain beside the float32 file: quality, worth, time and bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ensemble_distill.data.batches import plain_batches
from ensemble_distill.data.rows import first_input
from ensemble_distill.data.source import Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.comparable import open_for
from ensemble_distill.evaluation.cost import Elsewhere, costs
from ensemble_distill.evaluation.evaluating import measure
from ensemble_distill.evaluation.exported import ExportedRun
from ensemble_distill.evaluation.given import Given
from ensemble_distill.evaluation.names import STUDENT
from ensemble_distill.evaluation.rows import Answers, prediction_rows
from ensemble_distill.evaluation.tables import WORTH, Table
from ensemble_distill.runs.folder import FORMATS, ONNX, RAW
from ensemble_distill.runtime.grown import Grown, GrownValues
from ensemble_distill.runtime.numbers import number
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.serving.exported_file import Outputs
from ensemble_distill.serving.served import Served
from ensemble_distill.tasks.figures import Figures

SPLIT = "validation"
MOST_LOSS = 0.01  # nats per answer
MOST_SHIFT = 0.1  # share of the model uncertainty
UNCERTAIN = "model_uncertainty"
BEFORE = {raw: name for name, raw in RAW.items()}  # for a graph that takes raw pixels, the one that does not


@dataclass(frozen=True)
class Price:
    """One file on the validation rows, beside the float32 file.

    Attributes:
        file: the file's name.
        rows: the number of rows.
        figures: the figures of its predictions, as in `evaluate`; without labels, those that need none.
        worth: its worth in prediction and in uncertainty, in members; None if no members are at hand.
        latency_ms: the latency of one row in onnxruntime, on one thread.
        bytes: the file's size.
        apart: for each output, the largest difference from the float32 file's.
        kl: KL(float32 file ‖ this file) of the pooled predictions in nats, averaged over answers.
        shift: Σ|MU − MU_float32| ÷ Σ MU_float32 of the model uncertainty; None for a single head.
    """

    file: str
    rows: int
    figures: Figures
    worth: Mapping[str, float | None]
    latency_ms: float
    bytes: int
    apart: Mapping[str, float]
    kl: float
    shift: float | None

    def loss(self, beside: Price) -> float:
        """By how many nats its NLL is higher, or `kl` if that is larger or there are no labels."""
        nll, before = self.figures.get("nll"), beside.figures.get("nll")
        if nll is None or before is None:
            return self.kl
        return float(np.maximum(nll - before, self.kl))  # NaN if either is

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "worth": dict(self.worth), "apart": dict(self.apart)}

    def to_metadata(self) -> dict[str, Any]:
        """The record that the file itself holds, without its name, its size and its latency on this machine."""
        return {name: value for name, value in self.to_json().items() if name not in ("file", "latency_ms", "bytes")}


def price_table(prices: Sequence[Price]) -> Table:
    """A table with a column for each file, the float32 one first."""
    first = prices[0]
    loss = [number(price.loss(first)) for price in prices]
    sections = {
        "quality": [
            [name.replace("_", " "), *(number(price.figures.get(name)) for price in prices)] for name in first.figures
        ],
        WORTH: [
            [f"in {name}", *("–" if (of := price.worth[name]) is None else f"{of:.1f}" for price in prices)]
            for name in first.worth
        ],
        "cost": [
            ["latency, one row, one thread (ms)", *(number(price.latency_ms) for price in prices)],
            ["bytes", *(f"{price.bytes:,}" for price in prices)],
        ],
        "beside the float32 file": [
            ["loss, nats", "–", *loss[1:]],
            ["model uncertainty moved", "–", *(_share(price.shift) for price in prices[1:])],
            *(
                [f"largest difference of {name}", "–", *(number(price.apart[name]) for price in prices[1:])]
                for name in first.apart
            ),
        ],
    }
    caption = (
        f"loss: by how much the NLL is higher, or KL from the float32 file where that is more; {MOST_LOSS} at most, "
        f"and {MOST_SHIFT:.0%} of the model uncertainty, without --force.",
    )
    return Table(f"on {first.rows:,} rows of {SPLIT}", ("", *(price.file for price in prices)), sections, caption)


def _share(shift: float | None) -> str:
    return "–" if shift is None else f"{shift:.1%}"


def refuse_dear(price: Price, beside: Price, flag: str) -> None:
    """Raise EdistillError if a file loses more than `MOST_LOSS` or `MOST_SHIFT`."""
    loss, shift = price.loss(beside), price.shift or 0.0
    cheap = loss <= MOST_LOSS  # False for NaN
    told = (
        f"{shift:.0%} of the model uncertainty, and {MOST_SHIFT:.0%} is the most"
        if cheap
        else f"{loss:.4f} nats an answer, and {MOST_LOSS} is the most"
    )
    if not (cheap and shift <= MOST_SHIFT):
        raise EdistillError(
            f"{flag} loses {told}, on {price.rows:,} rows of {SPLIT}. Leave {flag} out, or pass --force to write "
            "it all the same."
        )


class _Graph(Elsewhere):
    """The graph alone, to be timed, with a row in the form that it takes, bytes if it takes those."""

    def __init__(self, file: ExportedRun, x: torch.Tensor) -> None:
        super().__init__()
        assert isinstance(file.served, Served)
        self.session, self.given = file.served.session, file.served.given(x.numpy())

    def forward(self, x: torch.Tensor) -> Any:
        return self.session.run(None, self.given)


def prices(given: Given, files: Sequence[ExportedRun]) -> list[Price]:
    """The price of each file; the first is the float32 one.

    Raises:
        EdistillError: there are no validation rows, they do not fit the student, or a file's outputs are not finite.
    """
    if SPLIT not in given.splits:
        raise EdistillError("What less precision costs is measured on validation rows. Set data.validation.")
    source = open_for(files, given.splits, SPLIT)
    found = _asked(given, files, source)
    worths = _worths(given, files, source)
    inputs = torch.from_numpy(first_input(source, files[0].architecture.preprocessing))
    timed = costs([([_Graph(file, inputs)], [inputs]) for file in files])
    return [
        replace(one, worth=worth, latency_ms=cost.latency_ms)
        for one, worth, cost in zip(found, worths, timed, strict=True)
    ]


@torch.no_grad()
def _asked(given: Given, files: Sequence[ExportedRun], source: Source) -> list[Price]:
    first, task = files[0], files[0].architecture.task
    students = [file.student() for file in files]
    kept, kls = [GrownValues() for _ in files], [Grown() for _ in files]
    apart: list[dict[str, float]] = [{} for _ in files]
    given.progress.start(f"comparing on {SPLIT}", total=len(source), unit="rows")
    for rows, (x,) in plain_batches(source, [first.architecture.preprocessing], given.workers, torch.device("cpu")):
        answers = Answers(task, source.labels, rows)
        outputs = [file.served.run(x.numpy()) for file in files]
        for file, said_by in zip(files, outputs, strict=True):
            _refuse_not_finite(said_by, file.folder.name, rows)
        said = [one.predictive(answers.of(one(x).double())) for one in students]
        for at, predictive in enumerate(said):
            kept[at].add(prediction_rows(task, predictive, answers.labels))
            kls[at].add(said[0].pooled().kl(predictive.pooled())[:, 0])
            for name, values in outputs[at].items():
                far = float(np.abs(values - outputs[0][name]).max())
                apart[at][name] = max(apart[at].get(name, 0.0), far)
        given.progress.advance(len(rows))
    given.progress.finish()
    each = [grown.all() for grown in kept]
    return [
        Price(
            file=file.folder.name,
            rows=len(source),
            figures={name: value for name, value in task.figures(rows).items() if name in task.figures_shown},
            worth={},
            latency_ms=0.0,
            bytes=file.folder.stat().st_size,
            apart=far,
            kl=float(kl.all().mean()),
            shift=_shift(each[0], rows),
        )
        for file, rows, kl, far in zip(files, each, kls, apart, strict=True)
    ]


def _refuse_not_finite(outputs: Outputs, file: str, rows: range) -> None:
    for name, values in outputs.items():
        finite = np.isfinite(values).reshape(len(values), -1).all(1)
        if not finite.all():
            flag = FORMATS[BEFORE.get(file, file)]
            remedy = "Train the student again." if flag == FORMATS[ONNX] else f"Leave {flag} out."
            raise EdistillError(
                f"{file} says a {name} of row {rows[int(np.argmin(finite))]} of {SPLIT} that is not finite, so nothing "
                f"was written in less precision. {remedy}"
            )


def _shift(before: Mapping[str, Any], now: Mapping[str, Any]) -> float | None:
    if UNCERTAIN not in before:
        return None
    whole = float(before[UNCERTAIN].sum())
    return float(np.abs(now[UNCERTAIN] - before[UNCERTAIN]).sum()) / whole if whole > 0 else 0.0


def _worths(given: Given, files: Sequence[ExportedRun], source: Source) -> list[Mapping[str, float | None]]:
    """Each file's worth in prediction and in uncertainty; None, with a message, if the members cannot be evaluated."""
    nothing: Mapping[str, float | None] = {"prediction": None, "uncertainty": None}
    try:
        measured = measure(replace(given, splits={SPLIT: source}, progress=Silent()), files, {}, SPLIT, shifts=False)
        found = [measured.evaluation(at, file.folder.name, calibrated=False).worth for at, file in enumerate(files)]
    except EdistillError as error:
        given.progress.note(f"What the files are worth in members is not known. {error}")
        return [nothing for _ in files]
    students = [None if worth is None else worth[STUDENT] for worth in found]
    return [
        nothing if one is None else {"prediction": one.prediction, "uncertainty": one.uncertainty} for one in students
    ]
