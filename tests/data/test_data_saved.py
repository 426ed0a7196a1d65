"""Data sets that the library `datasets` saved, written here as it writes them, by pyarrow alone."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from tiny import refused

from ensemble_distill.data import open_source
from ensemble_distill.data.arrow_shards import Shards
from ensemble_distill.data.columns import Columns
from ensemble_distill.data.memo import Memo
from ensemble_distill.facts import InputColumns
from ensemble_distill.settings import settings_from
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workspace import Workspace

pa = pytest.importorskip("pyarrow")

ROWS, BATCH, SHARDS = 23, 5, 2
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (ROWS, 6, 5, 3), dtype=np.uint8)
NAMES = ["cat", "dog", "cow"]
LABELS = RNG.integers(0, 3, ROWS)
AGES = RNG.normal(size=ROWS).astype(np.float32)
FEATURES: dict[str, Any] = {
    "img": {"_type": "Image"},
    "label": {"names": NAMES, "_type": "ClassLabel"},
    "age": {"dtype": "float32", "_type": "Value"},
    "who": {"dtype": "string", "_type": "Value"},
}


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def columns(**changed: Any) -> dict[str, Any]:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = [{"bytes": png(pixels), "path": None} for pixels in PIXELS]
    return {
        "img": pa.array(pictures, kind),
        "label": pa.array(LABELS.tolist(), pa.int64()),
        "age": pa.array(AGES),
        "who": pa.array(["ab"[row % 2] for row in range(ROWS)]),
        **changed,
    }


def shard(path: Path, table: Any, features: dict[str, Any]) -> None:
    """One as `datasets` writes it: Arrow's stream format, some rows a batch, the features in its metadata."""
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=BATCH)


def saved(folder: Path, table: Any = None, features: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table, features = pa.table(table or columns()), FEATURES if features is None else features
    names = [f"data-{at:05d}-of-{SHARDS:05d}.arrow" for at in range(SHARDS)]
    for at, (name, rows) in enumerate(zip(names, np.array_split(np.arange(len(table)), SHARDS), strict=True)):
        assert at < SHARDS
        shard(folder / name, table.slice(rows[0], len(rows)), features)
    state(folder, _data_files=[{"filename": name} for name in names])
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def state(folder: Path, **said: Any) -> None:
    (folder / "state.json").write_text(json.dumps({"_fingerprint": "0", "_indices_files": None, **said}))


# --- reading ----------------------------------------------------------------------------------------------------


def test_pictures_and_classes_need_no_settings(tmp_path: Path) -> None:
    source = open_source(saved(tmp_path / "train"))
    assert (source.kind, source.classes, len(source), source.name(7)) == ("pixels", tuple(NAMES), ROWS, "row 7")
    assert_array_equal(np.stack([source.item(row).x for row in range(ROWS)]), PIXELS)
    assert_array_equal(source.labels, LABELS)
    assert [int(source.item(row).y) for row in range(ROWS)] == LABELS.tolist()  # type: ignore[arg-type]
    assert source.columns == InputColumns(images="img")  # type: ignore[attr-defined]


def test_a_process_is_sent_no_rows(tmp_path: Path) -> None:
    source = open_source(saved(tmp_path / "train"))
    sent = pickle.dumps(source)
    assert len(sent) < 2000 < PIXELS.nbytes
    again = pickle.loads(sent)
    assert_array_equal(again.item(11).x, PIXELS[11])
    assert again.digest == source.digest


def test_a_shuffled_epoch_reads_each_row_once_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(saved(tmp_path / "train"))
    source._memo = Memo(ROWS, limit=0)  # type: ignore[attr-defined]  # as of data that is larger
    read: list[int] = []
    whole = Shards.picture

    def counted(self: Shards, column: str, row: int) -> Any:
        content, path = whole(self, column, row)
        read.append(content.size())
        return content, path

    monkeypatch.setattr(Shards, "picture", counted)
    order = np.random.default_rng(1).permutation(ROWS)
    for row in order:
        assert_array_equal(source.item(row).x, PIXELS[row])
    assert read == [len(png(PIXELS[row])) for row in order]


def test_columns_may_be_declared(tmp_path: Path) -> None:
    folder = saved(tmp_path / "train")
    table = open_source(folder, columns=Columns(("age", "who"), {"who": ("a", "b")}, labels=("label",)))
    assert (table.kind, table.classes) == ("features", tuple(NAMES))
    assert_array_equal(table.labels, LABELS)
    assert_array_equal(table.item(2).x, np.array([AGES[2], 1, 0], np.float32))
    assert_array_equal(table.item(3).x, np.array([AGES[3], 0, 1], np.float32))
    named = open_source(folder, columns=Columns(images="img", labels=("label",), classes=("cow", "dog", "cat")))
    assert_array_equal(named.labels, [2 - label for label in LABELS])
    kinds = open_source(folder, "regression", columns=Columns(("label",), {"label": tuple(NAMES)}, labels=("age",)))
    assert_array_equal(np.stack([kinds.item(row).x for row in range(ROWS)]), np.eye(3)[LABELS])
    assert_array_equal(kinds.labels, AGES)
    pictures = open_source(folder, "regression", columns=Columns(images="img", labels=("age",)))
    assert_array_equal(pictures.labels, AGES)
    alone = open_source(folder, columns=Columns(images="img"))
    assert (alone.labels, alone.classes, len(alone)) == (None, None, ROWS)


def test_classes_of_minus_one_are_no_labels(tmp_path: Path) -> None:
    source = open_source(saved(tmp_path / "test", columns(label=pa.array([-1] * ROWS, pa.int64()))))
    assert source.labels is None
    assert "label is −1 in every row" in source.remarks[0]
    some = [-1 if row == 9 else 0 for row in range(ROWS)]
    with refused("column label is -1 at row 9", "0 to 2"):
        open_source(saved(tmp_path / "some", columns(label=pa.array(some, pa.int64()))))


@pytest.mark.parametrize("kind", [pa.uint8(), pa.uint64(), pa.int8(), pa.int32()])
def test_classes_may_be_of_any_whole_numbers(tmp_path: Path, kind: Any) -> None:
    source = open_source(saved(tmp_path / "train", columns() | {"label": pa.array(LABELS, kind)}))
    assert_array_equal(source.labels, LABELS)


def test_a_shard_of_the_cache_by_itself(tmp_path: Path) -> None:
    shard(tmp_path / "cached.arrow", pa.table(columns()), FEATURES)
    source = open_source(tmp_path / "cached.arrow")
    assert_array_equal(source.item(8).x, PIXELS[8])
    assert source.digest == open_source(saved(tmp_path / "train")).digest, "the rows count, not the shards"
    plain = pa.table({"age": AGES, "y": LABELS})
    with pa.ipc.new_stream(str(tmp_path / "plain.arrow"), plain.schema) as stream:
        stream.write_table(plain)
    table = open_source(tmp_path / "plain.arrow", columns=Columns(("age",), labels=("y",)))
    assert_array_equal(table.labels, LABELS)


def test_the_digest_covers_pictures_order_and_labels(tmp_path: Path) -> None:
    first = open_source(saved(tmp_path / "a"))
    assert "contents of all rows" in first.digest_scope
    turned = columns()
    turned["img"] = turned["img"].take(pa.array([1, 0, *range(2, ROWS)]))
    assert open_source(saved(tmp_path / "b", turned)).digest != first.digest
    other = columns(label=pa.array([(label + 1) % 3 for label in LABELS.tolist()]))
    assert open_source(saved(tmp_path / "c", other)).digest != first.digest
    away = columns(who=pa.array(["z"] * ROWS))
    assert open_source(saved(tmp_path / "d", away)).digest == first.digest


def test_inspect_and_a_workspace_know_them(tmp_path: Path) -> None:
    for name in ("train", "test"):
        saved(tmp_path / "data" / name)
    (tmp_path / "data/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert inspect(tmp_path / "data/train")["rows"] == ROWS
    listed = inspect(tmp_path / "data")["data"]
    assert {name: one["rows"] for name, one in listed.items()} == {"train": ROWS, "test": ROWS}
    settings = settings_from({"data": {"train": "data/train", "test": "data/test"}}, tmp_path)
    assert [plan.source.kind for plan in Workspace(settings).splits().values()] == ["pixels", "pixels"]
    with refused("holds the splits train, test", "data/train"):
        open_source(tmp_path / "data")


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"_data_files": [{"filename": "../other.arrow"}]}, ("'../other.arrow'",)),
        ({"_data_files": [{"filename": "/etc/passwd"}]}, ("'/etc/passwd'",)),
        ({"_data_files": [{"filename": "gone.arrow"}]}, ("lacks gone.arrow",)),
        ({"_data_files": []}, ("names no files",)),
        ({"_data_files": [3]}, ("names no files",)),
        ({"_data_files": "x"}, ("names no files",)),
        (
            {"_data_files": [{"filename": "data-00000-of-00002.arrow"}], "_indices_files": [{"filename": "i.arrow"}]},
            ("flatten_indices",),
        ),
    ],
)
def test_a_state_that_none_has_is_refused(tmp_path: Path, said: dict[str, Any], words: Sequence[str]) -> None:
    folder = saved(tmp_path / "train")
    state(folder, **said)
    with refused("state.json", *words):
        open_source(folder)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({**FEATURES, "more": {"_type": "Image"}}, ("more (Image)", "data.columns")),
        ({**FEATURES, "age": {"names": ["a"], "_type": "ClassLabel"}}, ("age (ClassLabel)", "data.columns")),
        ({"age": FEATURES["age"], "who": {"feature": 1}}, ("age (Value), who (nested)", "data.columns")),
        ({**FEATURES, "label": {"names": "abc", "_type": "ClassLabel"}}, ("label", "'abc'")),
        ({"age": {"_type": "Image"}}, ("column age holds float",)),
        ([], ("names no features",)),
    ],
)
def test_features_that_do_not_say_enough(tmp_path: Path, features: Any, words: Sequence[str]) -> None:
    with refused(*words):
        open_source(saved(tmp_path / "train", None, features))


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "train")
    file = folder / "data-00000-of-00002.arrow"
    whole = file.read_bytes()
    for content in (b"", whole[:50], whole[: len(whole) // 2], b"PK\x03\x04" + whole, bytes(len(whole))):
        file.write_bytes(content)
        with refused("data-00000-of-00002.arrow cannot be read as arrow"):
            open_source(folder)
    (folder / "dataset_info.json").write_text("{")
    file.write_bytes(whole)
    with refused("dataset_info.json cannot be read"):
        open_source(folder)


def test_shards_whose_columns_hold_other_things_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "train")
    other = pa.table(columns() | {"img": pa.array(["1.png"] * ROWS)})
    shard(folder / "data-00001-of-00002.arrow", other, FEATURES)
    with refused("data-00001-of-00002.arrow: column img holds string", "data-00000-of-00002.arrow struct<bytes"):
        open_source(folder)


def test_no_byte_of_a_shard_crashes_the_reader(tmp_path: Path) -> None:
    folder = saved(tmp_path / "train")
    file = folder / "data-00000-of-00002.arrow"
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(150):
        broken = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            broken[at] = rng.integers(0, 256)
        file.write_bytes(broken)
        try:
            source = open_source(folder)
            for row in range(len(source)):
                source.item(row)
        except Exception as error:
            assert type(error).__name__ == "EdistillError", repr(error)  # noqa: PT017
            continue
        read += 1
        assert len(source) == ROWS
    assert 0 < read < 150, "some bytes matter, and some do not"


def test_pictures_that_are_none(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": png(pixels), "path": None} for pixels in PIXELS]
    cells[3], cells[4], cells[5] = {"bytes": None, "path": "/etc/passwd"}, {"bytes": b"no", "path": "a"}, None
    source = open_source(saved(tmp_path / "train", columns(img=pa.array(cells, kind))))
    assert_array_equal(source.item(2).x, PIXELS[2])
    for row, words in ((3, ("holds no picture", "/etc/passwd")), (4, ("does not decode",)), (5, ("holds no picture",))):
        with refused(f"img of row {row}", *words):
            source.item(row)
