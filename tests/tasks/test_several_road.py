"""The whole road where a row has several answers, numbers or labels: members, cache, students, figures, files."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from exported_helpers import assert_every_kind_agrees
from numpy.testing import assert_allclose
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score

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
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.serving.predictions import formatted
from ensemble_distill.settings import Settings
from ensemble_distill.tasks import open_task
from ensemble_distill.workflows.inspect import inspect

pytestmark = pytest.mark.thorough

ROWS = {"train": 60, "validation": 24, "test": 24, "calibration": 24}
MEMBERS, FEATURES = 4, 3


MODEL = """
import torch
from torch import nn

class Member(nn.Module):
    # pair: means and log-variances as two tensors; end: what the outputs go through last
    def __init__(self, outputs, pair=False, end="none"):
        super().__init__()
        self.linear, self.pair, self.end = nn.Linear(3, outputs), pair, end

    def forward(self, x):
        z = self.linear(x)
        z = {"none": z, "sigmoid": z.sigmoid(), "softmax": z.softmax(1)}[self.end]
        return tuple(z.chunk(2, 1)) if self.pair else z


class Body(nn.Module):
    # the inputs among its features, so that heads can say what linear members do
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 8)

    def forward(self, x):
        return torch.cat([x, self.linear(x).relu()], 1)


def make_body():
    return Body()
"""


@dataclass(frozen=True)
class Road:
    """A task with members; `outputs` each says, and what `names` the data has for its columns."""

    task: str
    output: str
    outputs: int
    names: tuple[str, ...]
    figures: tuple[str, ...]

    def labels(self, x: Any, rng: Any) -> Any:
        """(N, D) targets of units a thousand times apart, or (N, K) labels."""
        if self.task == "regression":
            return np.stack([3 + x[:, 0] + 0.3 * rng.normal(size=len(x)), 1000 * (x[:, 1] - x[:, 2])], 1).astype("f4")
        return (x + 0.3 * rng.normal(size=x.shape) > 0.4).astype(np.int64)

    def weights(self, seed: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(seed)
        if self.task == "regression":
            means = np.array([[1.0, 0, 0], [0, 1000.0, -1000.0]])
            weight = np.concatenate([means * (1 + 0.1 * rng.normal(size=means.shape)), np.zeros((2, 3))])
            bias = np.array([3.0, 0.0, np.log(0.1), np.log(100.0**2)])
        else:
            weight, bias = 4 * (np.eye(3) + 0.15 * rng.normal(size=(3, 3))), np.full(3, -1.6)
        return {
            "linear.weight": torch.from_numpy(weight).float(),
            "linear.bias": torch.from_numpy(np.asarray(bias)).float(),
        }


ROADS = {
    "numbers": Road(
        "regression", "mean-logvar", 4, ("heat [kW]", "flow [l/h]"), ("rmse", "rmse.heat", "coverage95.flow")
    ),
    "labels": Road("multi-label", "logits", 3, ("dog", "cat", "boat"), ("brier", "macro_average_precision")),
}


def make(folder: Path, road: Road) -> Path:
    rng = np.random.default_rng(0)
    (folder / "data").mkdir(parents=True)
    for split, rows in ROWS.items():
        x = rng.normal(size=(rows, FEATURES)).astype(np.float32)
        np.savez(folder / "data" / f"{split}.npz", x=x, y=road.labels(x, rng), classes=np.array(road.names))
    (folder / "teachers").mkdir()
    for member in range(MEMBERS):
        save_file(road.weights(member), folder / "teachers" / f"member-{member}.safetensors")
    (folder / "model.py").write_text(MODEL)
    splits = "\n".join(f'{split} = "data/{split}.npz"' for split in ROWS)
    (folder / "edistill.toml").write_text(
        f'task = "{road.task}"\n[teachers]\nmodel = "model.py:Member"\nmodel-kwargs = {{ outputs = {road.outputs} }}\n'
        f'output = "{road.output}"\n[views]\ntransform = "noise+mixup"\ncount = 2\n'
        '[student]\nmodel = "model.py:make_body"\n[train]\nepochs = 30\nbatch-size = 16\nlr = 0.01\ndevice = "cpu"\n'
        f"workers = 0\n[data]\n{splits}\n"
    )
    return folder


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


def settings(folder: Path, method: str, **options: Any) -> Settings:
    return load_settings(folder, {"train.method": method, **{f"method.{k}": v for k, v in options.items()}})


@contextmanager
def refused(*said: str) -> Iterator[None]:
    with pytest.raises(EdistillError) as error:
        yield
    assert not [part for part in said if part not in str(error.value)], str(error.value)


def rows(folder: Path, split: str) -> tuple[Any, Any]:
    with np.load(folder / "data" / f"{split}.npz") as arrays:
        return arrays["x"], arrays["y"]


def said(folder: Path, road: Road, split: str) -> Any:
    """(N, M, W) what the members say, by NumPy."""
    x, _ = rows(folder, split)
    linear = [road.weights(member) for member in range(MEMBERS)]
    return np.stack([x @ w["linear.weight"].numpy().T + w["linear.bias"].numpy() for w in linear], 1)


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


# --- what is refused ----------------------------------------------------------------------------------------------


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
def test_answers_of_another_task_are_refused(key: str, tmp_path: Path) -> None:
    road = ROADS[key]
    folder = make(tmp_path / "work", road)
    kwargs = "teachers.model-kwargs"
    with refused("data.train", "shape"):  # several answers a row are no class
        cache_logits(load_settings(folder, {"task": "classification", "teachers.output": "logits"}))
    with refused("numbers a row" if key == "numbers" else "labels", "the members were trained on"):
        weights = {"linear.weight": torch.ones(6, 3), "linear.bias": torch.arange(6.0)}
        for member in range(MEMBERS):
            save_file({k: v + member for k, v in weights.items()}, folder / "teachers" / f"member-{member}.safetensors")
        cache_logits(load_settings(folder, {kwargs: {"outputs": 6}}))


def test_softmax_members_are_no_multi_label_members_and_sigmoids_no_classifiers(tmp_path: Path) -> None:
    folder = make(tmp_path / "work", ROADS["labels"])
    kwargs = "teachers.model-kwargs"
    for output in ("probabilities", "logits"):
        with refused("member-0", "sum to 1", "softmax"):
            cache_logits(load_settings(folder, {kwargs: {"outputs": 3, "end": "softmax"}, "teachers.output": output}))
    with refused("member-0", "sigmoids", 'teachers.output = "probabilities"'):
        cache_logits(load_settings(folder, {kwargs: {"outputs": 3, "end": "sigmoid"}}))
    report = cache_logits(
        load_settings(folder, {kwargs: {"outputs": 3, "end": "sigmoid"}, "teachers.output": "probabilities"})
    )
    assert report.predicts == "3 labels"
    z = Cache(folder / "cache").open("test").read(range(24))
    np.testing.assert_allclose(z, said(folder, ROADS["labels"], "test"), rtol=1e-3, atol=1e-3)


def test_splits_with_other_columns_are_refused(made: tuple[Path, Road], tmp_path: Path) -> None:
    _, road = made
    folder = make(tmp_path / "work", road)
    x, y = rows(folder, "test")
    np.savez(folder / "data" / "test.npz", x=x, y=y[:, ::-1], classes=np.array(road.names[::-1]))
    with refused("data.test", "same order"):
        cache_logits(load_settings(folder))
    np.savez(folder / "data" / "test.npz", x=x, y=np.concatenate([y, y], 1))
    with refused("data.test", str(2 * y.shape[1])):
        cache_logits(load_settings(folder))


def test_an_evaluation_on_other_columns_is_refused(made: tuple[Path, Road], tmp_path: Path) -> None:
    """Names of yes and no are no index: their columns are not to be renamed by the numbers in them."""
    source, road = made
    folder = shutil.copytree(source, tmp_path / "work")
    x, y = rows(folder, "test")
    other = folder / "data" / "other.npz"
    np.savez(other, x=x, y=y[:, ::-1], classes=np.array(road.names[::-1]))
    with refused("data.test", "same order"):
        evaluate(load_settings(folder, {"data.test": str(other)}), "hydra-s0")


def test_methods_of_classes_are_refused(made: tuple[Path, Road]) -> None:
    folder, road = made
    for method, options in (("endd", {}), ("ban", {"objective": "dkpp"})):
        with refused(road.task):
            train(
                load_settings(
                    folder,
                    {"train.method": method, "output.name": "x", **{f"method.{k}": v for k, v in options.items()}},
                )
            )


def test_data_that_names_a_target_twice_without_its_unit_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "work", ROADS["numbers"])
    for split in ROWS:
        x, y = rows(folder, split)
        np.savez(folder / "data" / f"{split}.npz", x=x, y=y, classes=np.array(["heat [kW]", "heat [J]"]))
    with refused("heat [kW], heat [J]", "Give every target its own"):
        cache_logits(load_settings(folder))
    assert not (folder / "cache" / "manifest.json").exists()


@pytest.mark.parametrize("names", [("flow [l/h]", "heat [kW]"), ("heat [MW]", "flow [l/h]")])
def test_a_run_of_targets_in_another_order_or_unit_is_no_member(
    made: tuple[Path, Road], tmp_path: Path, names: tuple[str, str]
) -> None:
    folder, road = made
    if road.task != "regression":
        pytest.skip("labels are ordered by their names")
    settled = {"teachers.path": str(folder / "runs" / "kd-s0"), "output.cache": str(tmp_path / "cache")}
    cache_logits(load_settings(folder, settled), trust=True)
    x, y = rows(folder, "train")
    np.savez(tmp_path / "train.npz", x=x, y=y, classes=np.array(names))
    split = {f"data.{name}": str(tmp_path / "train.npz") for name in ROWS}
    with refused(*names, "kd-s0", "same order and units"):
        cache_logits(load_settings(folder, {**settled, **split}), overwrite=True, trust=True)


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


@pytest.mark.parametrize(
    ("mean", "std", "told"),
    [
        ([0.0, 0.0], [1.0, 1.0, 1.0], ("2 targets", "2 means", "3 deviations")),
        (0.0, [1.0, 1.0, 1.0], ("2 targets", "3 deviations")),
        ([3.0, 0.0], [1.0, 0.0], ("teachers.standardized.std", "greater than 0")),
        ([3.0], [1.0], ("2 targets", "1 means", "1 deviations", "for each target")),
    ],
)
def test_units_are_numbers_or_one_for_each_target(mean: Any, std: Any, told: tuple[str, ...], tmp_path: Path) -> None:
    folder = make(tmp_path / "work", ROADS["numbers"])
    with refused(*told):
        cache_logits(load_settings(folder, {"teachers.standardized": {"mean": mean, "std": std}}))
    cache_logits(load_settings(folder, {"teachers.standardized": {"mean": [0.0, 0.0], "std": 1.0}}))
    assert Cache(folder / "cache").manifest.members[0].units == ((0.0, 0.0), (1.0, 1.0))
