"""`predict` on a table: its columns are those of the training, by their names, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from tiny import refused

from ensemble_distill import cache_logits, export, predict, train
from ensemble_distill.data import open_source
from ensemble_distill.data.columns import Columns
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import InputColumns
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.serving.served import Served
from ensemble_distill.settings import settings_from

INPUTS = ["age", "kind", "fare"]
OWN = Columns(tuple(INPUTS), {"kind": ("a", "b")}, labels=("y",))
HEADER = ["age", "fare", "kind", "y"]
RNG = np.random.default_rng(0)
ROWS = [[f"{a:.3f}", f"{f:.3f}", "ab"[k % 2], str(k % 2)] for k, (a, f) in enumerate(RNG.normal(size=(24, 2)))]


def written(path: Path, header: list[str], rows: list[list[str]]) -> str:
    path.write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of a table, exported."""
    root = tmp_path_factory.mktemp("tables")
    (root / "model.py").write_text("from torch import nn\ndef body():\n    return nn.Linear(4, 3)\n")
    written(root / "people.csv", HEADER, ROWS)
    (root / "teachers").mkdir()
    for member in range(2):
        np.savez(root / f"teachers/m{member}.npz", train=RNG.normal(size=(24, 2)).astype(np.float32))
    columns = {"inputs": INPUTS, "categories": {"kind": ["a", "b"]}, "labels": ["y"]}
    values: dict[str, Any] = {
        "data": {"train": "people.csv", "columns": columns},
        "student": {"model": "model.py:body"},
        "train": {"epochs": 1, "batch-size": 8, "device": "cpu", "workers": 0},
    }
    settings = settings_from(values, root)
    cache_logits(settings)
    train(settings)
    export(settings, onnx=True)
    return next((root / "runs").glob("*/export/model.onnx"))


def probabilities(found: Any) -> list[float]:
    return [row["probability"] for row in found.rows]


def test_a_file_says_which_columns_it_takes(model: Path) -> None:
    card = Served(model).card
    assert card.features == ("age", "kind=a", "kind=b", "fare")
    assert card.columns == OWN.asked == InputColumns(tuple(INPUTS), {"kind": ("a", "b")})
    assert StudentConfig.load(model.parents[1]).provenance.columns == OWN.asked


def test_a_table_is_read_as_in_the_training_without_any_settings(model: Path, tmp_path: Path) -> None:
    x = open_source(model.parents[3] / "people.csv", columns=OWN).x  # type: ignore[attr-defined]
    np.savez(tmp_path / "arrays.npz", x=x)
    wanted = probabilities(predict(model, str(tmp_path / "arrays.npz")))
    moved = [HEADER.index(name) for name in ("kind", "y", "fare", "age")]
    tables = {
        "as it was": written(tmp_path / "same.csv", HEADER, ROWS),
        "in another order, with others beside them": written(
            tmp_path / "moved.csv",
            [HEADER[at] for at in moved] + ["who"],
            [[row[at] for at in moved] + ["?"] for row in ROWS],
        ),
        "without labels": written(tmp_path / "few.csv", HEADER[:3], [row[:3] for row in ROWS]),
        "with labels of no kind": written(tmp_path / "odd.csv", HEADER, [[*row[:3], "no idea"] for row in ROWS]),
    }
    for told, table in tables.items():
        assert_allclose(probabilities(predict(model, table)), wanted, rtol=1e-6, err_msg=told)
    unlike = Columns(("fare", "kind", "age"), {"kind": ("a", "b")})
    named = predict(model, tables["as it was"], columns=unlike)
    assert_allclose(probabilities(named), wanted, rtol=1e-6, err_msg="what the settings beside it say is of others")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("fare", "price"), ("no column 'fare'", "model.onnx was trained on it")),
        (("0.126", "much"), ("column age is 'much' at row 0", "model.onnx was trained on numbers")),
        (("0.126", ""), ("column age is '' at row 0",)),
        (("0.126", "nan"), ("column age is nan at row 0", "are not guessed")),
        (("a,0", "c,0"), ("column kind is 'c' at row 0", "the 2 that the student was trained with (a, b)")),
    ],
)
def test_others_are_refused_by_both_values(
    model: Path, tmp_path: Path, change: tuple[str, str], words: tuple[str, ...]
) -> None:
    path = tmp_path / "other.csv"
    written(path, HEADER, ROWS)
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(EdistillError) as error:
        predict(model, str(path))
    told = str(error.value)
    assert all(word in told for word in words)
    assert "data.columns" not in told, "what to fix is the table"


@pytest.mark.parametrize(
    "other",
    [
        Columns(("fare", "kind", "age"), {"kind": ("a", "b")}),
        Columns(tuple(INPUTS), {"kind": ("b", "a")}),
        Columns((), images="age"),
    ],
    ids=["order", "categories", "pictures"],
)
def test_settings_that_the_newest_run_was_not_trained_by_are_refused(model: Path, other: Columns) -> None:
    root = model.parents[3]
    with refused("was trained on age, kind=a, kind=b, fare", "data.columns"):
        predict(None, str(root / "people.csv"), runs=root / "runs", columns=other)
    found = predict(None, str(root / "people.csv"), runs=root / "runs", columns=OWN)
    assert len(found.rows) == len(ROWS)


def rewritten(model: Path, to: Path, columns: object) -> Path:
    """The file with other columns in its metadata, or none, as older ones have it."""
    graph = onnx.load(model)
    kept = [entry for entry in graph.metadata_props if not entry.key.endswith(".columns")]
    del graph.metadata_props[:]
    graph.metadata_props.extend(kept)
    if columns is not None:
        graph.metadata_props.add(key="edistill.columns", value=json.dumps(columns))
    onnx.save(graph, to)
    return to


def test_files_of_older_versions_take_columns_from_the_settings(model: Path, tmp_path: Path) -> None:
    older = rewritten(model, tmp_path / "older.onnx", None)
    table = str(model.parents[3] / "people.csv")
    wanted = probabilities(predict(model, table))
    assert probabilities(predict(older, table, columns=OWN, changed=True)) == wanted
    with refused("which of its columns are what", "data.columns"):
        predict(older, table, changed=True)
    with refused("was trained on age, kind=a, kind=b, fare", "and the table gives fare"):
        predict(older, table, columns=Columns(("fare", "kind", "age"), {"kind": ("a", "b")}), changed=True)


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({"inputs": ["age"], "categories": {}, "encoding": "one-hot"}, "features"),
        ({"inputs": [*INPUTS, "age"], "categories": {}, "encoding": "one-hot"}, "age"),
        ({"inputs": INPUTS, "categories": {"deck": ["a"]}, "encoding": "one-hot"}, "deck"),
        ({"inputs": INPUTS, "categories": {"kind": []}, "encoding": "one-hot"}, "kind"),
        ({"inputs": INPUTS, "categories": {}, "encoding": "guess"}, "guess"),
        ({"inputs": INPUTS, "images": "photo"}, "photo"),
        ({"inputs": INPUTS, "code": "x"}, "code"),
        (["age"], "columns"),
    ],
)
def test_damaged_columns_are_refused(model: Path, tmp_path: Path, columns: object, word: str) -> None:
    path = rewritten(model, tmp_path / "odd.onnx", columns)
    with refused("is damaged, or was not written by edistill", word):
        Served(path, changed=True)


def test_what_the_numbers_are_called() -> None:
    assert Columns(("kind",), {"kind": ("b", "a")}, "index").features == ("kind=b|a",)
