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

from ensemble_distill.settings import load_settings
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


def shards(folder: Path) -> None:
    folder.mkdir(parents=True)
    for at in range(3):
        with tarfile.open(folder / f"{at}.tar", "w") as tar:
            for row in (2 * at, 2 * at + 1):
                for ending, content in (("png", png(PIXELS[row])), ("cls", b"%d" % (row % 3))):
                    info = tarfile.TarInfo(f"{row}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


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
