"""What has no end, or claims terabytes, in the place of files that are read whole: one message, and no memory taken."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import make_folder, refused, settings

import ensemble_distill
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.parts import Block, Parts
from ensemble_distill.cache.reader import Cache
from ensemble_distill.cache.record_key import RecordKey
from ensemble_distill.data import open_source
from ensemble_distill.data.decoded_blocks import Blocks
from ensemble_distill.data.folders import is_sharded, shards_in
from ensemble_distill.runs import exports
from ensemble_distill.runs.args import read_args
from ensemble_distill.runs.run import Run
from ensemble_distill.settings import load_settings
from ensemble_distill.teachers.outputs import holds_inputs
from ensemble_distill.teachers.said import json_said, yaml_said
from ensemble_distill.training.checkpoint import load_state
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.train import train

TERABYTES = 1 << 41  # of a file that has none of them on disk
RUN = "runs/hydra-s0"
READ: dict[str, Callable[[Path], Any]] = {
    "edistill.toml": load_settings,
    "args.yaml": yaml_said,
    "teacher/config.json": json_said,
    "cache/manifest.json": lambda file: Manifest.load(file.parent),
    "cache/records/test/member-0.v0.npy": lambda file: Cache(file.parents[2]).open("test").read([0]),
    f"{RUN}/config.json": lambda file: Run.open(file.parent),
    f"{RUN}/student.safetensors": lambda file: Run.open(file.parent),
    f"{RUN}/calibration.json": lambda file: Run.open(file.parent),
    f"{RUN}/args.toml": lambda file: read_args(file.parent),
    f"{RUN}/checkpoint.safetensors": lambda file: load_state(file.parent),
    "model.onnx": exports.made_from,
    "model.safetensors": exports.made_from,
    "inspected.safetensors": inspect,
    "pictures/a/0.png": lambda file: open_source(file.parents[1]).digest,
}
FILES_ALONE = (f"{RUN}/checkpoint.safetensors", "pictures/a/0.png")  # of these, what is no file is not there


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_folder(tmp_path_factory.mktemp("made") / "folder", members=2)
    cache_logits(settings(folder))
    train(settings(folder, {"train.epochs": 1}))
    (folder / "pictures" / "a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "pictures" / "a" / "1.png")
    (folder / "teacher").mkdir()
    return folder


@pytest.fixture
def swapped(made: Path, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A file whose place a test may take; what was there comes back."""
    file = made / request.param
    was = file.read_bytes() if file.exists() else None
    file.unlink(missing_ok=True)
    yield file
    file.unlink(missing_ok=True)
    if was is not None:
        file.write_bytes(was)


@pytest.mark.parametrize("swapped", READ, indirect=True)
def test_files_that_claim_terabytes(made: Path, swapped: Path) -> None:
    with swapped.open("wb") as file:
        if swapped.name == "inspected.safetensors":  # one that looks like an export of ours
            header = b'{"__metadata__":{"edistill":"{}"}}'
            file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(TERABYTES)
    _refused_at_once(made, swapped)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there are no devices")
@pytest.mark.parametrize("swapped", [name for name in READ if name not in FILES_ALONE], indirect=True)
def test_devices_and_pipes(made: Path, swapped: Path) -> None:
    swapped.symlink_to("/dev/zero")
    _refused_at_once(made, swapped)
    swapped.unlink()
    os.mkfifo(swapped)
    _refused_at_once(made, swapped)


def _refused_at_once(made: Path, file: Path) -> None:
    tracemalloc.start()
    try:
        with refused(file.name):
            READ[file.relative_to(made).as_posix()](file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()


# what is no file is no block, no archive and no outputs, and a pipe is not waited for
PASSED_OVER: dict[str, Callable[[Path], object]] = {
    "cache/parts/test/0000000000-0000000008-0.safetensors": lambda file: Parts(file.parents[2]).path(
        Block(0, 8), RecordKey("test", "member-0", 0)
    ),
    "cache/decoded/test/0000000000-0000000008.safetensors": lambda file: Blocks(
        file.parents[2], file.parent.name, "0"
    ).is_whole(range(8)),
    "shards/a.tar": lambda file: is_sharded(file.parent),
    "teachers/answers.npz": holds_inputs,
}


@pytest.mark.parametrize("name", PASSED_OVER)
def test_a_pipe_in_the_place_of_what_may_be_there(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    os.mkfifo(file)
    assert not PASSED_OVER[name](file)


def test_a_pipe_among_shards(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "b.tar")
    with refused("b.tar", "a pipe"):
        shards_in(tmp_path)


def test_verify_reads_no_record_that_is_longer_than_it_should_be(made: Path) -> None:
    record = made / "cache/records/test/member-1.v0.npy"
    was = record.read_bytes()
    try:
        with record.open("r+b") as file:
            file.truncate(TERABYTES)  # its checksum would take an hour
        (problem,) = Cache(made / "cache").verify()
        assert str(record) in problem
        assert "bytes of records" in problem
    finally:
        record.write_bytes(was)


def test_files_are_read_whole_in_one_place() -> None:
    """So that each has a bound."""
    root = Path(ensemble_distill.__file__).parent
    own = {"runtime/files.py", "workflows/quickstart.py", "runtime/registry.py"}  # these two read what is installed
    own |= {"runtime/control_groups.py"}  # what the system itself says
    reading = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if any(call in path.read_text() for call in (".read_bytes()", ".read_text("))
    }
    assert reading <= own
