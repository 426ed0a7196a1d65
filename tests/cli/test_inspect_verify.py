"""`inspect` says what any path is; `verify` recomputes a cache's checksums."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from cli_helpers import message_of
from PIL import Image
from safetensors.torch import load_file, save_file
from teachers_helpers import small_model
from typer.testing import CliRunner, Result

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cli.app import app
from ensemble_distill.workflows.verify import verify


def edistill(line: str) -> Result:
    return CliRunner().invoke(app, shlex.split(line))


def inspected(path: str) -> dict[str, Any]:
    result = edistill(f"inspect {path} --json")
    assert result.exit_code == 0, result.stderr
    record: dict[str, Any] = json.loads(result.stdout)
    shown = shown_of(path)
    assert shown[0].startswith(f"{path}: "), "and for people"
    assert len(shown) <= 22, "in about twenty lines"
    return record


def shown_of(path: str) -> list[str]:
    """The lines that a person is shown."""
    result = edistill(f"inspect {path}")
    assert result.exit_code == 0, result.stderr
    return result.stdout.splitlines()


def fact(path: str, name: str) -> str:
    """What stands behind a name there."""
    (line,) = (line for line in shown_of(path) if line.startswith(f"  {name}  "))
    return line.removeprefix(f"  {name}").strip()


@pytest.fixture
def here(digits: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(digits)
    return digits


# --- inspect ----------------------------------------------------------------------------------------------------


def test_a_cache(here: Path) -> None:
    record = inspected("cache")
    assert (record["kind"], record["dtype"]) == ("cache", "float16")
    assert [member["name"] for member in record["members"]] == [f"member-{index:02d}" for index in range(8)]
    assert {name: (split["rows"], split["views"]) for name, split in record["splits"].items()} == {
        "train": (1000, 2),
        "validation": (200, 1),
        "test": (400, 1),
        "calibration": (197, 1),
        "ood/quarter-turned": (400, 1),
    }
    assert record["bytes"] == sum(path.stat().st_size for path in Path("cache/records").rglob("*.npy"))


def test_a_run(here: Path) -> None:
    record = inspected("runs/hydra-s0")
    assert (record["kind"], record["method"]["name"], record["student"]["heads"]) == ("run", "hydra", 8)
    assert {"student.safetensors", "args.toml", "summary.csv", "export/model.onnx"} <= set(record["files"])


@pytest.mark.thorough
def test_what_comes_next_of_a_run(here: Path) -> None:
    run, export = "runs/hydra-s0", Path("runs/hydra-s0/export")
    assert shown_of(run)[-1] == f"next: edistill evaluate {run}"
    assert edistill("evaluate").exit_code == 0
    assert fact(run, "evaluated on") == "test"
    assert shown_of(run)[-1] == f"next: edistill predict INPUTS --model {export}/model.onnx"
    assert edistill("calibrate").exit_code == 0
    assert fact(run, "calibrated") == "yes"
    assert fact(run, "stale") == "export/model.onnx, export/model.safetensors, evaluations/test.json"
    assert shown_of(run)[-1] == f"next: edistill evaluate {run}"
    assert edistill("evaluate").exit_code == 0
    assert shown_of(run)[-1] == f"next: edistill export {run} --onnx --safetensors"
    for file in export.iterdir():
        file.unlink()
    assert shown_of(run)[-1] == f"next: edistill export {run} --onnx"


@pytest.mark.thorough
def test_what_comes_next_of_a_stale_evaluation(here: Path) -> None:
    run = "runs/hydra-s0"
    assert edistill("evaluate --split validation").exit_code == 0
    assert edistill("calibrate").exit_code == 0
    assert shown_of(run)[-1] == f"next: edistill evaluate {run} --split validation"
    assert edistill(shown_of(run)[-1].removeprefix("next: edistill ")).exit_code == 0
    assert shown_of(run)[-1] == f"next: edistill export {run} --onnx --safetensors"


def test_exported_files(here: Path) -> None:
    export = Path("runs/hydra-s0/export")
    record = inspected(f"{export}/model.onnx")
    assert (record["kind"], record["method"]) == ("onnx", "hydra")
    assert (record["input"]["name"], record["input"]["shape"]) == ("pixel_values", [1, 8, 8])
    assert record["outputs"][:2] == ["logits", "head_logits"]
    assert record["bytes"] == (export / "model.onnx").stat().st_size
    record = inspected(f"{export}/model.safetensors")
    assert (record["kind"], record["method"]["name"], len(record["members"])) == ("safetensors", "hydra", 8)


def test_exported_files_away_from_their_run(here: Path) -> None:
    Path("moved").mkdir()
    for name in ("export/model.onnx", "args.toml"):
        shutil.copy(f"runs/hydra-s0/{name}", "moved")
    Path("moved/args.toml").rename("moved/edistill.toml")
    told = inspected("moved")
    assert {row[0] for row in told["rows"]} == {"model.onnx", "edistill.toml"}
    assert told["next"] == "edistill inspect moved/model.onnx"


def test_teachers(here: Path) -> None:
    record = inspected("teachers")
    assert (record["kind"], len(record["members"])) == ("teachers", 8)
    (member,) = inspected("teachers/member-05.safetensors")["members"]
    assert member == record["members"][5]
    assert (member["model"], member["preprocessing"]["mean"]) == ("model.py:make_teacher", [0.5])


def test_teachers_that_differ_are_a_table(here: Path) -> None:
    assert fact("teachers", "their input") == "8 × 8, mean 0.5, std 0.5, bilinear"
    assert fact("teachers", "members") == "member-00, member-01, … member-07"
    assert shown_of("teachers")[-1] == "next: edistill cache-logits"
    assert shown_of("teachers/member-05.safetensors")[-1].endswith("--set teachers.path=teachers/member-05.safetensors")
    state = torch.load(_averaged(Path("teachers")), weights_only=True)
    assert set(state) == {"state_dict", "state_dict_ema"}
    assert [line for line in shown_of("teachers") if line.startswith("  weights")] == [], "it stands in the table"
    (row,) = (line for line in shown_of("teachers") if line.startswith("│ member-08"))
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["member-08", "averaged, state_dict_ema"]


def _averaged(folder: Path) -> Path:
    """A ninth member, of which its file holds an average too."""
    plain = load_file(folder / "member-00.safetensors")
    moved = {name: value + 0.01 * (at + 1) for at, (name, value) in enumerate(plain.items())}
    torch.save(
        {"state_dict": {k: v + 0.1 for k, v in moved.items()}, "state_dict_ema": moved}, folder / "member-08.pth"
    )
    return folder / "member-08.pth"


def test_teachers_that_say_all_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    torch.save({"state_dict": small_model().state_dict()}, "run/last.pth.tar")
    arguments = {"model": "test_resnet", "num_classes": 3, "input_size": [3, 32, 32], "mean": [0.5], "std": [0.25]}
    Path("run/args.yaml").write_text(yaml.safe_dump(arguments))
    record = inspected("run")
    assert [(member["name"], member["model"]) for member in record["members"]] == [("run", "test_resnet")]


def test_bare_checkpoints_of_another_folder_need_its_settings(here: Path, tmp_path: Path, monkeypatch: Any) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path = here / "teachers"
    refused = edistill(f"inspect {path}")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "teachers.model" in refused.stderr
    assert edistill(f"inspect {path} -c {here}").exit_code == 0


def test_a_folder_of_runs_is_an_ensemble(here: Path) -> None:
    record = inspected("runs")
    assert [(member["name"], member["model"]) for member in record["members"]] == [("hydra-s0", "edistill run")]


def test_a_folder_of_runs_lists_them(here: Path) -> None:
    (row,) = (line for line in shown_of("runs") if line.startswith("│ hydra-s0"))
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells == ["hydra-s0", "hydra", "8 heads", "no", "model.onnx, model.safetensors", "no"]
    assert shown_of("runs")[-1] == "next: edistill evaluate runs/hydra-s0"
    Path("runs/later").mkdir()
    shutil.copy("runs/hydra-s0/args.toml", "runs/later")
    record = inspected("runs")
    assert (record["kind"], set(record["runs"])) == ("teachers", {"hydra-s0", "later"})
    assert record["runs"]["later"].keys() == {"problem"}
    assert record["runs"]["hydra-s0"]["predictions"] == 8
    assert any("unfinished" in line for line in shown_of("runs") if line.startswith("│ later"))
    Path("runs/hydra-s0/student.safetensors").write_bytes(b"")
    record = inspected("runs")
    assert (record["kind"], "members" in record) == ("runs", False), "they are no ensemble, and are listed"
    assert "student.safetensors is damaged" in record["runs"]["hydra-s0"]["problem"]


def test_a_folder_of_data_lists_it(here: Path) -> None:
    record = inspected("data")
    assert (record["kind"], len(record["data"])) == ("folder", 5)
    assert record["data"]["test.npz"] == {"rows": 400, "holds": "pixels", "classes": None, "labels": True}
    for place in ("pictures/train/cat", "pictures/test/cat", "pictures/test/dog", "pictures/more/of"):
        Path(place).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(f"{place}/0.png")
    Path("pictures/ood").mkdir()
    shutil.copy("data/test.npz", "pictures/ood/noise.npz")
    Path("pictures/torn.npz").write_bytes(b"no array")
    found = inspected("pictures")["data"]
    assert list(found) == ["more", "ood/noise.npz", "test", "torn.npz", "train"]
    assert [found[name].get("rows") for name in found] == [1, 400, 2, None, 1]
    assert found["test"]["classes"] == ["cat", "dog"]
    assert "torn.npz" in found["torn.npz"]["problem"]


def test_classes_that_are_called_as_splits_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of a train stands right in its class."""
    monkeypatch.chdir(tmp_path)
    for place in ("vehicles/train", "vehicles/ship"):
        Path(place).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(f"{place}/0.png")
    assert inspected("vehicles")["classes"] == ["ship", "train"]


def test_an_exported_file_of_another_hand(here: Path) -> None:
    save_file({"x": torch.zeros(1)}, "it.safetensors", {"edistill": '{"task": "classification"}'})
    assert shown_of("it.safetensors")[:3] == ["it.safetensors", "  kind: safetensors", "  task: classification"]


def test_data(here: Path) -> None:
    record = inspected("data/test.npz")
    assert {key: record[key] for key in ("kind", "rows", "holds", "classes", "labels")} == {
        "kind": "data",
        "rows": 400,
        "holds": "pixels",
        "classes": None,
        "labels": True,
    }
    assert record["digest"] == Manifest.load(here / "cache").splits["test"].digest
    for name in ("cat", "dog"):
        Path(f"images/{name}").mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(f"images/{name}/0.png")
    record = inspected("images")
    assert (record["rows"], record["classes"], record["labels"]) == (2, ["cat", "dog"], True)
    record = inspected("images/cat/0.png")
    assert (record["rows"], record["labels"]) == (1, False)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("nothing", "There is no nothing. Give a run, a cache, an .onnx file, a folder of teachers, or data."),
        ("model.py", "model.py is not a run, cache or exported file. As teachers: "),
        ("texts", "As data: texts holds no images."),
        ("empty", "As teachers: empty has no member in it: it is empty."),
        ("wrong.onnx", "wrong.onnx is not an ONNX file that onnxruntime can run"),
        ("torn.safetensors", "torn.safetensors"),
        ("unfinished", "unfinished run (student.safetensors is missing). Run edistill train -c unfinished/args.toml."),
        ("odd", "odd/manifest.json is damaged"),
        (".", ". is a folder to work in, by its edistill.toml. Give a part of it: cache/, data/, "),
    ],
)
def test_what_is_none_of_these(here: Path, path: str, told: str) -> None:
    for name in ("empty", "unfinished", "odd"):
        Path(name).mkdir()
    Path("texts").mkdir()
    Path("texts/note.txt").write_text("no data")
    Path("wrong.onnx").write_text("no model")
    Path("torn.safetensors").write_bytes(Path("teachers/member-00.safetensors").read_bytes()[:100])
    shutil.copy("runs/hydra-s0/args.toml", "unfinished")
    Path("odd/manifest.json").write_text("{}")
    result = edistill(f"inspect {path}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in message_of(result.stderr)


def test_commands_to_copy_quote_what_a_shell_would_split(here: Path) -> None:
    Path("runs").rename("my runs")
    Path("my runs/hydra-s0").rename("my runs/a run")
    for path in ("my runs", "my runs/a run", "my runs/a run/config.json"):
        result = edistill(f"inspect '{path}'")
        assert result.exit_code == 0, result.stderr
        assert "'my runs/a run" in result.stdout.rpartition("next: edistill ")[2]
    Path("my runs/a run/student.safetensors").unlink()
    assert told_command("my runs/a run") == ["edistill", "train", "-c", "my runs/a run/args.toml"]


def told_command(path: str) -> list[str]:
    """The command that `inspect` proposes, as a shell takes it apart."""
    return shlex.split(edistill(f"inspect '{path}'").stdout.rpartition("next: ")[2])


# --- verify -----------------------------------------------------------------------------------------------------


def test_a_whole_cache(here: Path) -> None:
    result = edistill("verify")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "cache: 48 records, all whole\n", "")
    assert json.loads(edistill("verify cache --json").stdout) == {
        "folder": "cache",
        "records": 48,
        "problems": [],
        "unfinished": [],
        "students": 0,
        "decoded": 0,
        "remedy": None,
    }


def test_the_cache_of_another_file_is_verified(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path("edistill.toml").absolute()
    monkeypatch.chdir(tmp_path)
    assert edistill(f"verify -c {file}").stdout.endswith("cache: 48 records, all whole\n")


def test_every_damaged_record_is_named(here: Path) -> None:
    records = Path("cache/records")
    (records / "test/member-02.v0.npy").unlink()
    changed = records / "train/member-01.v1.npy"
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    result = edistill("verify")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{records}/test/member-02.v0.npy is missing" in result.stderr
    assert f"{changed} has sha256 " in result.stderr
    assert "Delete those files and run edistill cache-logits to compute them again." in result.stderr
    assert len(verify(Path("cache")).problems) == 2


def test_an_unfinished_cache_is_whole_as_far_as_it_goes(here: Path) -> None:
    """What a pass leaves that was killed: splits in the manifest whose records are not."""
    manifest = Manifest.load(Path("cache"))
    records = {key: digest for key, digest in manifest.records.items() if key.split in ("train", "test")}
    Manifest(**{**vars(manifest), "records": records}).save(Path("cache"))
    result = edistill("verify")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "cache: 24 records, all whole; unfinished: validation, calibration, ood/quarter-turned\n"


def test_what_is_no_cache(here: Path) -> None:
    result = edistill("verify data")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "data holds no cache, no run and no chain. Give one, or run edistill cache-logits first." in message_of(
        result.stderr
    )


def test_a_member_of_the_cache_reads_as_a_teacher(here: Path) -> None:
    """The digest that `inspect` shows for a teacher is the one in the cache, however the file is named."""
    shutil.copy("teachers/member-00.safetensors", "copy.safetensors")
    (member,) = inspected("copy.safetensors")["members"]
    assert member["sha256"] == inspected("cache")["members"][0]["sha256"]
