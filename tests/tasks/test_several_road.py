"""The whole road where a row has several answers, numbers or labels: members, cache, students, figures, files."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from exported_helpers import assert_every_kind_agrees
from numpy.testing import assert_allclose
from safetensors.torch import save_file
from several_roads import MEMBERS, MODEL, ROADS, ROWS, Road, make, rows, said, settings
from sklearn.metrics import average_precision_score
from tiny import refused

from ensemble_distill import (
    cache_logits,
    calibrate,
    evaluate,
    export,
    load_settings,
    load_student,
    predict,
    train,
)
from ensemble_distill.cache.reader import Cache
from ensemble_distill.cli.inspected_facts import answers, units
from ensemble_distill.facts import Member
from ensemble_distill.serving.predictions import formatted
from ensemble_distill.tasks import open_task
from ensemble_distill.workflows.inspect import inspect

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module", params=list(ROADS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Road]:
    road = ROADS[request.param]
    folder = make(tmp_path_factory.mktemp(request.param) / "work", road)
    cache_logits(load_settings(folder))
    for method in ("kd", "supervised"):
        train(settings(folder, method))
    train(settings(folder, "hydra", **{"closed-form": True}))
    train(settings(folder, "ban", objective="ban+l"))
    calibrate(load_settings(folder), "hydra-s0")
    export(load_settings(folder), "hydra-s0", onnx=True, safetensors=True)
    return folder, road


def test_the_cache_holds_what_members_say_and_what_an_answer_is(made: tuple[Path, Road]) -> None:
    folder, road = made
    cache = Cache(folder / "cache")
    np.testing.assert_allclose(cache.open("test").read(range(24)), said(folder, road, "test"), rtol=1e-5, atol=1e-4)
    record = json.loads((folder / "cache" / "manifest.json").read_text())
    if road.task == "regression":
        std = rows(folder, "train")[1].std(0)
        assert [(t["name"], t["unit"]) for t in record["targets"]] == [("heat", "kW"), ("flow", "l/h")]
        np.testing.assert_allclose([t["std"] for t in record["targets"]], std, rtol=1e-5)
    else:
        assert record["classes"] == list(road.names)


def test_a_report_counts_each_target_in_its_own_unit(made: tuple[Path, Road], tmp_path: Path) -> None:
    folder, road = made
    found = evaluate(load_settings(folder), "kd-s0", report=tmp_path / "report.html")
    drawn = json.loads((tmp_path / "report.json").read_text())["figures"]
    if road.task != "regression":
        assert "farthest" in drawn
        return
    assert "farthest" not in drawn, "means are no votes"
    rejected = drawn["rejection"]["data"]
    assert rejected["student"][0] == pytest.approx((found.models["student"] or {})["rmse"], rel=1e-5)
    with np.load(folder / "runs/kd-s0/evaluations/test.npz") as arrays:
        squared, variance = arrays["student_squared_error"], arrays["student_variance"]
    std = rows(folder, "train")[1].std(0)
    order = np.argsort((variance / std**2).ravel(), kind="stable")
    bins = drawn["spread"]["data"]["student"]
    first = order[: bins[0]["rows"]]
    assert bins[0]["error"] == pytest.approx(np.sqrt((squared / std**2).ravel()[first].mean()), rel=1e-3)


def test_figures_of_the_ensemble_are_those_of_numpy(made: tuple[Path, Road]) -> None:
    folder, road = made
    document = evaluate(load_settings(folder), "hydra-s0").to_json()
    ensemble, (_, y), z = document["models"]["ensemble"], rows(folder, "test"), said(folder, road, "test")
    if road.task == "regression":
        mean, variance = z[..., :2], np.exp(z[..., 2:])
        error, std = (mean.mean(1) - y) ** 2, rows(folder, "train")[1].std(0)
        assert ensemble["rmse.heat"] == pytest.approx(np.sqrt(error[:, 0].mean()), rel=1e-4)
        assert ensemble["rmse.flow"] == pytest.approx(np.sqrt(error[:, 1].mean()), rel=1e-4)
        assert ensemble["rmse"] == pytest.approx(np.sqrt((error / std**2).mean()), rel=1e-4)
        assert ensemble["data_uncertainty"] == pytest.approx((variance.mean(1) / std**2).mean(), rel=1e-4)
        assert ensemble["model_uncertainty"] == pytest.approx((mean.var(1) / std**2).mean(), rel=1e-4)
        assert ensemble["data_uncertainty.flow"] == pytest.approx(variance[..., 1].mean(), rel=1e-4)
        assert ensemble["model_uncertainty.flow"] == pytest.approx(mean[..., 1].var(1).mean(), rel=1e-4)
        log_p = -0.5 * (np.log(2 * np.pi * variance) + (y[:, None] - mean) ** 2 / variance).sum(-1)
        assert ensemble["nll"] == pytest.approx(-np.log(np.exp(log_p).mean(1)).mean(), rel=1e-4)
    else:
        p = 1 / (1 + np.exp(-z))
        mean = p.mean(1)
        entropy = lambda q: -(q * np.log(q) + (1 - q) * np.log(1 - q))  # noqa: E731
        assert ensemble["nll"] == pytest.approx(-np.log(np.where(y == 1, mean, 1 - mean)).sum(1).mean(), rel=1e-4)
        assert ensemble["brier"] == pytest.approx(((mean - y) ** 2).mean(), rel=1e-4)
        assert ensemble["total_uncertainty"] == pytest.approx(entropy(mean).sum(1).mean(), rel=1e-4)
        assert ensemble["data_uncertainty"] == pytest.approx(entropy(p).sum(-1).mean(), rel=1e-4)
        own = entropy(mean) - entropy(p).mean(1)
        assert ensemble["model_uncertainty.cat"] == pytest.approx(own[:, 1].mean(), rel=1e-3)
        assert document["models"]["member"]["data_uncertainty.cat"] == pytest.approx(
            entropy(p)[..., 1].mean(), rel=1e-4
        )
        assert document["models"]["member"]["model_uncertainty.cat"] is None
        assert ensemble["macro_average_precision"] == pytest.approx(average_precision_score(y, mean), rel=1e-6)
        assert ensemble["micro_average_precision"] == pytest.approx(average_precision_score(y, mean, average="micro"))
    for name in road.figures:
        assert document["models"]["student"][name] is not None
    assert document["fidelity"]["diversity_explained"] > 0.2
    assert document["subensembles"]["best-2"] is not None


def test_tables_for_people_say_of_what_the_figures_are(made: tuple[Path, Road]) -> None:
    folder, road = made
    found = evaluate(load_settings(folder), "hydra-s0")
    assert found.task.uncertainty_unit == (
        "variances, in each target's standard deviation squared"
        if road.task == "regression"
        else "nats, summed over labels"
    )
    assert units([[8.0, 2500.0], [3.0, 1200.0]]) == "mean 8 and 2500, standard deviation 3 and 1200"
    assert units([8.0, 3.0]) == "mean 8, standard deviation 3"


@pytest.mark.parametrize("run", ["kd-s0", "supervised-s0", "ban-s0"])
def test_every_method_trains_a_student_that_learns(made: tuple[Path, Road], run: str) -> None:
    folder, _ = made
    models = evaluate(load_settings(folder), run).to_json()["models"]
    assert models["student"]["nll"] < models["ensemble"]["nll"] + 0.6 * abs(models["ensemble"]["nll"]) + 0.5


def test_the_exported_student_says_what_torch_does_and_predicts_by_name(made: tuple[Path, Road]) -> None:
    folder, road = made
    student, (x, _) = load_student(folder / "runs" / "hydra-s0", trust=True), rows(folder, "test")
    with torch.no_grad():
        predictive = student.predictive(student(torch.from_numpy(x)))
        summary = predictive.summary()
    session = onnxruntime.InferenceSession(folder / "runs" / "hydra-s0" / "export" / "model.onnx")
    outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"input": x}), strict=True))
    np.testing.assert_allclose(outputs["model_uncertainty"], summary.model, rtol=1e-3, atol=1e-5)
    found = predict(folder / "runs" / "hydra-s0" / "export" / "model.onnx", [str(folder / "data" / "test.npz")])
    table = list(csv.DictReader(formatted(found.rows, "csv").splitlines()))
    assert len(table) == 24
    if road.task == "regression":
        np.testing.assert_allclose(outputs["mean"], summary.mean, rtol=1e-4, atol=1e-3)
        assert outputs["head_means"].shape == (24, MEMBERS, 2)
        np.testing.assert_allclose(
            [[float(row["mean heat"]), float(row["mean flow"])] for row in table], outputs["mean"]
        )
        assert all(float(row["lower95 flow"]) < float(row["mean flow"]) < float(row["upper95 flow"]) for row in table)
    else:
        p = 1 / (1 + np.exp(-outputs["logits"].astype(np.float64)))
        np.testing.assert_allclose(p, summary.mean, rtol=1e-4, atol=1e-5)
        assert outputs["head_logits"].shape == (24, MEMBERS, 3)
        for row, each in zip(table, p, strict=True):
            np.testing.assert_allclose([float(row[f"p {name}"]) for name in road.names], each, rtol=1e-4)
            assert row["labels"] == ";".join(name for name, q in zip(road.names, each, strict=True) if q >= 0.5)


# --- files, members and what is told ------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["hydra-s0", "kd-s0"])
def test_every_kind_of_exported_file_says_the_same_of_targets_and_labels(
    made: tuple[Path, Road], tmp_path: Path, run: str
) -> None:
    folder = Path(shutil.copytree(made[0], tmp_path / "work"))
    assert_every_kind_agrees(load_settings(folder), run, str(folder / "data/test.npz"))


def test_conformal_predictions_are_those_of_a_loop_over_calibration_rows(
    made: tuple[Path, Road], tmp_path: Path
) -> None:
    folder, alpha = Path(shutil.copytree(made[0], tmp_path / "work")), 0.1
    export(load_settings(folder, {"data.calibration": "data/test.npz"}), "hydra-s0", onnx=True)
    file = folder / "runs/hydra-s0/export/model.onnx"
    session = onnxruntime.InferenceSession(file)
    (x, y), new = rows(folder, "test"), rows(folder, "validation")[0]
    rank = math.ceil((len(x) + 1) * (1 - alpha)) - 1
    found = predict(file, str(folder / "data/validation.npz"), alpha=alpha).rows
    if made[1].task == "regression":
        (mean, variance), (means, variances) = (session.run(["mean", "variance"], {"input": one}) for one in (x, new))
        t = np.sort(np.abs(y - mean) / np.sqrt(variance), axis=0)[rank]
        for at, name in enumerate(("heat", "flow")):
            lower = [row[f"conformal_lower {name}"] for row in found]
            assert_allclose(lower, (means - t * np.sqrt(variances))[:, at], rtol=1e-3, atol=1e-3)
        return
    z, logits = (session.run(["logits"], {"input": one})[0] for one in (x, new))
    t = sorted(max([-z[row, k] for k in range(3) if y[row, k]], default=-np.inf) for row in range(len(x)))[rank]
    wanted = [[n for n, own in zip(made[1].names, row, strict=True) if -own <= t + 1e-4] for row in logits]
    assert [row["conformal_set"] for row in found] == wanted
    assert len({len(one) for one in wanted}) > 1


def test_a_pair_of_tensors_and_standardized_outputs_mean_the_same(made: tuple[Path, Road], tmp_path: Path) -> None:
    folder, road = made
    if road.task != "regression":
        pytest.skip("numbers have units")
    there = make(tmp_path / "work", road)
    mean, std = [3.0, 0.0], [1.0, 1000.0]
    for member in range(MEMBERS):
        weights = road.weights(member)
        scale = torch.tensor([*std, 1.0, 1.0])
        bias = weights["linear.bias"] - torch.tensor([*mean, *(2 * np.log(std)).tolist()])
        save_file(
            {"linear.weight": weights["linear.weight"] / scale[:, None], "linear.bias": (bias / scale).float()},
            there / "teachers" / f"member-{member}.safetensors",
        )
    over = {"teachers.model-kwargs": {"outputs": 4, "pair": True}, "teachers.standardized": {"mean": mean, "std": std}}
    cache_logits(load_settings(there, over))
    ours, theirs = (Cache(one / "cache").open("test").read(range(24)) for one in (there, folder))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)
    over["teachers.standardized"] = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    with refused("2 targets", "3 means"):
        cache_logits(load_settings(there, {**over, "output.cache": "other"}))


@pytest.mark.parametrize("key", list(ROADS))
def test_of_several_tensors_the_one_as_wide_as_unnamed_labels_is_the_answer(key: str, tmp_path: Path) -> None:
    road = ROADS[key]
    folder = make(tmp_path / "work", road)
    for split in ROWS:
        x, y = rows(folder, split)
        np.savez(folder / "data" / f"{split}.npz", x=x, y=y)
    model = MODEL.replace("tuple(z.chunk(2, 1)) if self.pair else z", '{"out": z, "features": z[:, :2]}')
    (folder / "several.py").write_text(model)
    cache_logits(load_settings(folder, {"teachers.model": "several.py:Member"}))
    np.testing.assert_allclose(
        Cache(folder / "cache").open("test").read(range(24)), said(folder, road, "test"), rtol=1e-5, atol=1e-4
    )


def test_inspect_tells_targets_and_labels_as_what_they_are(made: tuple[Path, Road]) -> None:
    folder, road = made
    told = "targets: heat [kW], flow [l/h]" if road.task == "regression" else "labels: dog, cat, boat"
    for part in ("cache", "runs/hydra-s0", "runs/hydra-s0/export/model.onnx"):
        record = inspect(folder / part)
        assert answers(record) == f"{road.task}, {len(road.names)} {told}"


def test_one_number_a_row_becomes_one_label(tmp_path: Path) -> None:
    member = Member("member-0", "0" * 64, "logits", model="model.py:Member")
    with refused("(8,)", "(rows, labels)", "out: out.unsqueeze(1))"):
        open_task("multi-label").joined(torch.zeros(8), 8, member)
