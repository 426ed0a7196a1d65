"""Every write of the commands, enumerated: with a full disk, with the folder gone, and where links lead out of a run.
And what a complete cache needs: nothing."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from tiny import contents, killed_at, make_folder, refused, settings
from typer.testing import CliRunner

from ensemble_distill.cache import writer
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.chains.generations import train_chain
from ensemble_distill.cli.app import app
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime import files
from ensemble_distill.runtime.lock import one_writer
from ensemble_distill.settings import Settings
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.train import train

pytestmark = [pytest.mark.usefixtures("no_waiting_for_disks"), pytest.mark.thorough]
ROWS = {"train": 24, "validation": 20, "ood/noise": 5}
QUICK = {"train.epochs": 2}
MODEL = "runs/hydra-s0/export/model.onnx"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything: cache, run, evaluation, calibration, exported files."""
    folder = make_folder(tmp_path_factory.mktemp("writes") / "tiny", members=2, rows=ROWS)
    asked = settings(folder, QUICK)
    cache_logits(asked)
    train(asked)
    evaluate(asked)
    calibrate(asked)
    export(asked, onnx=True, safetensors=True)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(made, tmp_path / "tiny"))
    monkeypatch.chdir(folder)
    return folder


# --- a full disk ------------------------------------------------------------------------------------------------

COMMANDS = {
    "cache-logits": ("cache-logits", "cache"),
    "train": ("train --set train.epochs=2", "runs"),
    "calibrate": ("calibrate", "runs/hydra-s0/calibration.json"),
    "export": ("export --onnx --safetensors", "runs/hydra-s0/export"),
    "predict": (f"predict data/validation.npz -m {MODEL} -o out.csv", "out.csv"),
}


def room_for(count: int) -> Callable[[Path, Iterable[bytes]], None]:
    """A disk that takes so many files, and of the next one half."""
    left, write = [None] * count, files._write

    def full(path: Path, chunks: Iterable[bytes]) -> None:
        if not left:
            path.write_bytes(b"as much as there was room for")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left.pop()
        write(path, chunks)

    return full


@pytest.mark.parametrize(("line", "made_anew"), COMMANDS.values(), ids=COMMANDS.keys())
def test_a_full_disk_names_the_file_at_each_write(
    folder: Path, line: str, made_anew: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is lost by it: once there is room the same command goes on."""
    gone = folder / made_anew
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
    named: list[str] = []
    for count in itertools.count():
        with monkeypatch.context() as patch:
            patch.setattr(files, "_write", room_for(count))
            result = CliRunner().invoke(app, line.split())
        if result.exit_code == 0:
            break
        assert result.exit_code == 2, result.output
        assert "No space left on device" in result.stderr
        named += [word.rstrip(":") for word in result.stderr.split() if word.startswith(made_anew)]
        assert len(named) == count + 1, result.stderr
        assert not list(folder.rglob("*.part")), "what takes room for nothing is gone"
    assert count >= 1
    assert CliRunner().invoke(app, line.split()).exit_code == 0
    assert all((folder / name).is_file() for name in named if "/parts/" not in name)


# --- what goes away meanwhile -----------------------------------------------------------------------------------


class Removing:
    """In the place of a crash, somebody removes a folder."""

    def __init__(self, gone: Path, point: int) -> None:
        self.gone, self.left = gone, point

    def __call__(self, step: str, path: Path) -> None:
        if self.left == 0:
            shutil.rmtree(self.gone, ignore_errors=True)
        self.left -= 1


@pytest.mark.parametrize("gone", ["cache", "cache/parts"])
def test_a_cache_that_is_removed_meanwhile_is_one_message(
    folder: Path, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each write; the same command makes it again."""
    whole = contents(folder / "cache", ["args.toml"])
    for point in itertools.count(0, 3):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        removing = Removing(folder / gone, point)
        with monkeypatch.context() as patch:
            patch.setattr(files, "crash_point", removing)
            with contextlib.suppress(EdistillError, OSError):
                cache_logits(settings(folder, QUICK))
        if removing.left >= 0:
            break
        cache_logits(settings(folder, QUICK))
        assert contents(folder / "cache", ["args.toml"]) == whole
    assert point > 20


# --- joins ------------------------------------------------------------------------------------------------------


def test_a_join_killed_anywhere_goes_on_where_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SAVE_EVERY", 2)
    more = settings(folder, {**QUICK, "views.count": 5, "output.cache": "again"})
    cache_logits(settings(folder, {**QUICK, "views.count": 5, "output.cache": "whole"}))
    whole, counts = contents(folder / "whole", ["args.toml"]), set()
    for point in itertools.count(0, 3):  # of four points a write
        shutil.rmtree(folder / "again", ignore_errors=True)
        with killed_at(point, monkeypatch, folder / "again") as happened:
            cache_logits(more)
        if not happened:
            break
        if (folder / "again/manifest.json").is_file():
            counts.add(len(Manifest.load(folder / "again").records))
        cache_logits(more)
        assert contents(folder / "again", ["args.toml"]) == whole, f"after a crash at point {point}"
    assert {0, 2, 4, 6, 8, 10} <= counts, "noted as it goes"


def test_large_records_are_noted_one_by_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = Manifest.save
    monkeypatch.setattr(Manifest, "save", lambda self, to: (saved.append(len(self.records)), save(self, to))[1])
    monkeypatch.setattr(writer, "SAVE_BYTES", 1)
    cache_logits(settings(folder, {**QUICK, "output.cache": "again"}))
    assert saved == list(range(0, 9))


# --- a complete cache -------------------------------------------------------------------------------------------


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Names, locks included, with sizes and times."""
    found = [folder, *folder.rglob("*")]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def test_a_complete_cache_needs_no_lock_and_no_rights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = folder / "cache"
    (cache / ".lock").unlink()
    before = everything(cache)

    def read_only(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        for name in ("_write", "make_folder", "remove_file", "remove_tree", "sync_folder"):
            patch.setattr(files, name, read_only)
        assert cache_logits(settings(folder, QUICK)).added == 0
        assert train(settings(folder, QUICK)).fresh is False
    assert everything(cache) == before
    with one_writer(cache):
        assert cache_logits(settings(folder, QUICK)).added == 0
        with refused("Another process is writing"):
            cache_logits(settings(folder, {**QUICK, "views.count": 3}))


# --- temporary files and locks ----------------------------------------------------------------------------------


def temporary(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".edistill-0123456789abcdef.part"
    path.write_text("half")
    return path


def test_a_lock_cleans_its_own_folder_and_leaves_those_of_other_writers(tmp_path: Path) -> None:
    own = [temporary(tmp_path / "run" / name) for name in (".", "evaluations", "deep/er")]
    with one_writer(tmp_path / "run" / "export"):
        others = temporary(tmp_path / "run" / "export" / "x")
        with one_writer(tmp_path / "run"):
            assert not any(path.exists() for path in own)
            assert others.exists()
    with one_writer(tmp_path / "run" / "export"):
        assert not others.exists()


def test_a_folder_that_is_removed_under_its_lock_is_no_second_error(tmp_path: Path) -> None:
    def remove() -> None:
        with one_writer(tmp_path / "cache"):
            shutil.rmtree(tmp_path / "cache")
            raise KeyError("the first")

    with pytest.raises(KeyError):
        remove()
    with one_writer(tmp_path / "cache"):
        pass


def test_rights_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a" / "file", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a/file").stat().st_mode & 0o777 == 0o640


# --- folders in folders that are removed as a whole -------------------------------------------------------------


INSIDE = ["cache/parts", "cache/records/mine", "runs/hydra-s0/evaluations", "runs/hydra-s0/export/a"]


@pytest.mark.parametrize("inside", INSIDE)
def test_nothing_is_made_in_what_is_removed_with_something_else(folder: Path, inside: str) -> None:
    """`cache/parts/hydra-s1` would go with the next cache-logits."""
    shutil.rmtree(folder / "runs/hydra-s0/evaluations")
    before = contents(folder)
    runs = {"output.runs": inside, "output.name": "mine"}
    for overrides, command in (
        ({"output.cache": f"{inside}/mine"}, cache_logits),
        (runs, train),
        ({**runs, "train.method": "ban", "train.generations": 2}, train_chain),
    ):
        with refused(f"{inside}/mine lies in", "Name another folder in output."):
            command(settings(folder, {**QUICK, **overrides}))  # type: ignore[operator]
    assert contents(folder) == before


# --- links in a run ---------------------------------------------------------------------------------------------

WRITERS: dict[str, tuple[str, Callable[[Settings], object]]] = {
    "evaluations": ("runs/hydra-s0/evaluations", evaluate),
    "evaluations/ood": ("runs/hydra-s0/evaluations/ood", evaluate),
    "export": ("runs/hydra-s0/export", lambda asked: export(asked, onnx=True, safetensors=True)),
}


@pytest.mark.parametrize(("place", "command"), WRITERS.values(), ids=WRITERS.keys())
def test_nothing_is_written_where_a_link_in_a_run_leads(
    folder: Path, place: str, command: Callable[[Settings], object]
) -> None:
    victim = folder.parent / "victim"
    shutil.move(folder / place, victim)
    for path in victim.rglob("*"):
        if path.is_file():
            path.write_text("mine")
    (folder / place).symlink_to(victim)
    before = everything(victim)
    with refused(f"{place.rpartition('/')[2]}", "since a link leads out of", "Remove the link"):
        command(settings(folder, QUICK))
    assert everything(victim) == before
    (folder / place).unlink()
    command(settings(folder, QUICK))
    assert everything(victim) == before


@pytest.mark.parametrize("place", ["generation-1", "generation-2", "caches", "caches/generation-1"])
def test_nothing_is_written_where_a_link_in_a_chain_leads(folder: Path, place: str) -> None:
    asked = settings(folder, {**QUICK, "train.method": "ban", "train.generations": 2, "output.name": "chain"})
    train_chain(asked)
    chain, victim = folder / "runs/chain", folder.parent / "victim"
    (chain / "generation-2/student.safetensors").unlink()
    (chain / "args.toml").touch()
    shutil.move(chain / place, victim)
    (chain / place).symlink_to(victim)
    before = everything(victim)
    with refused("since a link leads out of", "put the folder that it leads to in its place"):
        train_chain(asked)
    assert everything(victim) == before
    (chain / place).unlink()
    shutil.copytree(victim, chain / place)
    train_chain(asked)
