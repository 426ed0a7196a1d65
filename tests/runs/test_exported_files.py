"""Which exported file a name or a folder stands for, by one stated rule."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from runs_helpers import RUN
from safetensors.torch import load_file, save_file
from tiny import refused

from ensemble_distill.runs.exported_files import export_at, located, refuse_other_content, taken
from ensemble_distill.runs.exports import made_from as made_from_of
from ensemble_distill.runs.exports import refuse_stale
from ensemble_distill.runs.finding import find_run
from ensemble_distill.runs.folder import export_again, run_of
from ensemble_distill.workflows.inspect import inspect

EXPORT = Path(RUN) / "export"


def test_a_name_is_a_file_by_itself_or_below_the_runs(runs: Path) -> None:
    told: list[str] = []
    for name in (f"{EXPORT}/model.onnx", "hydra-s0/export/model.onnx"):
        found = located(Path("runs"), name, told.append)
        assert found is not None
        assert found.samefile(EXPORT / "model.onnx")
    assert located(Path("runs"), "nothing.pt2", told.append) == Path("nothing.pt2"), "who opens it tells"
    assert located(Path("runs"), "hydra-s0", told.append) is None, "a run is not a file"
    assert located(Path("runs"), "no-run", told.append) is None
    assert not told


def test_a_folder_is_its_model_onnx_and_nothing_needs_to_be_said(runs: Path) -> None:
    told: list[str] = []
    for name in (str(EXPORT), "hydra-s0/export"):
        found = located(Path("runs"), name, told.append)
        assert found is not None
        assert found.samefile(EXPORT / "model.onnx")
    assert export_at(Path(RUN), told.append) == EXPORT / "model.onnx", "of a run, for who takes files alone"
    assert not told


def test_of_several_the_first_by_the_rule_is_taken_and_told(runs: Path) -> None:
    away = Path("away")
    away.mkdir()
    for name in ("model-int8.onnx", "b.onnx", "a.onnx"):
        shutil.copy(EXPORT / "model.onnx", away / name)
    shutil.copy(EXPORT / "model.safetensors", away)
    order = ["model.safetensors", "model-int8.onnx", "a.onnx", "b.onnx"]
    for left in range(len(order), 0, -1):
        told: list[str] = []
        assert taken(away, told.append) == away / order[0]
        assert bool(told) == (left > 1)
        if told:
            assert all(name in told[0] for name in order)
            assert f"{away / order[0]} is taken" in told[0]
        (away / order.pop(0)).unlink()
    assert taken(away, [].append) is None


def test_a_folder_of_others_files_is_none_of_exports(runs: Path) -> None:
    assert taken(Path("teachers"), [].append) is None
    merged = Path("merged")
    merged.mkdir()
    save_file(load_file("teachers/member-0.safetensors"), merged / "model.safetensors")
    assert taken(merged, [].append) is None, "a timm folder has a file of that name, too"


def test_an_empty_folder_of_exports_says_how_it_is_filled(runs: Path) -> None:
    (Path("runs/other") / "export").mkdir()
    with refused("runs/other/export holds no exported file", "edistill export runs/other --onnx"):
        located(Path("runs"), "runs/other/export", [].append)
    with refused("holds no export/model.onnx"):
        export_at(Path("runs/other"), [].append)


@pytest.mark.parametrize("length", [0x08, 0x50, 0x80])
def test_a_header_of_any_length_is_one_of_safetensors(tmp_path: Path, length: int) -> None:
    """Its first byte may be that of a pickle, of an archive or of an ONNX file."""
    file, text = tmp_path / "a.safetensors", b'{"__metadata__":{"a":"b"}}'
    file.write_bytes((0x100 + length).to_bytes(8, "little") + text.ljust(0x100 + length))
    refuse_other_content(file)
    with refused("by its content it is a safetensors file", "a.safetensors"):
        refuse_other_content(file.rename(tmp_path / "a.onnx"))


@pytest.mark.parametrize("moved", [False, True])
def test_inspect_lists_the_folder_and_names_the_file(runs: Path, moved: bool) -> None:
    folder = EXPORT.rename("away") if moved else EXPORT
    (folder / "edistill.toml").unlink(missing_ok=True)
    found = inspect(folder)
    assert "exported files" in found["what"]
    assert {"model.onnx", "model.safetensors"} <= {name for name, _ in found["rows"]}
    assert found["next"] == f"edistill inspect {folder}/model.onnx"


def test_inspect_tells_of_every_kind_what_predict_can_use(runs: Path) -> None:
    record = inspect(EXPORT / "model.safetensors")
    json.dumps(record)
    assert "reference" not in record, "there were no calibration rows"


def test_a_run_around_the_working_folder_has_its_name(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for inside, name in (("", "."), ("export", ".."), ("export", "../../hydra-s0"), ("", "../hydra-s0/.")):
        with monkeypatch.context() as patch:
            patch.chdir(Path(RUN) / inside)
            assert find_run(Path("runs"), name).folder.name == "hydra-s0"


def test_a_file_of_the_working_folder_belongs_to_the_run_around_it(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_from = inspect(EXPORT / "model.onnx")["made_from"]
    monkeypatch.chdir(EXPORT)
    for name in ("model.onnx", "./model.onnx", "../export/model.onnx", str(Path("model.onnx").absolute())):
        assert inspect(Path(name))["made_from"] == made_from
        assert run_of(Path(name)).samefile("..")
    assert export_again(Path("model.safetensors")) == "edistill export .. --safetensors"
    monkeypatch.chdir("..")
    assert export_again(Path("export/model.onnx")) == "edistill export . --onnx"
    (Path("student.safetensors")).write_bytes(b"other")
    monkeypatch.chdir("export")
    with refused("model.onnx was made of weights", "edistill export .. --onnx"):
        refuse_stale(Path("model.onnx"), made_from_of(Path("model.onnx")))
