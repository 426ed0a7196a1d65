"""Members whose outputs are ready: read by split and row, and refused by name where they are not of these rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from PIL import Image
from teachers_helpers import context
from tiny import refused

from ensemble_distill import cache_logits, evaluate, export, train
from ensemble_distill.cache.reader import Cache
from ensemble_distill.settings import settings_from
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.tasks.language_modelling import LanguageModelling
from ensemble_distill.teachers import open_teachers, ready_made
from ensemble_distill.teachers.answering import Answering
from ensemble_distill.teachers.teacher import Context
from ensemble_distill.workspace import Workspace

Z = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
FILES = ("b.png", "a.png", "d.png", "c.png", "e.png")


class Rows:
    def __init__(self, names: Sequence[str] = FILES) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        return self.names[row]


def met(path: Path, using: Context | None = None, split: str = "train", rows: Rows | None = None) -> Answering:
    asked = ready_made.load(path, using or context()).open(Classification)
    asked.meets(split, rows or Rows())
    return asked


def said(path: Path, using: Context | None = None, split: str = "train") -> NDArray[np.float32]:
    return met(path, using, split).answers(split, range(5), None)


def written(folder: Path, name: str, **arrays: Any) -> Path:
    folder.mkdir(exist_ok=True)
    np.savez(folder / name, **arrays)
    return folder / name


def test_an_archive_has_an_array_a_split(tmp_path: Path) -> None:
    path = written(tmp_path, "m.npz", **{"train": Z, "ood/far": Z + 1, "classes": np.array(["c", "a", "b"])})
    assert ready_made.claims(path)
    assert_array_equal(said(path), Z)
    assert_array_equal(said(path, context(("a", "b", "c")), "ood/far"), (Z + 1)[:, [1, 2, 0]])
    assert_array_equal(met(path).answers("train", [3, 1], None), Z[[3, 1]])


@pytest.mark.parametrize("ending", ["npy", "csv", "parquet"])
def test_a_folder_has_a_file_a_split(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "m"
    (folder / "ood").mkdir(parents=True)
    for file, z in (("train", Z), ("ood/far", Z + 1)):
        save(folder / f"{file}.{ending}", z, "row", range(5))
    assert ready_made.claims(folder)
    assert_allclose(said(folder), Z, rtol=1e-6)
    assert_allclose(said(folder, split="ood/far"), Z + 1, rtol=1e-6)
    before = ready_made.load(folder, context()).member.sha256
    save(folder / f"ood/far.{ending}", Z, "row", range(5))
    assert ready_made.load(folder, context()).member.sha256 != before


def save(path: Path, z: NDArray[Any], key: str, keys: Sequence[Any], names: Sequence[str] = ("0", "1", "2")) -> None:
    if path.suffix == ".npy":
        np.save(path, z)
        return
    columns = {key: list(keys), **{name: z[:, k].tolist() for k, name in enumerate(names)}}
    if path.suffix == ".csv":
        lines = [",".join(columns), *(",".join(map(str, line)) for line in zip(*columns.values(), strict=True))]
        path.write_text("\n".join(lines))
        return
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet
    from pyarrow import table

    parquet.write_table(table(columns), path)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_go_by_their_key_and_their_columns_names(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    file = folder / f"train.{ending}"
    save(file, Z, "row", [4, 0, 2, 1, 3])
    assert_allclose(said(folder), Z[[1, 3, 2, 4, 0]], rtol=1e-6)
    save(file, Z, "file", ["a.png", "b.png", "c.png", "d.png", "e.png"], ("cat", "dog", "ape"))
    assert_allclose(said(folder, context(("ape", "cat", "dog"))), Z[[1, 0, 3, 2, 4]][:, [2, 0, 1]], rtol=1e-6)
    with refused("m's columns names 3 classes", "only there: cat"):
        ready_made.load(folder, context(("ape", "cow", "dog")))
    save(file, Z, "file", ["a.png", "b.png", "c.png", "x.png", "y.png"])
    with refused(f"train.{ending} has no outputs of 2 of 5 rows of train: d.png, e.png"):
        met(folder)
    save(file, Z, "row", [0, 1, 2, 3, 3])
    with refused("has row 3 twice"):
        met(folder)
    save(file, Z[:4], "row", range(4))
    with refused("has outputs of 4 rows of train, and the data has 5"):
        met(folder)


def test_columns_called_by_numbers_go_by_them_where_the_data_has_no_names(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/train.csv").write_text("file,1,2,0\n" + "".join(f"{file},10,20,0\n" for file in FILES))
    assert_array_equal(said(tmp_path / "m"), [[0, 10, 20]] * 5)
    (tmp_path / "m/train.csv").write_text("file,1,1,0\n" + "".join(f"{file},10,20,0\n" for file in FILES))
    with refused("train.csv has the column '1' 2 times"):
        met(tmp_path / "m")


def test_targets_in_another_order_than_the_data_s_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/train.csv").write_text("row,price,weight\n0,1,2\n")
    settings = context(output="mean", variance=1).settings
    using = Context(settings, names=("price", "weight"), task="regression")
    assert ready_made.load(tmp_path / "m", using).member.class_order is None
    with refused("m's columns are price, weight, and the data's targets are weight, price"):
        ready_made.load(tmp_path / "m", Context(settings, names=("weight", "price"), task="regression"))


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    np.save(tmp_path / "m/train.npy", Z)
    (tmp_path / "m/train.csv").write_text("row,0,1,2\n0,1,2,3\n")
    with refused("has train.npy and train.csv, both of train"):
        met(tmp_path / "m")


def test_of_a_limited_split_its_rows_are_found_by_their_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, "m.npz", train=Z)
    asked = met(path, rows=Rows(("row 0", "row 2", "row 4")))
    assert_array_equal(asked.answers("train", range(3), None), Z[[0, 2, 4]])
    for other in (("row 0", "row 1", "row 2"), ("a", "b", "row 5"), FILES[:3]):
        with refused("m.npz has outputs of 5 rows of train, and the data has 3"):
            met(path, rows=Rows(other))


@pytest.mark.parametrize("data", ["arrays", "rows", "all", "images", "table"])
@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_a_limit_takes_the_outputs_of_the_rows_that_it_takes(tmp_path: Path, data: str, kind: str) -> None:
    """A member says of a row what stands in the row, so that it is seen which row an output is of."""
    rng = np.random.default_rng(0)
    x, y = np.arange(40, dtype=np.float32)[:, None] / 255, np.tile([0, 1], 20)
    splits: dict[str, Any] = {"train": "d.npz"}
    np.savez(tmp_path / "d.npz", x=x, y=y)
    if data == "rows":
        np.save(tmp_path / "r.npy", rng.permutation(40)[:30])
        splits = {"train": {"source": "d.npz", "rows": "r.npy"}}
    elif data == "all":
        splits = {"all": "d.npz", "split": {"validation": 0.2}}
    elif data == "images":
        for row, label in enumerate(y):
            (tmp_path / f"d/{label}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((2, 2), row, np.uint8)).save(tmp_path / f"d/{label}/{row}.png")
        splits = {"train": "d"}
    elif data == "table":
        (tmp_path / "d.csv").write_text(
            "x,y\n" + "".join(f"{one},{label}\n" for one, label in zip(x[:, 0], y, strict=True))
        )
        splits = {"train": "d.csv", "columns": {"inputs": ["x"], "labels": ["y"]}}
    given = {
        "data": splits,
        "teachers": {"preprocessing": {"size": [2, 2], "mean": [0.0], "std": [1.0], "channels": 1}},
        "views": {"transform": "none"},
    }
    given |= {} if data == "images" else {"teachers": {}}
    whole = Workspace(settings_from(given, tmp_path))

    def in_rows(of: Workspace, split: str) -> NDArray[np.float32]:
        source = of.source(split)
        own = [np.asarray(source.item(row).x, np.float64).flat[0] for row in range(len(source))]
        value = np.array(own) / (255 if data == "images" else 1)
        return np.stack([value, -value], 1).astype(np.float32)

    outputs = {split: in_rows(whole, split) for split in whole.split_names}
    if kind == "npz":
        written(tmp_path / "teachers", "m.npz", **outputs)
    else:
        (tmp_path / "teachers/m").mkdir(parents=True)
        for split, said in outputs.items():
            lines = [f"{row},{a},{b}\n" for row, (a, b) in enumerate(said)]
            (tmp_path / f"teachers/m/{split}.csv").write_text("row,0,1\n" + "".join(lines))
    settings = settings_from({**given, "limit": 7}, tmp_path)
    cache_logits(settings)
    for split in outputs:
        records = Cache(tmp_path / "cache-limit-7").open(split)
        logits = records.read(range(7))[:, 0]
        wanted = in_rows(Workspace(settings), split)
        assert len(np.unique(wanted)) > 7
        assert_allclose(logits[:, 0] - logits[:, 1], wanted[:, 0] - wanted[:, 1], rtol=1e-2)


def test_members_of_language_models_are_modules(tmp_path: Path) -> None:
    table = ready_made.load(written(tmp_path, "m.npz", train=Z), context())
    with refused(
        "Member m is a table of ready-made outputs", "language-modelling", "modules of torch", "Give its network"
    ):
        table.open(LanguageModelling, 5)


def test_data_is_no_member(tmp_path: Path) -> None:
    teachers, data = tmp_path / "teachers", tmp_path / "data"
    written(teachers, "m.npz", train=Z)
    written(teachers, "all.npz", x=Z, y=np.arange(5))
    data.mkdir()
    (data / "train.csv").write_text("a,b\n1,2\n")
    (data / "validation.csv").write_text("file,target\n1.png,2.5\n")
    (data / "1.png").touch()
    (data / "calibration.csv").write_text("row,a,y\n0,2.5,2\n")
    (data / "transfer.csv").write_text("file,label\n2.png,cat\n")
    np.save(data / "test.npy", np.arange(5))
    assert not ready_made.claims(data)
    assert not ready_made.claims(teachers / "all.npz")
    assert [teacher.member.name for teacher in open_teachers(teachers, context())] == ["m"]
    written(teachers, "n.npz", Train=Z)
    with refused("n.npz looks like a member, but nothing here loads it"):
        open_teachers(teachers, context())


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_outputs_may_be_called_as_labels_are(tmp_path: Path, ending: str) -> None:
    """A member that was passed over would shrink the ensemble without a word."""
    for member, name in enumerate(("pred", "target", "Y")):
        (tmp_path / f"m{member}").mkdir()
        save(tmp_path / f"m{member}/train.{ending}", Z + member, "row", range(5), (name,))
    using = Context(context(output="mean", variance=1).settings, task="regression")
    assert [teacher.member.name for teacher in open_teachers(tmp_path, using)] == ["m0", "m1", "m2"]
    for values in (np.exp(Z[:, :2]), np.eye(2)[[0, 1, 1, 0, 1]]):
        save(tmp_path / f"m1/train.{ending}", values, "row", range(5), ("y", "n"))
        assert ready_made.claims(tmp_path / "m1")
        assert_allclose(said(tmp_path / "m1", context(("n", "y"))), values[:, ::-1], rtol=1e-6)
    save(tmp_path / f"m1/train.{ending}", Z, "file", FILES, ("target",))
    assert ready_made.claims(tmp_path / "m1")
    save(tmp_path / f"m1/train.{ending}", Z, "row", range(5), ("x", "y"))
    with refused(f"m1/train.{ending} has the columns x, y", "Rename it", "teachers.path"):
        open_teachers(tmp_path, using)
    assert len(open_teachers(tmp_path, Context(using.settings, ("x", "y"), task="regression"))) == 3


def test_a_member_of_a_mean_and_a_variance(tmp_path: Path) -> None:
    from ensemble_distill.tasks.regression import Regression

    path = written(tmp_path, "m.npz", train=np.abs(Z[:, :2].astype(np.float64)) + 1)
    using = Context(context(output="mean-variance").settings, task="regression")
    asked = ready_made.load(path, using).open(Regression)
    asked.meets("train", Rows())
    assert_allclose(asked.answers("train", range(5), None)[:, 1], np.log(np.abs(Z[:, 1]) + 1), rtol=1e-5)


def test_probabilities_are_floored_and_the_member_says_so(tmp_path: Path) -> None:
    path = written(tmp_path, "m.npz", train=np.eye(3)[[0, 1, 2, 0, 1]])
    asked = met(path, context(output="probabilities"))
    assert asked.answers("train", range(5), None).min() == np.float32(np.log(1e-7))
    assert "Member m says probabilities below 1e-07" in str(asked.remark)


def test_files_of_other_rows_or_of_no_numbers_are_refused(tmp_path: Path) -> None:
    with refused("m.npz holds x, y", "called train, validation, test", "Call them so"):
        ready_made.load(written(tmp_path, "m.npz", x=Z, y=Z), context())
    with refused("m.npz has outputs of 4 rows of train, and the data has 5"):
        met(written(tmp_path, "m.npz", train=Z[:4]))
    with refused("Member m has outputs of 2 views of train", "none of its rows as they are"):
        said(written(tmp_path, "m.npz", train=np.stack([Z, Z])))
    with refused("outputs (1, 2, 5, 3) of float32 of train"):
        met(written(tmp_path, "m.npz", train=Z[None, None] + np.zeros((1, 2, 1, 1), np.float32)))
    with refused("holds seed of shape (2,)"):
        met(written(tmp_path, "m.npz", train=np.stack([Z, Z]), seed=np.arange(2)))
    with refused("outputs (5, 3) of <U32 of train"):
        met(written(tmp_path, "m.npz", train=Z.astype(str)))
    for bad in (np.nan, np.inf):
        holey = Z.copy()
        holey[[1, 3], 0] = bad
        with refused(f"Member m says [{bad}", "at row 1 of train", "of 2 of 5 rows some numbers", "out of data.train"):
            met(written(tmp_path, "m.npz", train=holey))
    with refused("Member m has outputs of train in", "cannot be asked about test", "data.test out"):
        met(written(tmp_path, "m.npz", train=Z), split="test")
    with refused("cannot be asked about test, rotation 3", "leave distorted rows out"):
        met(written(tmp_path, "m.npz", train=Z), split="test, rotation 3")
    with refused("Python objects"):
        met(written(tmp_path, "m.npz", train=np.array([[{}] * 3] * 5)))
    (tmp_path / "m").mkdir()
    for text, told in (
        ("", "has no header"),
        ("a,b\n1,2\n", "has the columns a, b. Give a column row"),
        ("row,a\n0,1\n1\n", "row 1 has 1 fields, and the header names 2"),
        ("row,a,a\n0,1,2\n", "has the column 'a' 2 times"),
        ("row,a\n0,x\n", "could not convert string to float: 'x'"),
    ):
        (tmp_path / "m/train.csv").write_text(text)
        with refused("train.csv", told):
            met(tmp_path / "m")
    (tmp_path / "m/train.csv").write_bytes(b"row,a\n\xff\xfe")
    with refused("train.csv is not text in UTF-8"):
        met(tmp_path / "m")


def test_rows_of_nan_are_not_answered(tmp_path: Path) -> None:
    p = np.exp(Z) / np.exp(Z).sum(1, keepdims=True)
    p[[0, 1, 3]] = np.nan
    nothing = np.full_like(p, np.nan)
    path = written(tmp_path, "m.npz", train=p, test=nothing)
    asked = met(path, context(("c", "a", "b"), output="probabilities"))
    answers = asked.answers("train", [0, 2, 3, 4], None)
    assert_array_equal(np.isnan(answers).all(1), [True, False, True, False])
    assert_allclose(answers[[1, 3]], np.log(p[[2, 4]]), rtol=1e-6)
    assert_array_equal(np.isnan(asked.answers("train", [0, 1], None)), np.ones((2, 3), bool))
    asked.meets("test", Rows())
    assert asked.answers("test", range(5), None).shape == (5, 3)
    alone = met(written(tmp_path, "n.npz", train=nothing))
    with refused("Member n answers no row of train", "remove it from teachers.path"):
        alone.answers("train", range(5), None)


def test_the_whole_road_from_outputs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text("from torch import nn\ndef body():\n    return nn.Linear(4, 3)\n")
    rng = np.random.default_rng(0)
    data = {}
    for split, rows in (("train", 24), ("validation", 12), ("test", 10)):
        x = rng.normal(size=(rows, 4)).astype(np.float32)
        np.savez(tmp_path / f"{split}.npz", x=x, y=(np.abs(x[:, :3]).argmax(1)))
        data[split] = x
    for member in range(3):
        w = rng.normal(size=(4, 3)).astype(np.float32) / 4
        member_outputs = {
            split: np.abs(x[:, [0, 1, 2, 3]]) @ (np.eye(4, 3, dtype=np.float32) + w) for split, x in data.items()
        }
        written(tmp_path / "teachers", f"member-{member}.npz", **member_outputs)
    values: dict[str, Any] = {
        "data": {split: f"{split}.npz" for split in data},
        "student": {"model": "model.py:body"},
        "train": {"epochs": 2, "batch-size": 8, "device": "cpu", "workers": 0},
        "cache": {"dtype": "float32"},
    }
    settings = settings_from(values, tmp_path)
    with refused("Member member-0 answers row numbers alone", "'noise'", "data.transfer"):
        cache_logits(settings_from({**values, "views": {"transform": "noise"}}, tmp_path))
    cache_logits(settings)
    assert_allclose(Cache(tmp_path / "cache").open("test").read(range(10))[:, 2], member_outputs["test"], rtol=1e-6)
    train(settings)
    found = evaluate(settings)
    assert "nll" in found.models["ensemble"]
    with refused("--shifts asks the members about distorted rows, and member-0 has ready-made outputs"):
        evaluate(settings, shifts=True)
    export(settings, onnx=True)
    with refused("member-0", "ensemble"):
        export(settings, onnx=True, ensemble=True)
    with refused("Member member-0 is a table of ready-made outputs", "student.init"):
        train(
            settings_from({**values, "student": {"model": "model.py:body", "init": "member-0"}}, tmp_path),
            overwrite=True,
        )
    assert [t.member.name for t in open_teachers(tmp_path / "teachers", context())] == [f"member-{k}" for k in range(3)]
