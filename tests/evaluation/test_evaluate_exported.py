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
from runs_helpers import RUN
from tiny import contents, refused, save_data, save_member, settings

from ensemble_distill.evaluation.exported import ExportedRun, GraphStudent, with_their_runs
from ensemble_distill.predictive import family_names, open_family
from ensemble_distill.predictive.outputs import named_outputs
from ensemble_distill.workflows.evaluate import evaluate, evaluate_together

GRAPH = f"{RUN}/export/model.onnx"


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
    assert found.cost["student"]["parameters"] is None, "which onnxruntime does not tell"
    assert found.cost["student"]["latency_ms"] > 0


def test_beside_its_run_it_says_the_same(runs: Path) -> None:
    names = with_their_runs(runs / "runs", [GRAPH])
    assert [Path(name).name for name in names] == ["hydra-s0", "model.onnx"]
    assert with_their_runs(runs / "runs", ["hydra-s0", GRAPH]) == ["hydra-s0", GRAPH]
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
