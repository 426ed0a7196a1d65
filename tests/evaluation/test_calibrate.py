"""`edistill calibrate`: kept in the run, applied wherever its student is, and refused where it would mislead."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from evaluate_helpers import ensemble_of, pixels_of
from numpy.testing import assert_allclose
from tiny import contents, refused
from trusted import EVERYTHING
from typer.testing import CliRunner

from ensemble_distill import load_student
from ensemble_distill.cli.app import app
from ensemble_distill.evaluation.calibrating import MOVED, CalibrationReport, _moved, _warn_of_harm
from ensemble_distill.facts import Calibration
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.runs.calibration import write_calibration
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.serving.served import Served
from ensemble_distill.settings import Settings, TeacherSettings
from ensemble_distill.teachers import open_teachers
from ensemble_distill.teachers.teacher import Context
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.train import train

SettingsOf = Callable[..., Settings]


def model_uncertainty(predictive: Categorical) -> float:
    return float(predictive.summary().model.mean())


def test_it_brings_the_model_uncertainty_to_the_ensembles(digits: Path, settings_of: SettingsOf) -> None:
    """Against the members' own modules, on the rows it was fitted on."""
    before = contents(digits / "runs/hydra-s0")
    report = calibrate(settings_of(digits))
    assert (report.split, report.rows) == ("calibration", 197)
    after = contents(digits / "runs/hydra-s0")
    assert after.keys() - before.keys() == {"calibration.json"}
    assert all(after[name] == content for name, content in before.items())
    x = pixels_of(digits / "data/calibration.npz")
    student = load_student(digits / "runs/hydra-s0", trust=True).double()
    with torch.no_grad():
        mine = student.predictive(student(x.double()))
    members = Categorical(torch.from_numpy(ensemble_of(digits, x)))
    assert model_uncertainty(mine) == pytest.approx(model_uncertainty(members), rel=0.01)  # type: ignore[arg-type]
    assert report.before["model_uncertainty_ratio"] != pytest.approx(1, abs=0.03)
    assert report.after["model_uncertainty_ratio"] == pytest.approx(1, abs=0.2)
    assert report.calibration is not None
    kept = json.loads(after["calibration.json"])
    weights = hashlib.sha256(after["student.safetensors"]).hexdigest()
    assert kept | report.calibration.to_json() | {"weights": weights} == kept


@pytest.mark.thorough
def test_evaluate_export_and_teachers_follow_it_and_forget_it(digits: Path, settings_of: SettingsOf) -> None:
    settings = settings_of(digits)
    plain = evaluate(settings).models["student"]
    (path,) = export(settings, onnx=True).files
    hashes = [_hash(digits)]
    calibrate(settings)
    mended = evaluate(settings).models["student"]
    assert mended["model_uncertainty"] != pytest.approx(plain["model_uncertainty"], rel=0.01)
    export(settings, onnx=True)
    x = pixels_of(digits / "data/test.npz")
    served = Served(path).run(x.numpy())
    assert float(np.mean(served["model_uncertainty"])) == pytest.approx(mended["model_uncertainty"], abs=1e-5)
    student = load_student(digits / "runs/hydra-s0", trust=True)
    with torch.no_grad():
        pooled = student.predictive(student(x)).pooled()
    assert_allclose(served["logits"], pooled.logits.squeeze(1), atol=1e-4)  # type: ignore[attr-defined]
    hashes.append(_hash(digits))
    calibrate(settings, remove=True)
    hashes.append(_hash(digits))
    assert evaluate(settings).models["student"] == plain
    assert hashes[0] == hashes[2] != hashes[1]  # a cache of a run's outputs knows that they changed


def _hash(digits: Path) -> str:
    (teacher,) = (
        t
        for t in open_teachers(digits / "runs", Context(TeacherSettings.model_validate({})))
        if t.member.name == "hydra-s0"
    )
    return teacher.member.sha256


def test_it_is_of_the_student_as_it_was_trained_however_often(digits: Path, settings_of: SettingsOf) -> None:
    first, second = (calibrate(settings_of(digits)) for _ in range(2))
    assert first.calibration == second.calibration
    assert first.before == second.before


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["kd", "proxy-endd", "batch-ensemble"])
def test_every_form_of_student_can_be_calibrated(digits: Path, settings_of: SettingsOf, method: str) -> None:
    settings = settings_of(digits, {"train.method": method, "train.epochs": 2})
    train(settings)
    report = calibrate(settings, f"{method}-s0")
    assert report.calibration is not None
    assert (report.calibration.spread == 1) == (method == "kd")
    if method == "proxy-endd":  # the others' graphs are exported elsewhere
        assert export(settings, f"{method}-s0", onnx=True)


@pytest.mark.thorough
def test_a_new_training_starts_without_it(digits: Path, settings_of: SettingsOf) -> None:
    calibrate(settings_of(digits))
    train(settings_of(digits, {"train.seed": 1, "output.name": "hydra-s0", "train.epochs": 1}), overwrite=True)
    assert Run.open(digits / "runs/hydra-s0").calibration is None


# --- refused ----------------------------------------------------------------------------------------------------


def test_rows_that_mislead_or_are_too_few_are_refused(digits: Path, settings_of: SettingsOf) -> None:
    before = contents(digits / "runs")
    with refused("data.train is what", "was trained on", "Set data.calibration to rows that no member was trained on"):
        calibrate(settings_of(digits), split="train")
    few = dict(np.load(digits / "data/calibration.npz"))
    np.savez(digits / "data/few.npz", x=few["x"][:19], y=few["y"][:19])
    with refused("data.calibration has 19 rows, and 20 are the fewest"):
        calibrate(settings_of(digits, {"data.calibration": "data/few.npz"}))
    with refused("data.nothing is not set"):
        calibrate(settings_of(digits), split="nothing")
    with refused("hydra-s0 is not calibrated. There is nothing to remove"):
        calibrate(settings_of(digits), remove=True)
    assert contents(digits / "runs") == before


def test_validation_stands_in_and_labels_are_not_needed(digits: Path, settings_of: SettingsOf) -> None:
    assert calibrate(settings_of(digits, {"data.calibration": None})).split == "validation"
    x = np.load(digits / "data/calibration.npz")["x"]
    np.savez(digits / "data/unlabeled.npz", x=x)
    found = calibrate(settings_of(digits, {"data.calibration": "data/unlabeled.npz", "output.cache": "nowhere"}))
    assert found.rows == len(x)


@pytest.mark.parametrize("text", ["{", "[]", '{"spread": 0}', '{"spread": "wide"}', '{"breadth": 1}', "3"])
def test_a_damaged_file_is_refused_by_name(digits: Path, settings_of: SettingsOf, text: str) -> None:
    (digits / "runs/hydra-s0/calibration.json").write_text(text)
    with refused("calibration.json is damaged", "Run edistill calibrate ", "hydra-s0 --remove"):
        evaluate(settings_of(digits))
    calibrate(settings_of(digits))
    assert Run.open(digits / "runs/hydra-s0").calibration is not None


# --- by row ---------------------------------------------------------------------------------------------------------


def test_by_row_a_power_is_sought_and_kept_where_it_helps(digits: Path, settings_of: SettingsOf) -> None:
    found = calibrate(settings_of(digits), by_row=True)
    assert found.calibration is not None
    assert abs(found.calibration.power) <= 0.5
    assert Run.open(digits / "runs/hydra-s0").calibration == found.calibration
    with refused("--remove", "--by-row", "Leave one of them out"):
        calibrate(settings_of(digits), remove=True, by_row=True)


def test_where_all_rows_find_no_power_the_report_knows_none_of_a_half(
    digits: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    powers = iter([0.0, 0.3, 0.3])  # of all rows, and of each half
    monkeypatch.setattr("ensemble_distill.evaluation.fit._power", lambda *_: next(powers))
    assert calibrate(settings_of(digits), by_row=True) == calibrate(settings_of(digits))


def test_a_power_is_in_the_exported_file(digits: Path, settings_of: SettingsOf) -> None:
    run = Run.open(digits / "runs/hydra-s0")
    by = Calibration(1.1, 0.9, power=0.3)
    write_calibration(run.folder, by, run.weights)
    calibrated = Run.open(run.folder)
    assert calibrated.calibration == by
    export(settings_of(digits), onnx=True)  # which holds the file to the calibrated student, on real rows
    file = onnxruntime.InferenceSession(run.folder / "export/model.onnx")
    x = torch.randn(40, *file.get_inputs()[0].shape[1:])
    names = ("head_logits", "model_uncertainty")
    said = dict(zip(names, file.run(names, {file.get_inputs()[0].name: x.numpy()}), strict=True))
    student = run.student(trust=EVERYTHING, calibrated=False)
    with torch.no_grad():
        wanted = student.predictive(student(x)).calibrated(by)
    assert_allclose(torch.from_numpy(said["head_logits"]).log_softmax(-1), wanted.log_probs(), atol=1e-4)
    assert_allclose(said["model_uncertainty"], wanted.summary().model, atol=1e-5)


# --- the command ------------------------------------------------------------------------------------------------


def test_the_command_tells_before_and_after_and_what_it_costs(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(digits)
    shown = CliRunner().invoke(app, ["calibrate", "hydra-s0"])
    assert shown.exit_code == 0, shown.stderr
    assert "model uncertainty ratio" in shown.stdout
    assert "it lowers the diversity explained" in shown.stderr
    record = json.loads(CliRunner().invoke(app, ["calibrate", "--json"]).stdout)
    assert record["calibration"].keys() == {"temperature", "spread", "variance", "power"}
    taken = CliRunner().invoke(app, ["calibrate", "--remove"])
    assert "as it was trained" in taken.stderr
    assert not (digits / "runs/hydra-s0/calibration.json").exists()


def test_the_command_names_exports_of_before(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(digits)
    shutil.rmtree("runs/hydra-s0/export")
    assert "xport again" not in CliRunner().invoke(app, ["calibrate"]).stderr
    assert CliRunner().invoke(app, ["export", "--onnx", "--safetensors"]).exit_code == 0
    assert "xport again" not in CliRunner().invoke(app, ["calibrate"]).stderr  # it says the same as before
    shown = CliRunner().invoke(app, ["calibrate", "--remove"]).stderr
    assert "model.onnx, runs/hydra-s0/export/model.safetensors" in " ".join(shown.split())
    again = shown.partition("Export again: edistill ")[2].split()
    assert again == ["export", "runs/hydra-s0", "--onnx", "--safetensors"]
    assert CliRunner().invoke(app, again).exit_code == 0
    assert "xport again" in CliRunner().invoke(app, ["calibrate"]).stderr


def test_a_fit_that_ends_at_its_limit_is_told(
    digits: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(settings_of(digits), progress=(quiet := Silent()))
    assert not any("may do harm" in note for note in quiet.warnings)
    monkeypatch.setattr("ensemble_distill.evaluation.fit.REACH", math.log(1.001))
    calibrate(settings_of(digits), progress=(told := Silent()))
    (warning,) = [note for note in told.warnings if "may do harm" in note]
    assert "ended at the limit of the search, 1.001" in warning
    assert f"edistill calibrate {digits / 'runs/hydra-s0'} --remove" in warning
    calibrate(settings_of(digits), remove=True)
    assert Run.open(digits / "runs/hydra-s0").calibration is None


@pytest.mark.parametrize(
    ("rows", "rises", "told"), [(20, 1.3, False), (20, 1.4, True), (500, 1.1, False), (500, 1.13, True)]
)
def test_on_few_rows_a_rise_between_the_halves_is_noise(rows: int, rises: float, told: bool) -> None:
    before, after = {"mean_kl": 0.01}, {"mean_kl": 0.01 * rises}
    report = CalibrationReport(Path("run"), "calibration", rows, Calibration(), before, after, ())
    _warn_of_harm(report, Calibration(), 0.0, heard := Silent())
    assert any("may do harm" in note for note in heard.warnings) == told


def test_heads_that_are_sure_of_different_classes_are_told_to_move() -> None:
    """Their mixture is not brought back in three steps; that of heads that mostly agree is."""
    found = {}
    for name, apart in (("alike", 0.5), ("unlike", 6.0)):
        rng = np.random.default_rng(0)
        heads = torch.from_numpy(rng.normal(size=(200, 1, 3)) + apart * rng.normal(size=(200, 5, 3)))
        spread = Calibration(temperature=1.5, spread=2.0)
        p, q = (
            torch.softmax(Categorical(heads).calibrated(by).logits, -1).mean(1).numpy()
            for by in (Calibration(temperature=1.5), spread)
        )
        found[name] = _moved(Categorical(heads), spread)
        assert found[name] == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-6)
    assert found["alike"] < MOVED < found["unlike"]
