"""`evaluate` of an exported file: its own figures, beside its run or far from it, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from evaluate_helpers import pixels_of, untimed
from exported_helpers import assert_every_kind_agrees
from runs_helpers import RUN
from tiny import contents, make_folder, refused, save_data, save_member, settings

from ensemble_distill import load_student
from ensemble_distill.evaluation.exported import ExportedRun, GraphStudent, with_their_runs
from ensemble_distill.evaluation.remarks import remarks
from ensemble_distill.predictive import family_names, open_family
from ensemble_distill.predictive.outputs import named_outputs
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate, evaluate_together
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.train import train

GRAPH = f"{RUN}/export/model.onnx"
SUFFIXES = (".onnx", ".pt2", ".safetensors")


def test_its_figures_are_those_of_what_it_says(runs: Path) -> None:
    data = np.load(runs / "data/test.npz")
    x = pixels_of(runs / "data/test.npz").numpy()
    session = onnxruntime.InferenceSession(str(runs / GRAPH), providers=["CPUExecutionProvider"])
    logits, model = session.run(["logits", "model_uncertainty"], {"pixel_values": x})
    found = evaluate(settings(runs), str(runs / GRAPH))
    student = found.models["student"]
    assert student["nll"] == pytest.approx(-logits[np.arange(len(x)), data["y"]].mean(), abs=1e-5)
    assert student["accuracy"] == pytest.approx((logits.argmax(1) == data["y"]).mean())
    assert student["model_uncertainty"] == pytest.approx(model.mean(), abs=1e-5)
    assert found.calibrated, "as its run was"
    commands = f"edistill calibrate {runs / RUN} --remove, then edistill export {runs / RUN} --onnx."
    assert [told.partition(", run ")[2] for told in remarks(found) if "is calibrated" in told] == [commands]
    poor = replace(found, fidelity=found.fidelity | {"diversity_explained": -0.1})
    cause = "Calibration may have moved them that far apart"
    assert cause in " ".join(remarks(poor))
    assert cause not in " ".join(remarks(replace(poor, calibrated=False)))
    assert found.cost["student"]["parameters"] is None, "which onnxruntime does not tell"
    assert found.cost["student"]["latency_ms"] > 0


def test_it_is_no_run(runs: Path) -> None:
    with refused("model.onnx is a file, and no run", "an exported file is run by edistill predict"):
        load_student(runs / GRAPH)


def test_beside_its_run_it_says_the_same(runs: Path) -> None:
    names = with_their_runs(runs / "runs", [GRAPH], Silent().note)
    assert [Path(name).name for name in names] == ["hydra-s0", "model.onnx"]
    assert with_their_runs(runs / "runs", ["hydra-s0", GRAPH], Silent().note) == ["hydra-s0", GRAPH]
    run, file = (one.models["student"] for one in evaluate_together(settings(runs), names).runs)
    for figure, value in run.items():
        assert file[figure] == pytest.approx(value, abs=1e-4), figure


def test_far_from_its_run_it_needs_the_file_alone_and_nothing_is_kept(runs: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(runs / GRAPH, tmp_path / "student.onnx"))
    here = untimed(evaluate(settings(runs), str(runs / GRAPH)).to_json(), ["run"])
    shutil.rmtree(runs / "runs")
    before = contents(runs)
    found = evaluate(settings(runs), str(file))
    assert json.dumps(untimed(found.to_json(), ["run"])) == json.dumps(here)
    assert contents(runs) == before


@pytest.fixture
def every(runs: Path, tmp_path: Path) -> Path:
    """A folder away from the run, with a file of each kind; the run has a program too."""
    export(settings(runs), "hydra-s0", program=True, card=False)
    away = tmp_path / "away"
    away.mkdir()
    for suffix in SUFFIXES:
        shutil.copy(runs / f"{RUN}/export/model{suffix}", away)
    return away


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_every_kind_is_its_run_to_rounding(runs: Path, every: Path, suffix: str) -> None:
    run = evaluate(settings(runs), "hydra-s0")
    before = contents(runs)
    found = evaluate(settings(runs), str(every / f"model{suffix}"))
    assert contents(runs) == before, "of a file nothing is kept"
    assert found.calibrated
    assert any("as its run was when it was exported" in told for told in remarks(found))
    for section in ("quality", "fidelity"):
        own, theirs = (one.models["student"] if section == "quality" else one.fidelity for one in (found, run))
        for figure, value in theirs.items():
            assert own[figure] == pytest.approx(value, abs=1e-4), figure
    cost, of_run = found.cost["student"], run.cost["student"]
    wanted = (None, None) if suffix == ".onnx" else (of_run["parameters"], of_run["macs"])
    assert (cost["parameters"], cost["macs"]) == wanted
    assert cost["latency_ms"] > 0
    if suffix == ".safetensors":  # the same numbers by the same arithmetic
        assert found.models["student"] == run.models["student"]


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["kd", "proxy-endd", "batch-ensemble"])
def test_files_of_every_kind_agree_whatever_trained_the_student(runs: Path, method: str) -> None:
    train(settings(runs, {"train.method": method, "output.name": "other-method"}))
    assert_every_kind_agrees(settings(runs), "other-method", str(runs / "data/test.npz"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_every_kind_makes_a_report(runs: Path, every: Path, suffix: str, tmp_path: Path) -> None:
    evaluate(settings(runs), str(every / f"model{suffix}"), report=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert f"model{suffix} on 10 rows of test" in page
    assert page.count("<figure") > 3
    json.loads((tmp_path / "report.json").read_text())


def test_a_folder_is_its_file(runs: Path, every: Path) -> None:
    told: list[str] = []
    (every / "model.onnx").unlink()
    assert with_their_runs(runs / "runs", [str(every)], told.append) == [str(every / "model.pt2")]
    assert "model.safetensors" in told[0]
    assert f"{every / 'model.pt2'} is taken" in told[0]
    by_folder, by_file = (evaluate(settings(runs), str(name)) for name in (every, every / "model.pt2"))
    assert untimed(by_folder.to_json()) == untimed(by_file.to_json())
    names = with_their_runs(runs / "runs", ["hydra-s0/export"], told.append)
    assert [Path(name).name for name in names] == ["hydra-s0", "model.onnx"], "beside its run"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_another_task_or_of_other_members_is_refused(
    runs: Path, every: Path, tmp_path: Path, suffix: str
) -> None:
    with refused(f"model{suffix}", "classification", "multi-label"):
        evaluate(settings(runs, {"task": "multi-label"}), str(every / f"model{suffix}"))
    other = make_folder(tmp_path / "other", members=2)
    cache_logits(settings(other))
    train(settings(other))
    with refused("hydra-s0", f"model{suffix}", "number of members is 2", "3"):
        evaluate_together(settings(other), [str(other / RUN), str(every / f"model{suffix}")])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_older_than_its_run_is_told(runs: Path, every: Path, suffix: str) -> None:
    calibrate(settings(runs), "hydra-s0", remove=True)
    shown = Silent()
    evaluate_together(settings(runs), ["hydra-s0", f"{RUN}/export/model{suffix}"], progress=shown)
    assert sum(f"export/model{suffix} is stale" in line for line in shown.warnings) == 1
    shutil.copy(runs / "runs/other/student.safetensors", runs / RUN)
    with refused(f"model{suffix}", "Export again"):
        evaluate(settings(runs), f"{RUN}/export/model{suffix}")


def test_data_of_other_classes_are_refused(runs: Path) -> None:
    save_data(runs, "test", 10, y=np.arange(10) % 4)
    with refused("label 3", "0 to 2"):
        evaluate(settings(runs), GRAPH)


def test_other_members_are_refused_by_their_digests(runs: Path) -> None:
    shutil.rmtree(runs / "cache")
    old = ExportedRun.open_file(runs / GRAPH).provenance.members[1]
    save_member(runs, 1, seed=9)
    with refused(old.name, old.sha256[:12]):
        evaluate(settings(runs), GRAPH)


def test_a_file_of_other_weights_than_its_run_is_refused(runs: Path) -> None:
    shutil.copy(runs / GRAPH, runs / "runs/other")
    (runs / "runs/other/export").mkdir()
    shutil.move(runs / "runs/other/model.onnx", runs / "runs/other/export/model.onnx")
    with refused("other", "Export again"):
        evaluate(settings(runs), "runs/other/export/model.onnx")


def test_no_file_is_refused(runs: Path) -> None:
    with refused("nothing.onnx"):
        evaluate(settings(runs), "nothing.onnx")


def test_heads_that_pool_otherwise_than_the_file_are_refused(runs: Path) -> None:
    found = ExportedRun.open_file(runs / GRAPH)
    found.served.card = replace(found.served.card, weights=(1.0, 5.0, 1.0))
    with refused("logits", "pool"):
        GraphStudent(found.served, found.architecture.family)(torch.linspace(-1, 1, 72).view(2, 1, 6, 6))


FIELDS = {"gaussian-vector": {"unit": (1.0, 2.0)}}


@pytest.mark.parametrize("name", family_names())
def test_what_a_family_emits_reads_back(name: str) -> None:
    family = open_family(name, **FIELDS.get(name, {}))
    heads = 1 if family.stands_for_all else 3
    raw = torch.randn(4, heads, family.width(2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    told = family.predictive(raw, None, "probabilities")
    back = family.predictive(family.from_emitted(named_outputs(told)), None, "probabilities")
    torch.testing.assert_close(back.summary().total, told.summary().total)
    torch.testing.assert_close(back.pooled().means(), told.pooled().means())
    torch.testing.assert_close(back.means(), told.means())
