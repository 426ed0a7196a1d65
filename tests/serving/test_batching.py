"""How many rows `predict` asks about at once: it changes what memory is taken, and nothing that is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tiny import refused
from typer.testing import CliRunner

from ensemble_distill.cli.app import app
from ensemble_distill.serving.batching import BUDGET, MOST, rows_at_once
from ensemble_distill.serving.served import Served
from ensemble_distill.workflows.predict import predict

MODEL = "runs/hydra-s0/export/model.onnx"


class Heard:
    """A listener that keeps what it is told of progress."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def start(self, task: str, total: int, unit: str, done: int = 0) -> None:
        self.told.append((task, total, unit))

    def advance(self, count: int = 1, facts: object = None) -> None:
        self.told.append(count)

    def finish(self) -> None:
        self.told.append("end")

    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


def test_as_many_rows_as_the_budget_holds() -> None:
    picture = [(["batch", 3, 224, 224], 4), (["batch", 1000], 4), (["batch", 10, 1000], 4)]
    assert rows_at_once(picture, 224) == BUDGET // (4 * (3 * 224 * 224 + 11 * 1000))
    assert rows_at_once([(["batch", "length"], 8), (["batch", "length", 50_000], 4)], 2048) == 1, "never none"
    assert rows_at_once([(["batch", 10], 4)], 1) == MOST


def test_the_shapes_are_those_of_the_graph(digits_session: Path) -> None:
    served = Served(digits_session / MODEL)
    row = 4 * (64 + 10 + 80 + 3)  # the image, logits, those of each head, three uncertainties
    assert served.at_once == min(MOST, BUDGET // row)


@pytest.mark.parametrize("batch_size", [1, 7, 400, 5000])
def test_no_batch_size_changes_what_is_said_and_progress_counts_every_row(
    digits_session: Path, batch_size: int
) -> None:
    data, heard = str(digits_session / "data/test.npz"), Heard()
    wanted = predict(digits_session / MODEL, data).rows
    found = predict(digits_session / MODEL, data, heard, batch_size=batch_size).rows
    assert [row["row"] for row in found] == [row["row"] for row in wanted]
    for name in ("probability", "model_uncertainty"):
        assert_allclose([row[name] for row in found], [row[name] for row in wanted], rtol=1e-3, atol=1e-6)
    rows = len(wanted)
    if batch_size >= rows:
        assert heard.told == [], "a single batch has no progress"
    else:
        whole, rest = divmod(rows, batch_size)
        assert heard.told == [("predicting", rows, "rows"), *[batch_size] * whole, *[rest] * (rest > 0), "end"]


def test_a_batch_without_rows_is_refused(digits_session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(digits_session)
    for rows in ("0", "-3"):
        done = CliRunner().invoke(app, ["predict", "data/test.npz", "-m", MODEL, "--batch-size", rows])
        assert done.exit_code == 2
        assert rows in done.stderr
    with refused("--batch-size", "0"):
        predict(MODEL, "data/test.npz", batch_size=0)
    assert np.load("data/test.npz")["x"].shape[0] == 400, "which were read by all the above"
