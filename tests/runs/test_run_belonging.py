"""What is written says of which weights it is: nothing lands beside others, and what lies beside others is told."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluate_helpers import untimed
from runs_helpers import OTHER, RUN, replace_run, said_by, then
from safetensors.torch import load_file, save_file
from tiny import contents, refused, settings
from trusted import EVERYTHING
from typer.testing import CliRunner

from ensemble_distill.chains.generations import train_chain
from ensemble_distill.cli.app import app
from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation import calibrating
from ensemble_distill.evaluation.measured import Measured
from ensemble_distill.facts import MadeFrom
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.evaluations import evaluation_of
from ensemble_distill.runs.exports import stale, stale_exports
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.files import sha256_file
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.runtime.seals import sealed_json
from ensemble_distill.workflows import export as exporting
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate, evaluate_together
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.predict import predict
from ensemble_distill.workflows.train import train

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def made(runs_session: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a chain besides."""
    folder = Path(shutil.copytree(runs_session, tmp_path_factory.mktemp("belonging") / "tiny"))
    train_chain(settings(folder, {"train.method": "ban", "train.generations": 2, "train.epochs": 1}))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, which is also where the command runs."""
    copy = Path(shutil.copytree(made, tmp_path / "tiny"))
    monkeypatch.chdir(copy)
    return copy


# --- replaced between reading and writing -----------------------------------------------------------------------

Command = Callable[[Path], object]
# each command that writes into a run, and the step at which what it reads of the run has been read
COMMANDS: dict[str, tuple[Command, Any, str]] = {
    "calibrate": (lambda folder: calibrate(settings(folder), "hydra-s0"), calibrating, "fit"),
    "evaluate": (lambda folder: evaluate(settings(folder), "hydra-s0"), Measured, "evaluation"),
    "evaluate together": (
        lambda folder: evaluate_together(settings(folder), ["other", "hydra-s0"]),
        Measured,
        "evaluation",
    ),
    "export --onnx": (lambda folder: export(settings(folder), "hydra-s0", onnx=True), exporting, "one_writer"),
    "export --safetensors": (
        lambda folder: export(settings(folder), "hydra-s0", safetensors=True),
        exporting,
        "one_writer",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_that_is_replaced_meanwhile_gets_nothing(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, where, step = COMMANDS[name]
    run = folder / RUN
    with monkeypatch.context() as patch:
        patch.setattr(where, step, then(lambda: replace_run(run, folder / OTHER), getattr(where, step)))
        with refused(str(run), "was replaced meanwhile", "Nothing was written", "Run the command again"):
            command(folder)
    if name != "evaluate together":  # there the other run's figures stand
        assert contents(run) == contents(folder / OTHER)
    command(folder)  # the remedy


def test_a_chain_whose_generation_is_replaced_meanwhile_gets_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = folder / "runs/ban-s0"
    replaced = then(lambda: replace_run(chain / "generation-2", chain / "generation-1"), Measured.evaluation)
    with monkeypatch.context() as patch:
        patch.setattr(Measured, "evaluation", replaced)
        with refused("generation-2 was replaced meanwhile"):
            evaluate(settings(folder), "ban-s0")
    assert not (chain / "evaluations").exists()


@pytest.mark.parametrize("name", ["evaluate", "export --onnx"])
def test_a_run_that_is_calibrated_meanwhile_gets_nothing(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else `calibrated` would stand over figures that are not."""
    command, where, step = COMMANDS[name]
    run = Run.open(folder / RUN)
    before = contents(folder / RUN, without=["calibration.json"])
    with monkeypatch.context() as patch:
        patch.setattr(where, step, then(run.forget_calibration, getattr(where, step)))
        with refused("was calibrated otherwise meanwhile", "Run the command again"):
            command(folder)
    assert contents(folder / RUN) == before
    command(folder)


def test_while_a_run_is_exported_no_training_replaces_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def again() -> None:
        with refused("Another process is writing to ", "hydra-s0"):
            train(settings(folder), overwrite=True)

    monkeypatch.setattr(exporting, "export_safetensors", then(again, exporting.export_safetensors))
    export(settings(folder), "hydra-s0", safetensors=True)
    said = inspect(folder / RUN / "export/model.safetensors")["made_from"]
    assert said["weights"] == sha256_file(folder / RUN / "student.safetensors")


def test_what_is_read_of_a_run_is_of_one_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Config, weights and calibration, at whichever of them another training comes in between."""
    run = folder / RUN
    with monkeypatch.context() as patch:
        patch.setattr(StudentConfig, "parse", then(lambda: replace_run(run, folder / OTHER), StudentConfig.parse))
        with refused("are not of one training", "wait until it ends"):
            Run.open(run)
    assert Run.open(run).calibration is None
    opened = Run.open(folder / OTHER)
    replace_run(folder / OTHER, folder / "runs/ban-s0/generation-1")
    with refused("was replaced meanwhile"):
        opened.student(trust=EVERYTHING)


@pytest.mark.parametrize("name", ["config.json", "student.safetensors"])
def test_files_of_two_trainings_are_no_run(folder: Path, name: str) -> None:
    shutil.copyfile(folder / OTHER / name, folder / RUN / name)
    with refused("config.json and student.safetensors", "are not of one training", "args.toml --overwrite"):
        said_by(folder / RUN)
    train(settings(folder), overwrite=True)
    said_by(folder / RUN)


# --- lying beside others ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("remove", [False, True])
def test_a_calibration_of_other_weights_is_refused(folder: Path, remove: bool) -> None:
    shutil.copyfile(folder / RUN / "calibration.json", folder / OTHER / "calibration.json")
    for command in (evaluate, lambda options, run: export(options, run, onnx=True)):
        with refused("other/calibration.json is of weights", "corrects another student", "other --remove"):
            command(settings(folder), "other")  # type: ignore[operator]
    calibrate(settings(folder), "other", remove=remove)
    assert evaluate(settings(folder), "other").calibrated is not remove


@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_an_export_of_other_weights_is_told(folder: Path, form: str) -> None:
    shutil.copytree(folder / RUN / "export", folder / OTHER / "export")
    assert f"export/model.{form}" in inspect(folder / OTHER)["stale"]
    if form == "onnx":
        with refused("was made of weights", "edistill export", "--onnx"):
            predict(Path(OTHER, "export/model.onnx"), ["data/test.npz"])
    export(settings(folder), "other", onnx=True, safetensors=True)
    predict(Path(OTHER, "export/model.onnx"), ["data/test.npz"])
    assert "stale" not in inspect(folder / OTHER)


def test_an_export_of_before_a_calibration_is_told(folder: Path) -> None:
    line = ["predict", "data/test.npz", "-m", f"{RUN}/export/model.onnx"]
    assert "calibrated otherwise" not in CliRunner().invoke(app, line).stderr
    Run.open(folder / RUN).forget_calibration()
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0
    told = f"{RUN}/export/model.onnx is stale: {RUN} is calibrated otherwise than when"
    assert told in result.stderr
    assert f"edistill export {RUN} --onnx" in result.stderr
    for form in ("onnx", "safetensors"):
        again = f"edistill export {RUN} --{form}"
        assert inspect(Path(RUN, f"export/model.{form}"))["stale"].endswith(again)
        shown = CliRunner().invoke(app, ["inspect", f"{RUN}/export/model.{form}"]).stdout
        assert "is calibrated otherwise" in shown
        assert f"next: {again}" in shown
    progress = Silent()
    evaluate(settings(folder), "hydra-s0", progress=progress)
    assert [text for text in progress.warnings if "model.onnx is stale" in text]
    assert [text for text in progress.warnings if "model.safetensors is stale" in text]
    assert {file.name for file in calibrate(settings(folder), "hydra-s0").stale} == set()  # as it was when exported


def test_an_export_of_a_generation_is_told(folder: Path) -> None:
    chain = folder / "runs/ban-s0"
    export(settings(folder), "ban-s0/generation-1", safetensors=True)
    assert "stale" not in inspect(chain)
    calibrate(settings(folder), "ban-s0/generation-1", split="validation")
    assert inspect(chain)["stale"] == ["generation-1/export/model.safetensors"]
    progress = Silent()
    evaluate(settings(folder), "ban-s0", progress=progress)
    (told,) = progress.warnings
    assert "generation-1/export/model.safetensors is stale" in told


def test_an_export_of_version_0_1_0_is_told_by_its_age(folder: Path) -> None:
    file = folder / RUN / "export/model.safetensors"
    tensors = load_file(file)
    save_file(tensors, file, {"edistill": "{}"})
    assert stale(file) is None, "it is younger than the calibration"
    os.utime(file, (1, 1))
    assert "is calibrated otherwise" in (stale(file) or "")
    (folder / RUN / "calibration.json").unlink()
    assert file in stale_exports(folder / RUN), "it may apply the calibration that was removed"


def test_an_evaluation_of_other_weights_or_rows_is_told(folder: Path) -> None:
    evaluate(settings(folder), "ban-s0")
    assert "stale" not in inspect(folder / RUN)
    assert "stale" not in inspect(folder / "runs/ban-s0")
    record = json.loads((folder / RUN / "evaluations/test.json").read_text())
    assert record["made_from"]["student"]["weights"] == sha256_file(folder / RUN / "student.safetensors")
    shutil.copytree(folder / RUN / "evaluations", folder / OTHER / "evaluations")
    assert inspect(folder / OTHER)["stale"] == ["evaluations/test.json"]
    rows = folder / RUN / "evaluations/test.npz"
    rows.write_bytes(rows.read_bytes()[:-1] + b"x")
    assert inspect(folder / RUN)["stale"] == ["evaluations/test.json"]
    calibrate(settings(folder), "ban-s0/generation-1", split="validation")
    assert inspect(folder / "runs/ban-s0")["stale"] == ["evaluations/test.json"]


def test_the_evaluation_of_a_run_is_of_test_then_of_validation_then_of_any_split(tmp_path: Path) -> None:
    now, before = MadeFrom("0" * 64, None), MadeFrom("1" * 64, None)
    (tmp_path / "evaluations").mkdir()
    for split, of in (("calibration", now), ("validation", now), ("test", now), ("alone", before)):
        record = {"made_from": {"student": of.to_json()}, "split": split}
        (tmp_path / f"evaluations/{split}.json").write_bytes(sealed_json(record))
    for split in ("test", "validation", "calibration"):
        found = evaluation_of(tmp_path, {"student": now})
        assert found is not None
        assert found["split"] == split
        (tmp_path / f"evaluations/{split}.json").unlink()
    assert evaluation_of(tmp_path, {"student": now}) is None


# --- disks and locks --------------------------------------------------------------------------------------------


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from ensemble_distill.runtime.progress import Silent

    told: list[str] = []
    monkeypatch.setattr(Silent, "warn", lambda self, text: told.append(text))
    return told


def no_writing(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """No file can be made or opened for writing, as on a disk that is full or may only be read."""
    import os

    real = os.open

    def refusing(path: Any, flags: int, *more: Any, **given: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(error, os.strerror(error), str(path))
        return real(path, flags, *more, **given)

    monkeypatch.setattr(os, "open", refusing)


@pytest.mark.parametrize("error", ["EROFS", "EACCES", "ENOSPC"])
def test_figures_that_cannot_be_kept_are_said(
    folder: Path, error: str, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    wanted = evaluate(settings(folder), "hydra-s0").to_json()
    before = contents(folder / RUN)
    with monkeypatch.context() as patch:
        no_writing(patch, getattr(errno, error))
        found = evaluate(settings(folder), "hydra-s0").to_json()
        chain = evaluate(settings(folder), "ban-s0").to_json()
    assert found["models"].keys() == wanted["models"].keys()
    assert untimed(found) == untimed(wanted)
    assert chain["models"]["bane-2"] is not None
    assert len(warned) == 2
    assert "hydra-s0" in warned[0]
    assert "not kept" in warned[0]
    assert contents(folder / RUN) == before


def test_figures_are_said_while_another_process_holds_the_run(
    folder: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensemble_distill.runtime.lock import one_writer

    monkeypatch.setattr("ensemble_distill.evaluation.keeping.PATIENCE", 0.0)
    with one_writer(folder / RUN):
        assert evaluate(settings(folder), "hydra-s0").rows == 10
    assert len(warned) == 1
    assert "Another process is writing" in warned[0]


def test_what_is_finished_needs_neither_lock_nor_rights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    no_writing(monkeypatch, errno.EROFS)
    assert not train(settings(folder)).fresh
    assert not train_chain(settings(folder, {"train.method": "ban", "train.generations": 2, "train.epochs": 1})).fresh


def test_a_calibration_that_cannot_be_kept_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    before = contents(folder / RUN)
    no_writing(monkeypatch, errno.ENOSPC)
    with pytest.raises((OSError, EdistillError), match="No space left"):
        calibrate(settings(folder), "hydra-s0")
    monkeypatch.undo()
    assert contents(folder / RUN) == before
