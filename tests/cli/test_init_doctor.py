"""Starting from nothing: `init` writes settings that run or names what to fill in; `doctor` names all that is wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_regression
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import contents, make_folder, refused, save_data, save_member, settings
from torch import nn
from typer.testing import CliRunner, Result

from ensemble_distill.cache.reader import Cache
from ensemble_distill.cli.app import app
from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.run import Run
from ensemble_distill.settings import load_settings
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.doctor import doctor
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.init import init
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.train import train

FILLED = {"teachers.preprocessing": {"size": [6, 6], "mean": [0.5], "std": [0.5]}}


def edistill(line: str) -> Result:
    return CliRunner().invoke(app, shlex.split(line))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with ours/, which has teachers, data and a model.py."""
    make_folder(tmp_path / "ours")
    (tmp_path / "ours/edistill.toml").unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- init -------------------------------------------------------------------------------------------------------


def test_what_lacks_one_line_names_it_and_then_runs(here: Path) -> None:
    result = edistill("init ours")
    assert result.exit_code == 0, result.output
    text = Path("edistill.toml").read_text()
    (line,) = re.findall(r"fill in: edistill.toml, line (\d+): preprocessing", result.stdout)
    assert "FILL IN" in text.splitlines()[int(line) - 1]
    assert "size = [6, 6]" in text.splitlines()[int(line) - 1], "as the pictures are"
    assert "next: edistill doctor" in result.stdout
    written = tomllib.loads(text)
    assert written["teachers"] == {"path": "ours/teachers", "model": "ours/model.py:make_teacher", "output": "logits"}
    assert written["data"] == {
        **{split: f"ours/data/{split}.npz" for split in ("train", "validation", "test")},
        "ood": {"noise": "ours/data/ood/noise.npz"},
    }
    assert written["student"] == {"model": "ours/model.py:make_body"}
    with refused("teachers.preprocessing"):
        cache_logits(load_settings())
    given = load_settings(None, {**FILLED, "train.epochs": 4})
    assert cache_logits(given).splits["train"] == (40, 4)
    assert train(given).fresh


def test_nothing_of_the_folder_runs(here: Path) -> None:
    Path("ours/model.py").write_text(tiny.MODEL + "\nraise SystemExit('it ran')\n")
    assert init("ours").files == (Path("edistill.toml"),)


def test_a_file_that_is_there_stays(here: Path) -> None:
    Path("edistill.toml").write_text("# mine\n")
    result = edistill("init ours")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "edistill.toml is there already" in result.stderr
    assert Path("edistill.toml").read_text() == "# mine\n"
    assert edistill("init ours --overwrite").exit_code == 0
    assert "# mine" not in Path("edistill.toml").read_text()


def test_weights_alone_get_a_stub_that_says_what_is_in_them(here: Path) -> None:
    Path("ours/model.py").unlink()
    report = init("ours")
    assert {str(file) for file in report.files} == {"model.py", "edistill.toml"}
    stub = Path("model.py").read_text()
    assert "2  bias 3, weight 3×36   Linear(36, 3)" in stub
    (file, line, _), *_ = report.fill
    assert file == "model.py"
    assert "raise NotImplementedError" in stub.splitlines()[line - 1]
    with refused("make_teacher() raised NotImplementedError", f"model.py, line {line}"):
        cache_logits(load_settings(None, FILLED))
    before = stub
    again = init("ours", overwrite=True)
    assert [str(file) for file in again.files] == ["edistill.toml"], "the user's own by now"
    assert again.fill[0][1] == line, "which is not filled in yet"
    assert Path("model.py").read_text() == before
    Path("model.py").write_text(tiny.MODEL)
    assert "model.py" not in {file for file, *_ in init("ours", overwrite=True).fill}


def test_a_stub_leaves_out_a_body_that_exists_elsewhere(here: Path) -> None:
    Path("ours/model.py").write_text("import torch\n\ndef make_body():\n    return torch.nn.Flatten()\n")
    report = init("ours")
    assert str(load_settings().student.model).endswith("ours/model.py:make_body")
    assert "make_body" not in Path("model.py").read_text()
    assert [why for file, _, why in report.fill if file == "model.py"] == ["build the module that these weights are of"]


def test_members_of_two_architectures_get_a_table(here: Path) -> None:
    import timm

    other = timm.create_model("test_resnet", num_classes=3)
    save_file(other.state_dict(), here / "ours/teachers/test_resnet-seed7.safetensors")
    init("ours")
    written = tomllib.loads(Path("edistill.toml").read_text())
    assert written["teachers"]["model"] == "ours/model.py:make_teacher"
    assert written["teachers"]["members"] == {"test_resnet-seed7": {"model": "test_resnet"}}
    Path("ours/teachers/test_resnet-seed7.safetensors").unlink()
    save_file(nn.Linear(5, 3).state_dict(), here / "ours/teachers/linear.safetensors")
    Path("ours/model.py").unlink()
    init("ours", overwrite=True)
    models = tomllib.loads(Path("edistill.toml").read_text())["teachers"]
    assert models["model"] == "model.py:make_teacher"
    assert models["members"] == {"linear": {"model": "model.py:make_teacher_2"}}


@pytest.mark.parametrize("name", ["test_resnet-seed1.pth", "run_test_resnet.safetensors"])
def test_an_architecture_of_timm_is_known_by_its_name_and_every_shape(tmp_path: Path, name: str) -> None:
    import timm

    (tmp_path / "nets").mkdir()
    module = timm.create_model("test_resnet", num_classes=7, in_chans=1)
    file = tmp_path / "nets" / name
    torch.save(module.state_dict(), file) if name.endswith("pth") else save_file(module.state_dict(), file)
    init(tmp_path / "nets", tmp_path)
    written = tomllib.loads((tmp_path / "edistill.toml").read_text())
    assert (written["teachers"]["model"], written["student"]["model"]) == ("test_resnet", "test_resnet")
    assert not (tmp_path / "model.py").exists()


def test_folders_of_pictures_and_one_archive_of_all_splits(here: Path) -> None:
    shutil.rmtree("ours/data")
    for split, rows in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            for row in range(rows):
                file = Path(f"ours/data/{split}/{name}/{row}.png")
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((6, 6, 3), row, np.uint8)).save(file)
    init("ours")
    data = tomllib.loads(Path("edistill.toml").read_text())["data"]
    assert data == {"train": "ours/data/train", "validation": "ours/data/val"}
    shutil.rmtree("ours/data")
    x, y = tiny.examples(9, 0)
    np.savez("ours/all.npz", train_x=x, train_y=y, x_test=x, y_test=y)
    init("ours", overwrite=True)
    data = tomllib.loads(Path("edistill.toml").read_text())["data"]
    assert data["train"] == {"source": "ours/all.npz", "x": "train_x", "y": "train_y"}
    assert data["test"] == {"source": "ours/all.npz", "x": "x_test", "y": "y_test"}


def test_the_columns_of_tables_are_for_their_owner_to_declare(here: Path) -> None:
    shutil.rmtree("ours/data")
    Path("ours/data").mkdir()
    for split in ("train", "test"):
        Path(f"ours/data/{split}.csv").write_text("age,sex,survived\n1,f,0\n2,m,1\n")
    report = init("ours")
    assert tomllib.loads(Path("edistill.toml").read_text())["data"] == {
        split: f"ours/data/{split}.csv" for split in ("train", "test")
    }
    (line,) = [line for _, line, why in report.fill if why.startswith("columns: ")]
    told = Path("edistill.toml").read_text().splitlines()[line - 1]
    assert '# columns = { inputs = ["age", "sex"], categories = { sex = ["…"] }, labels = ["survived"] }' in told
    assert report.mend == ()
    assert not [why for _, _, why in report.fill if why.startswith("preprocessing")], "tables have no pixels"
    assert [text for text in doctor(load_settings).problems if "age, sex, survived" in text]


def test_regression_is_known_by_its_targets_and_what_members_return_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_regression.make_folder(tmp_path / "ours")
    monkeypatch.chdir(tmp_path / "ours")
    report = init(".", overwrite=True)
    assert load_settings(None, {"teachers.output": "mean-variance"}).task == "regression"
    assert [why for _, _, why in report.fill if why.startswith("output: ")]
    with refused("teachers.output", "the task is regression"):
        load_settings()


def test_what_is_no_ensemble(here: Path) -> None:
    Path("empty").mkdir()
    Path("junk").mkdir()
    Path("junk/notes.txt").write_text("hello")
    for folder, said in (("empty", "it is empty"), ("junk", "notes.txt"), ("nowhere", "There is no nowhere")):
        with refused(said):
            init(folder)
    with refused("junk/notes.txt is a file"):
        init("junk/notes.txt")
    assert not Path("edistill.toml").exists()


def test_members_that_do_not_load_are_told(here: Path) -> None:
    Path("ours/teachers/broken.pt").write_bytes(b"hello")
    Path("ours/teachers/member-0.safetensors").write_bytes(Path("ours/teachers/member-0.safetensors").read_bytes()[:99])
    Path("ours/teachers/net.h5").write_bytes(b"hello")
    result = edistill("init ours --json")
    report = json.loads(result.stdout)
    assert {member["name"] for member in report["members"] if member["problem"]} == {"broken", "member-0", "net.h5"}
    assert len(report["mend"]) == 3
    assert report["next"] == "edistill doctor"


def test_runs_are_members(digits_session: Path, tmp_path: Path) -> None:
    report = init(digits_session / "runs", tmp_path)
    assert [(member["name"], member["kind"]) for member in report.members] == [("hydra-s0", "run")]


def test_a_members_file_is_no_body_and_the_trust_it_needs_is_passed_on(here: Path) -> None:
    import joblib
    from sklearn.linear_model import LogisticRegression

    shutil.rmtree("ours/teachers")
    Path("ours/model.py").unlink()
    Path("ours/teachers").mkdir()
    joblib.dump(LogisticRegression().fit(np.eye(3), [0, 1, 2]), "ours/teachers/linear.joblib")
    result = edistill("init ours --trust-checkpoints")
    assert re.findall(r"fill in: edistill.toml, line \d+: model", result.stdout)
    assert result.stdout.endswith("next: edistill doctor --trust-checkpoints\n")
    assert "student" not in tomllib.loads(Path("edistill.toml").read_text()) or not load_settings().student.model


def test_ready_made_outputs_are_asked_about_no_views(here: Path) -> None:
    said = np.eye(3)[np.arange(40) % 3]
    np.savez(here / "ours/teachers/outputs.npz", train=said, validation=said, test=said)
    report = init("ours")
    assert ("outputs", "ready_made") in [(one["name"], one["kind"]) for one in report.members]
    settings = load_settings()
    assert settings.views.transform == "none"
    assert settings.teachers.of_pattern(settings.teachers.pattern_of("outputs")).output == "probabilities"
    assert settings.teachers.output == "logits"


@pytest.mark.parametrize("said", ["probabilities", "logits"])
def test_what_ready_made_outputs_look_like_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(40, 4)).astype(np.float32), rng.normal(size=(2, 40, 3))
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    Path("ours/teachers").mkdir(parents=True)
    np.savez("ours/train.npz", x=x, y=np.arange(40) % 3)
    for member in range(2):
        outputs = (p if said == "probabilities" else z)[member].copy()
        outputs[member::2] = np.nan  # out of fold
        np.savez(f"ours/teachers/fold-{member}.npz", train=outputs)
    init("ours")
    assert load_settings().teachers.output == said
    problems = doctor(load_settings).problems
    assert len(problems) == 1  # the student is for the user to say
    assert "student.model is not set" in problems[0]
    Path("model.py").write_text("import torch\n\ndef make_body():\n    return torch.nn.Linear(4, 7)\n")
    checks = doctor(lambda: load_settings(overrides={"student.model": "model.py:make_body"})).checks
    assert (
        next(c["told"] for c in checks if c["what"] == "student.model") == "35 parameters, 7 features of an input [4]"
    )


# --- doctor -----------------------------------------------------------------------------------------------------


def problems(**changes: Any) -> list[str]:
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    return doctor(lambda: load_settings("ours/edistill.toml", overrides)).problems


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_folder(tmp_path / "ours")
    monkeypatch.chdir(tmp_path)
    return folder


def test_nothing_is_wrong_and_nothing_is_written(whole: Path) -> None:
    before = contents(whole)
    result = edistill("doctor -c ours/edistill.toml --json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [check for check in report["checks"] if check["problem"]] == []
    assert {step["command"].split(" ")[0] for step in report["forecast"]} == {
        "cache-logits",
        "train",
        "evaluate",
        "export",
    }
    assert report["machine"]["free_disk"] > 0
    assert contents(whole) == before
    cache_logits(settings(whole))
    records = sum(path.stat().st_size for path in (whole / "cache/records").rglob("*.npy"))
    told = next(step["bytes"] for step in report["forecast"] if step["command"] == "cache-logits")
    assert 0 < told <= records, "but for the headers of the files"
    assert "up to date" in edistill("doctor -c ours/edistill.toml").stdout
    trusting = edistill("doctor -c ours/edistill.toml --trust-checkpoints")
    assert report["next"] == "cache-logits"
    assert "next: edistill train --trust-checkpoints" in trusting.stdout


def test_folders_that_may_not_be_written(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for key in ("output.cache", "output.runs"):
        assert any(text.startswith(f"{key} is ") and f"written to {whole}" in text for text in problems())
    cache_logits(settings(whole))
    assert len(problems()) == 1


WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a path": ({"data__test": "nowhere.npz"}, ("data.test", "nowhere.npz")),
    "two of them": ({"data__test": "nowhere.npz", "teachers__path": "none"}, ("nowhere.npz", "none, which does not")),
    "a key": ({"train__lrr": 1}, ("unknown key train.lrr",)),
    "a module": ({"teachers__model": "model.py:make_body"}, ("member-0",)),
    "a body": ({"student__model": "model.py:make_teach"}, ("no callable make_teach",)),
    "no body": ({"student__model": None}, ("student.model is not set",)),
    "a method": ({"train__method": "hydro"}, ("hydro",)),
    "a view": ({"views__transform": "mixup+mixup"}, ("mixup twice",)),
    "a device": ({"train__device": "cuda:77"}, ("cuda:77",)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(whole: Path, name: str) -> None:
    changes, said = WRONG[name]
    found = problems(**changes)
    for one in said:
        assert [text for text in found if one in text], found


def test_labels_and_members_that_do_not_go_together(whole: Path) -> None:
    save_data(whole, "validation", 4, x=np.zeros((4, 9), np.float32))
    assert [text for text in problems() if "data.validation holds features" in text]
    save_data(whole, "validation", 4, y=np.array([0.5, 1, 2, 3]))
    assert [text for text in problems() if "float64" in text and "whole numbers" in text]


def test_a_cache_of_other_members(whole: Path) -> None:
    cache_logits(settings(whole))
    save_member(whole, 1, seed=5)
    assert [text for text in problems() if "holds member member-1 with sha256" in text]


def test_the_status_says_it(whole: Path) -> None:
    result = edistill("doctor -c ours/edistill.toml --set student.model=")
    assert result.exit_code == 2
    assert "PROBLEM" in result.stdout
    assert "1 problem. The first to fix: student.model is not set" in result.stderr


# --- limit ------------------------------------------------------------------------------------------------------


def test_a_limit_tries_the_whole_road_beside_the_real_one(whole: Path) -> None:
    cache_logits(settings(whole))
    before = contents(whole / "cache")
    few = load_settings("ours/edistill.toml", {"limit": 9, "train.epochs": None})
    assert cache_logits(few).splits == {"train": (9, 2), "validation": (9, 1), "test": (9, 1), "ood/noise": (7, 1)}
    report = train(few)
    assert report.folder == whole / "runs-limit-9/hydra-s0"
    assert evaluate(few).rows == 9
    by_path = evaluate(load_settings("ours/edistill.toml"), str(report.folder))
    assert (by_path.rows > 9, by_path.limit, by_path.to_json()["limit"]) == (True, 9, 9), "by its path it is marked"
    assert inspect(report.folder)["limit"] == 9
    assert contents(whole / "cache") == before
    assert Run.open(report.folder).provenance.trained_on == {
        "train": Cache(Path(few.output.cache)).manifest.splits["train"].digest
    }
    again = load_settings(report.folder / "args.toml")
    assert (again.output.runs, again.limit, again.train.epochs) == (few.output.runs, 9, 5)
    assert not train(again).fresh, "its own file replays it"
    assert not (whole / "runs").exists()


def test_a_limit_above_all_rows_is_all_of_them(whole: Path) -> None:
    every = cache_logits(load_settings("ours/edistill.toml", {"limit": 1000}))
    assert every.splits["train"] == (40, 2)
    with pytest.raises(EdistillError, match="limit"):
        load_settings("ours/edistill.toml", {"limit": 0})
