"""Writes are whole or absent: at every point where a process can die, a file holds the old bytes or all the new."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import Killed, killed_at

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime import files
from ensemble_distill.runtime.files import (
    refuse_outside,
    sha256_file,
    write_output,
    write_text,
    write_whole,
)
from ensemble_distill.runtime.jsons import read_json, write_json
from ensemble_distill.runtime.lock import one_writer

STEPS = ["before write", "before sync", "before rename", "after rename"]


def test_the_steps_are_those_the_hook_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, Path]] = []
    monkeypatch.setattr(files, "crash_point", lambda step, path: seen.append((step, path)))
    write_whole(tmp_path / "a", b"new")
    assert seen == [(step, tmp_path / "a") for step in STEPS]


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("point", range(len(STEPS)))
def test_a_crash_leaves_the_old_or_all_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes | None, point: int
) -> None:
    file = tmp_path / "folder" / "a"
    if old is not None:
        write_whole(file, old)
    with killed_at(point, monkeypatch, tmp_path) as happened:
        write_whole(file, [b"all ", b"the ", b"new"])
    assert happened
    if STEPS[point] == "after rename":
        assert file.read_bytes() == b"all the new"
    elif old is None:
        assert not file.exists()
    else:
        assert file.read_bytes() == old
    with one_writer(file.parent):
        write_whole(file, b"once more")
    assert file.read_bytes() == b"once more"
    names = {path.name for path in file.parent.iterdir()} - {".lock"}
    assert names == {"a"}, "a temporary file was left behind"


def test_there_is_no_further_crash_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_at(len(STEPS), monkeypatch, tmp_path) as happened:
        write_whole(tmp_path / "a", b"new")
    assert not happened


def test_content_that_fails_on_the_way_leaves_the_old(tmp_path: Path) -> None:
    def half() -> Iterator[bytes]:
        yield b"half"
        raise Killed

    write_whole(tmp_path / "a", b"old")
    with pytest.raises(Killed):
        write_whole(tmp_path / "a", half())
    assert (tmp_path / "a").read_bytes() == b"old"


def test_bytes_are_on_the_disk_before_the_name_points_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync"), sync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("rename"), replace(self, to))[1])
    write_whole(tmp_path / "a", b"new")
    assert order == ["sync", "rename", "sync"], "file, name, folder"


def test_text_and_json(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "µ\n")
    assert (tmp_path / "a").read_bytes() == "µ\n".encode()
    record = {"z": [1, 2.5, None], "a": "µ"}
    write_json(tmp_path / "b", record)
    assert read_json(tmp_path / "b") == record
    assert list(read_json(tmp_path / "b")) == ["z", "a"], "the order given"
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b", {"x": math.nan})
    assert read_json(tmp_path / "b") == record


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # the example of FIPS 180-2
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- links, and what is no regular file -------------------------------------------------------------------------


def test_a_planted_link_is_not_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "0" * 2 * size)
    planted = tmp_path / f".edistill-{'0' * 16}.part"
    planted.symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "a", b"new")
    assert victim.read_bytes() == b"mine"


def test_a_file_of_ours_that_became_a_link_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "a").symlink_to(victim)
    write_whole(tmp_path / "a", b"new")
    assert (victim.read_bytes(), (tmp_path / "a").read_bytes()) == (b"mine", b"new")
    assert not (tmp_path / "a").is_symlink()


def test_an_output_goes_where_its_link_points_and_keeps_its_rights(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "results.csv"
    real.parent.mkdir()
    real.write_bytes(b"old")
    real.chmod(0o600)
    (tmp_path / "results.csv").symlink_to(real)
    write_output(tmp_path / "results.csv", b"new")
    assert (tmp_path / "results.csv").is_symlink()
    assert real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o777 == 0o600


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_output(pipe, b"new")
    assert os.read(reading, 10) == b"new"
    os.close(reading)
    assert pipe.is_fifo()


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    def interrupted() -> Iterator[bytes]:
        yield b"first "
        write_whole(tmp_path / "a", b"second")
        yield b"writer"

    write_whole(tmp_path / "a", interrupted())
    assert (tmp_path / "a").read_bytes() == b"first writer"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing_and_names_its_file(tmp_path: Path, error: BaseException) -> None:
    def failing() -> Iterator[bytes]:
        yield b"half"
        raise error

    with pytest.raises(type(error)) as caught:
        write_whole(tmp_path / "a", failing())
    assert list(tmp_path.iterdir()) == []
    if isinstance(caught.value, OSError):
        assert caught.value.filename == str(tmp_path / "a")


def test_a_write_that_cannot_clean_up_names_what_went_wrong_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path, *given: object, **named: object) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(OSError, match="Read-only") as caught:
        write_whole(tmp_path / "a", b"new")
    assert caught.value.filename == str(tmp_path / "a")


def test_what_lies_elsewhere_by_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "cache" / "records").symlink_to(tmp_path / "outside")
    refuse_outside(tmp_path / "cache", tmp_path / "cache" / "parts" / "x")
    with pytest.raises(EdistillError, match="outside"):
        refuse_outside(tmp_path / "cache", tmp_path / "cache" / "records" / "x")
    (tmp_path / "here").symlink_to(tmp_path / "cache")  # the folder itself may lie elsewhere: the user named it
    refuse_outside(tmp_path / "here", tmp_path / "here" / "parts" / "x")
