"""One flipped bit in any file of a run: one message that names the file and what to do, or nothing changes at all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from runs_helpers import RUN, said_by
from safetensors.torch import load, save
from tiny import refused, settings
from trusted import EVERYTHING

from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.args import read_args
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.seals import ONNX_KEY
from ensemble_distill.serving.served import Served
from ensemble_distill.training.checkpoint import load_state
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.train import train


@pytest.fixture
def folder(runs: Path) -> Path:
    return runs


def predicted(path: Path) -> Any:
    served = Served(path)
    x = np.linspace(-1, 1, 72, dtype=np.float32).reshape(2, 1, 6, 6)
    return served.card, {name: values.tobytes() for name, values in served.run(x).items()}


def resumed(run: Path) -> Any:
    state = load_state(run)
    return repr(state), [tensor.numpy().tobytes() for tensor in (state or {})["student"].values()]


# the files of a run, and what reads each of them
READERS: dict[str, Callable[[Path], Any]] = {
    "student.safetensors": said_by,
    "config.json": said_by,
    "calibration.json": said_by,
    "checkpoint.safetensors": resumed,
    "args.toml": lambda run: read_args(run).model_dump(),
    "export/model.onnx": lambda run: predicted(run / "export/model.onnx"),
    "export/model.safetensors": lambda run: inspect(run / "export/model.safetensors"),
    "export/config.json": lambda run: StudentConfig.load(run / "export"),
}
REMEDIES: dict[str, Callable[[Path], object]] = {
    "calibration.json": lambda folder: calibrate(settings(folder), RUN),
    "export/model.onnx": lambda folder: export(settings(folder), RUN, onnx=True),
    "export/model.safetensors": lambda folder: export(settings(folder), RUN, safetensors=True),
    "export/config.json": lambda folder: export(settings(folder), RUN, safetensors=True),
}


def refusal(act: Callable[[], object]) -> str | None:
    """What it is refused with, if it is."""
    try:
        act()
    except EdistillError as error:
        return str(error)
    return None


def unchanged(now: Any, before: Any) -> None:
    assert now == before


BESIDE = ("export/README.md", "export/edistill.toml")  # for people and for whoever trains again
PARTS = 16  # that a file is cut into; a bit of each is flipped


def test_every_file_that_is_read_again_has_a_reader_here(runs_session: Path) -> None:
    run = runs_session / RUN
    kept = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file() and path.name[0] != "."}
    evaluations = {name for name in kept if name.startswith("evaluations/")}  # see `test_run_belonging`
    assert kept - evaluations - READERS.keys() == {"summary.csv", *BESIDE}, "which nothing reads"


@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_is_refused_by_name_or_changes_nothing(folder: Path, name: str) -> None:
    run, read = folder / RUN, READERS[name]
    path, before = run / name, read(run)
    whole = path.read_bytes()
    found = 0
    for part in range(PARTS):
        at = min(len(whole) - 1, (2 * part + 1) * len(whole) // (2 * PARTS))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << part % 8)]) + whole[at + 1 :])
        if (told := refusal(lambda: unchanged(read(run), before))) is not None:
            found += 1
            assert Path(name).name in told
            assert "edistill" in told
    assert found >= PARTS * 3 // 4
    path.write_bytes(whole[: len(whole) // 2])
    with refused(Path(name).name):
        read(run)
    REMEDIES.get(name, lambda here: train(settings(here), overwrite=True))(folder)
    read(run)


def unsealed_json(path: Path) -> None:
    record = json.loads(path.read_text())
    record.pop("sha256")
    path.write_text(json.dumps(record))


def unsealed_tensors(path: Path) -> None:
    path.write_bytes(save(load(path.read_bytes()), metadata={"version": "0.1.1", "state": "{}", "edistill": "{}"}))


def unsealed_graph(path: Path) -> None:
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {e.key: e.value for e in model.metadata_props if e.key != ONNX_KEY})
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("name", [name for name in READERS if name != "args.toml"])
def test_what_says_a_later_version_must_hold_a_digest(folder: Path, name: str) -> None:
    path = folder / RUN / name
    {".json": unsealed_json, ".safetensors": unsealed_tensors, ".onnx": unsealed_graph}[path.suffix](path)
    with refused("damaged", "sha256 is missing"):
        READERS[name](folder / RUN)


def test_a_text_that_lost_its_digest_says_the_same(folder: Path) -> None:
    before = read_args(folder / RUN)
    path = folder / RUN / "args.toml"
    text = path.read_bytes()
    path.write_bytes(text[text.index(b"\n") + 1 :])
    assert read_args(folder / RUN) == before


# --- what no training writes ------------------------------------------------------------------------------------

DEEP = "[" * 100_000


@pytest.mark.parametrize("name", ["config.json", "calibration.json", "export/config.json"])
def test_json_that_is_nested_too_deeply(folder: Path, name: str) -> None:
    (folder / RUN / name).write_text('{"edistill": ' + DEEP)
    with refused("damaged", "nested too deeply"):
        READERS[name](folder / RUN)


@pytest.mark.parametrize("name", ["student.safetensors", "checkpoint.safetensors", "export/model.safetensors"])
@pytest.mark.parametrize("header", [DEEP, '{"w": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}'])
def test_headers_that_claim_what_is_not_there(folder: Path, name: str, header: str) -> None:
    path = folder / RUN / name
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
    with refused(path.name):
        READERS[name](folder / RUN)


def leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where everything stands in a document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([at] if at else []), *(leaf for key, item in inside for leaf in leaves(item, (*at, key)))]


WRONG = (None, True, -1, 10**12, 1e300, "x", "x:y", [], [10**12], {}, {"x": 1}, [[]])


@pytest.mark.thorough
def test_a_config_of_wrong_types_is_one_message(folder: Path) -> None:
    """Or a student all the same, where what is wrong makes no difference to it."""
    import tiny

    config = tiny.unseal(folder / RUN)
    (folder / RUN / "calibration.json").unlink()
    whole, opened = config.read_text(), Counter[bool]()
    for at in leaves(json.loads(whole)):
        for wrong in WRONG:
            document = json.loads(whole)
            place = document
            for key in at[:-1]:
                place = place[key]
            place[at[-1]] = wrong
            config.write_text(json.dumps(document))
            told = refusal(lambda: Run.open(folder / RUN).student(trust=EVERYTHING))
            assert told is None or str(folder / RUN) in told or "student" in told, (at, wrong, told)
            opened[told is None] += 1
    assert opened[False] > opened[True] > 0


@pytest.mark.parametrize("wrong", [[], 7, {"weights": 7}, {"weights": "0" * 64, "edistill": []}, {"edistill": "0.1.0"}])
def test_a_calibration_of_wrong_types_is_one_message(folder: Path, wrong: Any) -> None:
    (folder / RUN / "calibration.json").write_text(json.dumps(wrong))
    with refused("calibration.json is damaged", f"edistill calibrate {folder / RUN} --remove"):
        said_by(folder / RUN)
    calibrate(settings(folder), RUN, remove=True)
    said_by(folder / RUN)
