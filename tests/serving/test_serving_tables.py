"""`predict` on a table: its columns are those of the training, in their order, or it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tiny import refused

from ensemble_distill import cache_logits, export, predict, train
from ensemble_distill.data import open_source
from ensemble_distill.data.columns import Columns
from ensemble_distill.serving.served import Served
from ensemble_distill.settings import settings_from

INPUTS = ["age", "kind", "fare"]


def test_a_table_is_read_as_in_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text("from torch import nn\ndef body():\n    return nn.Linear(4, 3)\n")
    rng = np.random.default_rng(0)
    lines = [f"{a:.3f},{f:.3f},{'ab'[k % 2]},{k % 2}" for k, (a, f) in enumerate(rng.normal(size=(24, 2)))]
    (tmp_path / "people.csv").write_text("\n".join(["age,fare,kind,y", *lines]) + "\n")
    (tmp_path / "teachers").mkdir()
    for member in range(2):
        np.savez(tmp_path / f"teachers/m{member}.npz", train=rng.normal(size=(24, 2)).astype(np.float32))
    columns = {"inputs": INPUTS, "categories": {"kind": ["a", "b"]}, "labels": ["y"]}
    values: dict[str, Any] = {
        "data": {"train": "people.csv", "columns": columns},
        "student": {"model": "model.py:body"},
        "train": {"epochs": 1, "batch-size": 8, "device": "cpu", "workers": 0},
    }
    settings = settings_from(values, tmp_path)
    cache_logits(settings)
    train(settings)
    export(settings, onnx=True)
    model = next((tmp_path / "runs").glob("*/export/model.onnx"))
    assert Served(model).card.features == ("age", "kind=a", "kind=b", "fare")

    own = Columns(tuple(INPUTS), {"kind": ("a", "b")}, labels=("y",))
    x = open_source(tmp_path / "people.csv", columns=own).x  # type: ignore[attr-defined]
    np.savez(tmp_path / "arrays.npz", x=x)
    by_table, by_array = (predict(model, str(tmp_path / name), columns=own) for name in ("people.csv", "arrays.npz"))
    told = [[row["probability"] for row in found.rows] for found in (by_table, by_array)]
    assert_allclose(told[0], told[1], rtol=1e-6)
    for other in (
        Columns(("fare", "kind", "age"), {"kind": ("a", "b")}),
        Columns(tuple(INPUTS), {"kind": ("b", "a")}),
    ):
        with refused("was trained on age, kind=a, kind=b, fare, and the table gives", "data.columns"):
            predict(model, str(tmp_path / "people.csv"), columns=other)
    assert Columns(("kind",), {"kind": ("b", "a")}, "index").features == ("kind=b|a",)
