"""Stored arrays of an `.npz` that stay in their file: the same rows, digests and units as those read whole, in no
memory; and an archive that lies is refused."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from tiny import make_folder, refused, save_data, settings

from ensemble_distill.data import open_source, stored
from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.mapped import MappedInputs
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.workflows.cache_logits import cache_logits

RNG = np.random.default_rng(0)
ROWS = 300
CASES: dict[str, Any] = {
    "gray pixels": RNG.integers(0, 256, (ROWS, 5, 4), dtype=np.uint8),
    "pixels": RNG.integers(0, 256, (ROWS, 5, 4, 3), dtype=np.uint8),
    "features": RNG.normal(size=(ROWS, 7)).astype(np.float32) * [1, 50, 0, 1, 1, 1, 1e-3] + 3,
    "one feature": RNG.normal(size=(ROWS, 1)).astype(np.float32),
    "of the other order of bytes": RNG.normal(size=(ROWS, 6)).astype(">f8"),
    "series": RNG.normal(size=(ROWS, 2, 9)).astype(np.float16),
    "tensors": RNG.normal(size=(ROWS, 3, 4, 5)).astype(np.float32),
    "volumes": RNG.normal(size=(ROWS, 1, 2, 3, 4)),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of a kilobyte count as large, and blocks hold a few rows."""
    monkeypatch.setattr(stored, "MAPPED", 1000)
    monkeypatch.setattr("ensemble_distill.data.mapped.PIECE", 500)


def is_mapped(source: Any) -> bool:
    assert isinstance(source, Arrays)
    return isinstance(source.x, MappedInputs)


@pytest.mark.parametrize("case", CASES)
def test_rows_digest_and_unit_are_those_of_the_packed_one(tmp_path: Path, case: str) -> None:
    y = RNG.integers(0, 3, ROWS)
    np.savez(tmp_path / "stored.npz", x=CASES[case], y=y)
    np.savez_compressed(tmp_path / "packed.npz", x=CASES[case], y=y)
    mapped, packed = (open_source(tmp_path / f"{name}.npz") for name in ("stored", "packed"))
    assert (is_mapped(mapped), is_mapped(packed)) == (True, False)
    assert (len(mapped), mapped.kind, mapped.digest) == (ROWS, packed.kind, packed.digest)
    for row in (0, 7, ROWS - 1):
        mine, theirs = mapped.item(row), packed.item(row)
        assert (mine.x.dtype, mine.y, mine.kind) == (theirs.x.dtype, theirs.y, theirs.kind)
        assert_array_equal(mine.x, theirs.x)
        assert not mine.x.flags.writeable
    assert (mapped.scale is None) == (packed.scale is None)
    if packed.scale is not None:
        assert mapped.scale is not None
        assert mapped.scale.tobytes() == packed.scale.tobytes()


def test_ids_of_tokens(tmp_path: Path) -> None:
    x = RNG.integers(0, 9, (ROWS, 8)).astype(np.int32)
    np.savez(tmp_path / "stored.npz", x=x, y=x)
    np.savez_compressed(tmp_path / "packed.npz", x=x, y=x)
    mapped, packed = (open_source(tmp_path / f"{name}.npz", "language-modelling") for name in ("stored", "packed"))
    assert (is_mapped(mapped), is_mapped(packed)) == (True, False)
    assert mapped.digest == packed.digest
    assert mapped.item(5).x.dtype == np.int64
    assert_array_equal(mapped.item(5).x, x[5])
    x[ROWS - 1, 2] = -4
    np.savez(tmp_path / "stored.npz", x=x, y=abs(x))
    with refused("token -4 at position 2 of row 299"):
        open_source(tmp_path / "stored.npz", "language-modelling")


def test_small_and_packed_arrays_and_those_of_columns_are_read(tmp_path: Path) -> None:
    features = CASES["features"].astype(np.float32)
    for name, x in (("small", features[:20]), ("columns", np.asfortranarray(features))):
        np.savez(tmp_path / f"{name}.npz", x=x)
        source = open_source(tmp_path / f"{name}.npz")
        assert not is_mapped(source)
        assert_array_equal(source.item(3).x, features[3])


def test_a_large_array_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble_distill.data.mapped.PIECE", 2**18)
    size = 2**24
    np.savez(tmp_path / "a.npz", x=np.zeros((size // 64, 16), np.float32), y=np.zeros(size // 64, np.uint8))
    tracemalloc.start()
    try:
        source = open_source(tmp_path / "a.npz")
        assert source.digest
        assert source.scale is not None
        for row in range(0, len(source), 999):
            source.item(row)
        assert tracemalloc.get_traced_memory()[1] < size // 3  # labels as int64 are an eighth
    finally:
        tracemalloc.stop()


def test_a_process_maps_the_file_for_itself(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=CASES["tensors"])
    source = open_source(tmp_path / "a.npz")
    sent = pickle.dumps(source)
    assert len(sent) < 2000
    assert_array_equal(pickle.loads(sent).item(4).x, CASES["tensors"][4])
    np.savez(tmp_path / "a.npz", x=CASES["tensors"] + 1)
    with refused("a.npz: x changed while it was read"):
        pickle.loads(sent)


def cut_short(file: Path) -> None:
    os.truncate(file, 800)


def touched(file: Path) -> None:
    os.utime(file, ns=(1, 1))


def removed(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("change", [cut_short, touched, removed])
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, change: Callable[[Path], None]) -> None:
    np.savez(tmp_path / "a.npz", x=CASES["features"])
    source = open_source(tmp_path / "a.npz")
    source.item(0)
    change(tmp_path / "a.npz")
    with refused("a.npz: x changed while it was read"):
        source.item(0)


def test_a_value_that_is_not_finite_is_told_by_its_row(tmp_path: Path) -> None:
    x = CASES["features"].copy()
    x[211, 3] = np.nan
    np.savez(tmp_path / "a.npz", x=x)
    with refused("a.npz: x is nan at (3,) of row 211"):
        open_source(tmp_path / "a.npz")


# --- archives that lie ------------------------------------------------------------------------------------------


def lies(file: Path) -> dict[str, bytes]:
    """What each lie makes of an archive whose first entry is x."""
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        entry = archive.getinfo("x.npy")
    central = whole.index(b"PK\x01\x02")
    inside = whole.index(b"\x93NUMPY")

    def put(at: int, form: str, value: int) -> bytes:
        return whole[:at] + struct.pack(form, value) + whole[at + struct.calcsize(form) :]

    return {
        "a bit of the content": put(inside + entry.file_size - 9, "B", whole[inside + entry.file_size - 9] ^ 4),
        "its checksum": put(central + 16, "<I", entry.CRC ^ 1),
        "a longer extra field, so the content begins later": put(28, "<H", 4000),
        "a shorter one": put(28, "<H", 0),
        "sizes beyond the file": put(central + 20, "<I", 2**30)[: central + 24]
        + struct.pack("<I", 2**30)
        + whole[central + 28 :],
        "another size in the file than in the archive": put(central + 24, "<I", entry.file_size - 4),
        "an entry that begins elsewhere": put(central + 42, "<I", 77),
        "a header of more rows": whole.replace(b"(300, 7)", b"(900, 7)", 1),
        "a header of fewer rows": whole.replace(b"(300, 7)", b"(299, 7)", 1),
        "sides below zero": whole.replace(b"(300, 7)", b"(-30,-7)", 1),
        "cut short": whole[:-700],
    }


LIES = [
    "a bit of the content",
    "its checksum",
    "a longer extra field, so the content begins later",
    "a shorter one",
    "sizes beyond the file",
    "another size in the file than in the archive",
    "an entry that begins elsewhere",
    "a header of more rows",
    "a header of fewer rows",
    "sides below zero",
    "cut short",
]


@pytest.mark.parametrize("lie", LIES)
def test_an_archive_that_lies_is_refused_by_name(tmp_path: Path, lie: str) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, x=CASES["features"].astype(np.float32))
    found = lies(file)
    assert list(found) == LIES
    assert found[lie] != file.read_bytes()
    file.write_bytes(found[lie])
    with refused("a.npz cannot be read as .npz", "Write it with numpy.savez"):
        open_source(file)


def test_no_byte_of_an_archive_crashes_the_reader_or_gives_other_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    x = CASES["features"].astype(np.float32)
    np.savez(file, x=x)
    whole = file.read_bytes()
    headers = [*range(0, 200), *range(whole.index(b"PK\x01\x02"), len(whole))]
    read = 0
    for at in headers:
        for bits in (1, 0x80, 0xFF):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :])
            try:
                source = open_source(file)
            except Exception as error:
                assert type(error).__name__ == "EdistillError", (at, error)  # noqa: PT017
                continue
            read += 1
            assert_array_equal(np.stack([source.item(row).x for row in range(len(source))]), x)
    assert 0 < read < 3 * len(headers)  # times and attributes of the entry mean nothing


# --- the whole road ---------------------------------------------------------------------------------------------


def test_a_cache_of_read_arrays_fits_mapped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "tiny")
    save_data(folder, "train", ROWS)
    monkeypatch.setattr(stored, "MAPPED", 2**40)
    cache_logits(settings(folder), progress=Silent())
    monkeypatch.setattr(stored, "MAPPED", 1)
    assert is_mapped(open_source(folder / "data/train.npz"))
    progress = Silent()
    assert cache_logits(settings(folder), progress=progress).added == 0
    assert progress.warnings == []


def test_some_rows_of_a_mapped_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=CASES["features"])
    np.save(tmp_path / "rows.npy", [250, 3])
    source = open_source(SimpleNamespace(source=str(tmp_path / "a.npz"), rows=str(tmp_path / "rows.npy"), x="x", y="y"))
    assert_array_equal(source.item(0).x, CASES["features"].astype(np.float32)[250])
