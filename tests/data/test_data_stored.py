"""Files of arrays that are not what they claim: one message each, before memory is taken."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from tiny import make_folder, refused, save_data, settings

from ensemble_distill.data import open_source, stored
from ensemble_distill.data.source import Source
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.workflows.cache_logits import cache_logits

X = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)


def npy(array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def claiming(shape: str, dtype: str = "|u1", rest: bytes = b"12345") -> bytes:
    """An .npy whose header says so, over a few bytes."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + rest


def archive(path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(f"{name}.npy", content)
    return path


HOSTILE: dict[str, bytes] = {
    "a header of a terabyte": claiming("(1000000000000,)"),
    "sides whose product overflows": claiming("(4294967296, 4294967296, 4294967296)"),
    "a negative side": claiming("(-1, 5)"),
    "nested": claiming("(" * 3000 + ")" * 3000),
    "no header": b"\x93NUMPY\x01\x00",
    "version 9": b"\x93NUMPY\x09\x00" + claiming("(5,)")[8:],
    "cut short": npy(X)[:-7],
    "longer than it says": npy(X) + b"!",
    "empty": b"",
    "text": b"0, 1, 2",
}


@pytest.mark.thorough
def test_an_array_in_an_npz_that_is_not_what_it_claims(tmp_path: Path) -> None:
    for case in HOSTILE:
        file = archive(tmp_path / "a.npz", x=HOSTILE[case])
        with refused("a.npz cannot be read as .npz", "Write it with numpy.savez"):
            open_source(file)
        np.savez(file, x=X)
        assert len(open_source(file)) == 5


def rows_of(tmp_path: Path) -> Source:
    np.savez(tmp_path / "a.npz", x=X)
    entry = SimpleNamespace(source=str(tmp_path / "a.npz"), rows=str(tmp_path / "rows.npy"), x="x", y="y")
    return open_source(entry)


def an_npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, rows=[0, 1])


def a_broken_zip(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 and no more")


def a_folder(path: Path) -> None:
    path.mkdir()


def test_a_rows_file_that_is_none(tmp_path: Path) -> None:
    for write in [*(lambda path, c=c: path.write_bytes(c) for c in HOSTILE.values()), an_npz, a_broken_zip, a_folder]:
        write(tmp_path / "rows.npy")
        with refused("rows: ", "rows.npy is not an .npy", "Write it with numpy.save"):
            rows_of(tmp_path)
        if (tmp_path / "rows.npy").is_dir():
            (tmp_path / "rows.npy").rmdir()
        np.save(tmp_path / "rows.npy", [3, 1])
        assert_array_equal(rows_of(tmp_path).item(0).x[..., 0], X[3])
        (tmp_path / "rows.npy").unlink()


def test_rows_beyond_what_64_bits_hold(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array([1, 2**64 - 1], np.uint64))
    with refused("lists row 18446744073709551615", "rows 0 to 4"):
        rows_of(tmp_path)


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zip bomb: a megabyte that is a kilobyte in the file, and a machine that has less."""
    file = archive(tmp_path / "a.npz", x=npy(np.zeros((256, 64, 64), np.uint8)))
    assert file.stat().st_size < 5000
    assert len(open_source(file)) == 256
    monkeypatch.setattr(stored, "memory", lambda: 2**19)
    with refused("a.npz: x is (256, 64, 64) of uint8", "memory", "by file.py:factory"):
        open_source(file)


def test_this_machine_has_memory() -> None:
    assert stored.memory() > 2**26


def test_an_archive_that_is_encrypted_or_holds_a_name_twice(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.npz", x=npy(X))
    content = bytearray(file.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + at] |= 1  # the flag of encryption, in both of its places
    file.write_bytes(content)
    with refused("cannot be read as .npz"):
        open_source(file)
    with zipfile.ZipFile(file, "w") as twice:
        twice.writestr("x.npy", npy(X))
        with pytest.warns(UserWarning, match="Duplicate name"):
            twice.writestr("x.npy", npy(X + 1))
    with refused("a.npz holds 'x' twice"):
        open_source(file)


# --- labels under another name ----------------------------------------------------------------------------------


def test_labels_that_nobody_reads_are_told(tmp_path: Path) -> None:
    y = np.arange(5) % 3
    file = tmp_path / "a.npz"
    np.savez(file, x=X, labels=y, weights=np.zeros((5, 2)), made=np.float32(3))
    (remark,) = open_source(file).remarks
    assert "no array y" in remark
    assert 'y = "labels"' in remark
    assert "weights" not in remark
    named = open_source(SimpleNamespace(source=str(file), rows=None, x="x", y="labels"))
    assert_array_equal(named.labels, y)  # type: ignore[arg-type]
    assert not named.remarks


def test_a_split_whose_labels_nobody_reads_is_warned_of_once(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    arrays = dict(np.load(folder / "data/test.npz"))
    np.savez(folder / "data/test.npz", x=arrays["x"], targets=arrays["y"])
    save_data(folder, "ood/noise", 7, extra=np.zeros(7))
    progress = Silent()
    cache_logits(settings(folder), progress=progress)
    (warning,) = progress.warnings
    assert warning.startswith("data.test: ")
    progress = Silent()
    named = {"data.test": {"source": "data/test.npz", "y": "targets"}, "output.cache": "cache-2"}
    cache_logits(settings(folder, named), progress=progress)
    assert progress.warnings == []
