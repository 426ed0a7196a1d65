"""`predict --coverage` and `--alpha`, and what `evaluate` says of both, against what the graph says of the rows."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from evaluate_helpers import ensemble_of, pixels_of
from numpy.testing import assert_allclose
from scipy.special import logsumexp
from tiny import refused, settings
from tiny_regression import load_data, make_folder
from typer.testing import CliRunner, Result

from ensemble_distill.cli.app import app
from ensemble_distill.evaluation.comparison import Comparison
from ensemble_distill.evaluation.tables import tables
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.serving.served import Served
from ensemble_distill.serving.wishes import Wishes, settled
from ensemble_distill.settings import Settings
from ensemble_distill.tasks.language_modelling import LanguageModelling
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.predict import predict
from ensemble_distill.workflows.train import train

MODEL = "runs/hydra-s0/export/model.onnx"
SettingsOf = Callable[..., Settings]


def edistill(line: str) -> Result:
    return CliRunner().invoke(app, shlex.split(line))


def said(folder: Path, split: str) -> tuple[dict[str, Any], Any]:
    """What the exported graph says of a split, by its names, and the split's labels."""
    with np.load(folder / "data" / f"{split}.npz") as arrays:
        x, y = (arrays["x"][:, None].astype(np.float32) / 255 - np.float32(0.5)) / np.float32(0.5), arrays["y"]
    session = onnxruntime.InferenceSession(folder / MODEL)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"pixel_values": x}), strict=True)), y


@pytest.mark.parametrize(
    ("flags", "by"), [("", "model_uncertainty"), ("--abstain-by total_uncertainty", "total_uncertainty")]
)
@pytest.mark.parametrize("coverage", [0.5, 0.9, 1.0])
def test_rows_above_what_keeps_a_share_of_the_calibration_rows_abstain(
    digits_session: Path, monkeypatch: pytest.MonkeyPatch, coverage: float, flags: str, by: str
) -> None:
    monkeypatch.chdir(digits_session)
    calibration, test = said(digits_session, "calibration")[0][by], said(digits_session, "test")[0][by]
    threshold = sorted(calibration)[math.ceil(coverage * len(calibration)) - 1]
    done = edistill(f"predict data/test.npz -m {MODEL} --json --coverage {coverage} {flags}")
    assert done.exit_code == 0, done.stderr
    abstains = np.array([row["abstains"] for row in json.loads(done.stdout)])
    clear = np.abs(test - threshold) > 1e-3 * threshold  # torch and onnxruntime differ by less
    assert clear.sum() > len(test) - 5
    assert np.array_equal(abstains[clear], test[clear] > threshold)
    told = re.search(r"uncertainty of ([0-9.e-]+) abstain,", done.stderr)
    assert told is not None
    assert float(told[1]) == pytest.approx(threshold, rel=1e-3)


@pytest.mark.parametrize("alpha", [0.01, 0.1])
def test_sets_are_those_that_a_loop_over_the_calibration_rows_makes(
    digits_session: Path, monkeypatch: pytest.MonkeyPatch, alpha: float
) -> None:
    monkeypatch.chdir(digits_session)
    outputs, y = said(digits_session, "calibration")
    p = np.exp(outputs["logits"].astype(np.float64))
    t = sorted(1 - p[row, label] for row, label in enumerate(y))[math.ceil((len(y) + 1) * (1 - alpha)) - 1]
    q = np.exp(said(digits_session, "test")[0]["logits"].astype(np.float64))
    wanted = [[str(k) for k in range(10) if 1 - row[k] <= t * (1 + 1e-6) or row[k] == row.max()] for row in q]
    rows = predict(MODEL, "data/test.npz", alpha=alpha).rows
    assert [row["conformal_set"] for row in rows] == wanted
    assert [row["conformal_size"] for row in rows] == [len(one) for one in wanted]
    lines = edistill(f"predict data/test.npz -m {MODEL} --alpha {alpha}").stdout.splitlines()
    assert lines[0].endswith(",conformal_set,conformal_size")
    assert [line.split(",")[-2] for line in lines[1:]] == [";".join(one) for one in wanted]


@pytest.mark.thorough
def test_what_evaluate_says_is_what_a_loop_over_its_rows_finds(digits: Path, settings_of: SettingsOf) -> None:
    found = evaluate(settings_of(digits), "hydra-s0")
    document = found.to_json()["selective"]
    outputs, y = said(digits, "calibration")
    test, truth = said(digits, "test")
    assert (document["rows"], document["by"]) == (len(y), "model_uncertainty")
    right, nll = test["logits"].argmax(1) == truth, -test["logits"][np.arange(len(truth)), truth]
    u = sorted(outputs["model_uncertainty"])
    for kept in document["kept"][1:]:
        threshold = u[math.ceil(kept["coverage"] * len(u)) - 1]
        some = test["model_uncertainty"] <= threshold * (1 + 1e-5)
        assert_allclose(kept["threshold"], threshold, rtol=1e-4)
        assert_allclose(kept["share"], some.mean())
        assert_allclose(kept["figures"]["accuracy"], right[some].mean())
        assert_allclose(kept["figures"]["nll"], nll[some].mean(), rtol=1e-3, atol=1e-6)
    scores = sorted(-outputs["logits"][np.arange(len(y)), y])
    for covered in document["covered"]:
        t = scores[math.ceil((len(y) + 1) * (1 - covered["alpha"])) - 1] * (1 + 1e-6)
        inside = (-test["logits"] <= t) | (test["logits"] == test["logits"].max(1, keepdims=True))
        assert_allclose(covered["coverage"], inside[np.arange(len(truth)), truth].mean())
        assert_allclose(covered["size"], inside.sum(1).mean())
    told = [table for table in tables(Comparison((found,))) if "hydra-s0" in table.title][1:]
    assert [len(rows) for table in told for rows in table.sections.values()] == [4, 3]
    lines = {(line.section, line.figure): line.values[-1] for line in Comparison((found,)).lines()}
    assert lines["kept/0.9", "accuracy"] == document["kept"][2]["figures"]["accuracy"]
    assert lines["conformal/0.1", "covered"] == document["covered"][2]["coverage"]


def test_the_file_is_all_that_is_needed_and_says_what_it_has(
    digits_session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(digits_session / MODEL, tmp_path / "student.onnx")
    shutil.copy(digits_session / "data/test.npz", tmp_path / "test.npz")
    monkeypatch.chdir(tmp_path)
    done = edistill("predict test.npz -m student.onnx --coverage 0.8 --alpha 0.05")
    assert done.exit_code == 0, done.stderr
    assert json.loads(edistill("inspect student.onnx --json").stdout)["reference"] == {"rows": 197, "labels": True}
    assert "197" in edistill("inspect student.onnx").stdout


def test_too_small_an_alpha_for_the_rows_is_said_and_holds_all(
    digits_session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(digits_session)
    heard = Silent()
    rows = predict(MODEL, "data/test.npz", heard, alpha=0.001).rows
    assert {row["conformal_size"] for row in rows} == {10}
    (warning,) = heard.warnings
    assert "999" in warning
    assert "197" in warning


# --- without, or with other calibration rows ------------------------------------------------------------------------


def exported(folder: Path, settings: Settings) -> list[str]:
    """The warnings of another export."""
    heard = Silent()
    export(settings, "hydra-s0", onnx=True, progress=heard)
    return heard.warnings


@pytest.mark.thorough
def test_without_calibration_rows_thresholds_are_refused_with_the_key(digits: Path, settings_of: SettingsOf) -> None:
    toml = digits / "edistill.toml"
    toml.write_text("".join(line for line in toml.read_text().splitlines(True) if not line.startswith("calibration")))
    assert exported(digits, settings_of(digits)) == []
    for wished in ({"coverage": 0.9}, {"alpha": 0.1}):
        with refused("data.calibration", "edistill export", str(digits / MODEL)):
            predict(digits / MODEL, str(digits / "data/test.npz"), **wished)
    assert evaluate(settings_of(digits), "hydra-s0").selective is None


@pytest.mark.thorough
def test_rows_without_labels_keep_a_share_and_make_no_sets(digits: Path, settings_of: SettingsOf) -> None:
    file = digits / "data/calibration.npz"
    x = np.load(file)["x"]
    np.savez(file, x=x)
    assert exported(digits, settings_of(digits)) == []
    rows = predict(digits / MODEL, str(digits / "data/test.npz"), coverage=0.9).rows
    assert {row["abstains"] for row in rows} == {True, False}
    with refused("labels", "data.calibration"):
        predict(digits / MODEL, str(digits / "data/test.npz"), alpha=0.1)
    found = evaluate(settings_of(digits), "hydra-s0").selective
    assert found is not None
    assert found.covered is None


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("split", "told", "serves"),
    [
        ("train", "data.calibration", False),  # where members agree more than elsewhere
        ("validation", "data.validation", True),
        ("few", "7 rows", False),
        ("nothing", "nothing.npz", False),
    ],
)
def test_rows_that_others_were_chosen_or_trained_on_are_told(
    digits: Path, settings_of: SettingsOf, split: str, told: str, serves: bool
) -> None:
    data = digits / "data"
    if split == "few":
        arrays = np.load(data / "calibration.npz")
        np.savez(data / "few.npz", **{name: arrays[name][:7] for name in arrays})
    settings = settings_of(digits, {"data.calibration": f"data/{split}.npz"})
    (warning,) = exported(digits, settings)
    assert told in warning
    assert (Served(digits / MODEL).card.reference is not None) == serves
    heard = Silent()
    found = evaluate(settings, "hydra-s0", progress=heard)
    assert warning in heard.warnings
    assert (found.selective is not None) == serves


@pytest.mark.thorough
def test_the_calibration_rows_themselves_show_nothing(digits: Path, settings_of: SettingsOf) -> None:
    assert evaluate(settings_of(digits), "hydra-s0", split="calibration").selective is None
    same = settings_of(digits, {"data.calibration": "data/test.npz"})
    assert evaluate(same, "hydra-s0").selective is None


@pytest.mark.thorough
def test_a_calibrated_run_has_other_thresholds_and_the_file_of_before_is_stale(
    digits: Path, settings_of: SettingsOf
) -> None:
    before = Served(digits / MODEL).card.reference
    settings = settings_of(digits, {"data.calibration": "data/calibration.npz"})
    calibrate(settings, "hydra-s0")
    heard = Silent()
    predict(digits / MODEL, str(digits / "data/test.npz"), heard, coverage=0.9, alpha=0.1)
    assert any("stale" in warning and MODEL in warning for warning in heard.warnings)
    assert Served(digits / MODEL).card.reference == before, "thresholds and graph are of one student"
    assert exported(digits, settings) == []
    after = Served(digits / MODEL).card.reference
    assert before is not None
    assert after is not None
    u = np.sort(said(digits, "calibration")[0]["model_uncertainty"])
    assert_allclose(after.model_uncertainty, u, rtol=1e-3, atol=1e-6)
    assert not np.allclose(before.model_uncertainty, u, rtol=1e-3, atol=1e-6)


@pytest.mark.thorough
def test_an_exported_file_is_evaluated_by_the_thresholds_that_it_carries(digits: Path, settings_of: SettingsOf) -> None:
    reference = Served(digits / MODEL).card.reference
    assert reference is not None
    other = settings_of(digits, {"data.calibration": "data/validation.npz"})
    found = evaluate(other, str(digits / MODEL)).selective
    assert found is not None
    assert found.rows == 197, "and not the 200 of validation"
    assert found.kept[2].threshold == reference.threshold(0.9, "model_uncertainty")
    asked = evaluate(settings_of(digits), "hydra-s0").selective
    assert asked is not None
    assert found.kept[2].share == pytest.approx(asked.kept[2].share, abs=0.01)


@pytest.mark.thorough
def test_the_ensemble_has_thresholds_of_its_own(digits: Path, settings_of: SettingsOf) -> None:
    (file,) = export(settings_of(digits), ensemble=True, onnx=True).files
    reference = Served(file).card.reference
    assert reference is not None
    assert reference.conformal is not None
    log_p = ensemble_of(digits, pixels_of(digits / "data/calibration.npz"))
    y = np.load(digits / "data/calibration.npz")["y"]
    mixture = logsumexp(log_p, axis=1) - np.log(log_p.shape[1])
    assert_allclose(reference.conformal[0], np.sort(-mixture[np.arange(len(y)), y]), rtol=1e-3, atol=1e-5)


# --- tasks ----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_intervals_of_numbers_are_those_of_a_loop(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", rows={"train": 40, "validation": 12, "test": 30, "calibration": 49})
    cache_logits(settings(folder))
    train(settings(folder))
    export(settings(folder), onnx=True)
    session = onnxruntime.InferenceSession(folder / MODEL)
    (x, y), alpha = load_data(folder, "calibration"), 0.1
    mean, variance = session.run(["mean", "variance"], {"input": x})
    t = sorted(np.abs(y - mean) / np.sqrt(variance))[math.ceil(50 * (1 - alpha)) - 1]
    mean, variance = session.run(["mean", "variance"], {"input": load_data(folder, "test")[0]})
    rows = predict(folder / MODEL, str(folder / "data/test.npz"), alpha=alpha).rows
    assert_allclose([row["conformal_lower"] for row in rows], mean - t * np.sqrt(variance), rtol=1e-5)
    assert_allclose([row["conformal_upper"] for row in rows], mean + t * np.sqrt(variance), rtol=1e-5)
    found = evaluate(settings(folder)).selective
    assert found is not None
    assert found.covered is not None
    (covered,) = (one for one in found.covered if one.alpha == alpha)
    truth = load_data(folder, "test")[1]
    assert_allclose(covered.coverage, (np.abs(truth - mean) <= t * (1 + 1e-6) * np.sqrt(variance)).mean())
    assert_allclose(covered.size, (2 * t * np.sqrt(variance)).mean(), rtol=1e-4)
    assert found.covered[0].size is None, "49 rows are too few for alpha 0.01"
    edge = predict(folder / MODEL, str(folder / "data/test.npz"), alpha=0.001)
    assert edge.rows[0]["conformal_upper"] is None
    assert edge.text().splitlines()[1].endswith(",,")


def test_a_language_model_promises_nothing_and_keeps_positions() -> None:
    """What `settled` needs of a file, without one."""
    card = SimpleNamespace(task=LanguageModelling(("a", "b"), 4), reference=None, method="hydra")
    served: Any = SimpleNamespace(card=card, path=Path("model.onnx"), outputs=("logits", "total_uncertainty"))
    with refused("language-modelling", "--alpha 0.1", "--coverage"):
        settled(Wishes(alpha=0.1), served, Silent())


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("--coverage 0", ("--coverage", "0.0")),
        ("--coverage 90", ("--coverage", "90", "0.9")),
        ("--coverage nan", ("--coverage", "nan")),
        ("--alpha 1", ("--alpha", "1.0")),
        ("--alpha -0.1", ("--alpha", "-0.1")),
        ("--alpha nan", ("--alpha", "nan")),
        ("--coverage 0.9 --abstain-above 0.1", ("--coverage 0.9", "--abstain-above 0.1")),
    ],
)
def test_wishes_that_mean_nothing_are_refused(
    digits_session: Path, monkeypatch: pytest.MonkeyPatch, flags: str, parts: tuple[str, ...]
) -> None:
    monkeypatch.chdir(digits_session)
    done = edistill(f"predict data/test.npz -m {MODEL} {flags}")
    assert done.exit_code == 2
    assert all(part in " ".join(done.stderr.split()) for part in parts), done.stderr
