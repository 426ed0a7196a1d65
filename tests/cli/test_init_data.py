"""`init` and `doctor` on data of every kind: what says by itself what it is, and what its owner has to say."""

from __future__ import annotations

import io
import json
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from ensemble_distill.data.patterns import files_of
from ensemble_distill.settings import load_settings
from ensemble_distill.setup.columns import likely_columns
from ensemble_distill.setup.numbered import patterns_in, word_of
from ensemble_distill.setup.splits import find_splits
from ensemble_distill.workflows.doctor import doctor
from ensemble_distill.workflows.init import init

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 7, 5, 3), dtype=np.uint8)
MODEL = "from torch import nn\ndef make_teacher():\n    return nn.Linear(4, 3)\n"


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teachers").mkdir()
    (tmp_path / "model.py").write_text(MODEL)
    save_file(nn.Linear(4, 3).state_dict(), tmp_path / "teachers/member-0.safetensors")
    return tmp_path


def shard(path: Path, rows: range) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for row in rows:
            for ending, content in (("png", png(PIXELS[row])), ("cls", b"%d" % (row % 3))):
                info = tarfile.TarInfo(f"{row}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def shards(folder: Path) -> None:
    for at in range(3):
        shard(folder / f"{at}.tar", range(2 * at, 2 * at + 2))


def saved(folder: Path, **columns: Any) -> None:
    pa = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    features = {name: feature for name, (feature, _) in columns.items()}
    table = pa.table({name: values for name, (_, values) in columns.items()})
    with pa.ipc.new_stream(str(folder / "data.arrow"), table.schema) as stream:
        stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def test_shards_are_data_and_no_members(folder: Path) -> None:
    for name in ("train", "test"):
        shards(folder / "data" / name)
    report = init(folder)
    assert {name: one["rows"] for name, one in report.splits.items()} == {"train": 6, "test": 6}
    assert report.teachers == folder / "teachers", "more archives than members are no members"
    written = tomllib.loads((folder / "edistill.toml").read_text())
    assert (written["data"]["train"], written["task"]) == ("data/train", "classification")
    assert "size = [7, 5]" in (folder / "edistill.toml").read_text()


def test_saved_data_sets_say_what_they_are_or_their_columns_are_to_be_said(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = pa.array([{"bytes": png(one), "path": None} for one in PIXELS], kind)
    labels = ({"_type": "ClassLabel", "names": ["a", "b"]}, pa.array([0, 1] * 3))
    for name in ("train", "test"):
        saved(folder / "data" / name, img=({"_type": "Image"}, pictures), label=labels)
    report = init(folder)
    assert {name: one["holds"] for name, one in report.splits.items()} == {"train": "pixels", "test": "pixels"}
    numbers = ({"_type": "Value", "dtype": "float32"}, pa.array(np.arange(6, dtype=np.float32)))
    other = folder / "other"
    (other / "teachers").mkdir(parents=True)
    save_file(nn.Linear(4, 3).state_dict(), other / "teachers/member-0.safetensors")
    saved(other / "data/train", age=numbers, label=labels)
    report = init(other, other)
    assert any("columns" in why for _, _, why in report.fill)
    assert 'columns = { inputs = ["age"], labels = ["label"] }' in (other / "edistill.toml").read_text()


def test_shards_of_several_splits_in_one_folder_are_not_one_data_set(tmp_path: Path) -> None:
    """Read as one, the test rows would be learned from."""
    for name, rows in (("train-00", range(3)), ("train-01", range(3, 5)), ("test", range(5, 6))):
        shard(tmp_path / f"data/{name}.tar", rows)
    found = find_splits([tmp_path / "data"])
    assert {name: len(source) for name, source in found.sources.items()} == {"train": 5, "test": 1}
    assert found.entries["train"].source.endswith("data/train-{00..01}.tar")
    assert not found.problems


def test_parquet_of_the_hub_is_found_and_says_what_it_is(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b", "c"]}}
    pictures = pa.array([{"bytes": png(one), "path": None} for one in PIXELS[:3]], kind)
    table = pa.table({"image": pictures, "label": [0, 1, 2]})
    told = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        parquet.write_table(told, tmp_path / f"data/{name}.parquet")
    found = find_splits([tmp_path / "data"])
    assert {name: len(source) for name, source in found.sources.items()} == {"train": 6, "test": 3}
    assert (found.columns, found.problems) == (None, {})
    parquet.write_table(table, tmp_path / "train.parquet")
    assert likely_columns(str(tmp_path / "train.parquet")) == {"images": "image", "labels": ["label"]}


TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "a.csv": (
        "age,sex,kind\n1,f,x\n2,m,y\n",
        {"inputs": ["age", "sex"], "categories": {"sex": ["…"]}, "labels": ["kind"], "classes": ["…"]},
    ),
    "b.csv": ("label,x,z\n1,2,3\n0,1,1\n", {"inputs": ["x", "z"], "labels": ["label"]}),
    "c.csv": ('label,said\n1,"it is a fine day"\n0,"no, it is not"\n', {"text": "said", "labels": ["label"]}),
    "d.csv": ("said\nit is a fine day\n", {"text": "said"}),
    "e.jsonl": ('{"y": 1, "x": [1, 2]}\n{"y": 0, "x": [2, 3]}\n', {"array": "x", "labels": ["y"]}),
    "f.csv": ("x\n1\n", {"inputs": ["x"]}),
    "g.csv": ("a,b\n", {"inputs": ["a"], "labels": ["b"]}),
}


@pytest.mark.parametrize("name", TABLES)
def test_what_columns_could_be(tmp_path: Path, name: str) -> None:
    content, wanted = TABLES[name]
    (tmp_path / name).write_text(content)
    assert likely_columns(str(tmp_path / name)) == wanted


def test_lists_and_tensors_of_parquet_could_be_arrays(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 3, 4), np.float32))
    for x in (pa.array([[1.0, 2], [3, 4]]), tensors):
        parquet.write_table(pa.table({"y": [0, 1], "x": x}), tmp_path / "a.parquet")
        assert likely_columns(str(tmp_path / "a.parquet")) == {"array": "x", "labels": ["y"]}


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["train-0.tar", "train-1.tar"], ["train-{0..1}.tar"]),
        (["train-9.tar", "train-10.tar"], ["train-{9..10}.tar"]),
        (["train-09.tar", "train-10.tar"], ["train-{09..10}.tar"]),
        (["train-0.tar", "train-2.tar"], []),
        (["val_3.parquet"], ["val_3.parquet"]),
        (["other-0.tar", "other-1.tar", "train.tar"], []),
    ],
)
def test_numbered_files_of_a_split_are_a_pattern(tmp_path: Path, names: list[str], wanted: list[str]) -> None:
    found = patterns_in([tmp_path / name for name in names], {"train", "val"})
    assert [path.name for path in found] == wanted
    assert all(word_of(path) in ("train", "val") for path in found)
    for path, files in found.items():
        for file in files:
            file.touch()
        assert files_of(str(path)) == files


def test_a_table_of_pictures(folder: Path) -> None:
    (folder / "photos").mkdir()
    for row, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(folder / f"photos/{row}.png")
    lines = [f"{'ab'[row % 2]},photos/{row}.png" for row in range(6)]
    (folder / "train.csv").write_text("\n".join(["kind,file", *lines]) + "\n")
    init(folder)
    file = folder / "edistill.toml"
    text = file.read_text()
    assert 'columns = { images = "file", labels = ["kind"], classes = ["…"] }' in text
    assert "size = [7, 5]" in text
    file.write_text(text.replace('# columns = { images = "file", labels = ["kind"], classes = ["…"] }', "columns = "
        '{ images = "file", labels = ["kind"], classes = ["a", "b"] }'))  # fmt: skip
    checks = {one["what"]: one for one in doctor(lambda: load_settings(file)).checks}
    assert checks["data.train"]["told"] == "6 rows of pixels, labels"


def test_the_only_table_beside_members_is_the_data_whatever_its_name(folder: Path) -> None:
    (folder / "wines.csv").write_text("alcohol,kind\n13.2,a\n12.1,b\n")
    assert init(folder).splits["train"]["problem"] == "its columns are not declared yet"
    text = (folder / "edistill.toml").read_text()
    assert tomllib.loads(text)["data"] == {"train": "wines.csv"}
    assert '# all = "wines.csv"' in text, "it can be split, too"
    (folder / "scores.csv").write_text("epoch,loss\n1,.5\n")
    assert not init(folder, overwrite=True).splits, "of two tables, either may be something else"


@pytest.mark.parametrize(("layer", "offered"), [(nn.Conv1d(2, 4, 3), False), (nn.Conv2d(2, 4, 3), True)])
def test_compressing_is_offered_where_it_works(folder: Path, layer: nn.Module, offered: bool) -> None:
    for member in range(2):
        save_file(nn.Sequential(layer, nn.Linear(4, 3)).state_dict(), folder / f"teachers/member-{member}.safetensors")
    init(folder)
    assert ("compress = " in (folder / "edistill.toml").read_text()) == offered
