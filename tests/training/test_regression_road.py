"""Numbers from settings to a trained student: contradictions, units, losses and labels."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import load_file, save_file
from scipy.special import logsumexp
from scipy.stats import norm
from tiny import contents, refused, settings, with_cache
from tiny_regression import LEVEL, SPREAD, Float64, ensemble, load_data, make_folder, member_state, save_data
from training_helpers import summary, trained
from typer.testing import CliRunner, Result

from ensemble_distill.cache.reader import Cache
from ensemble_distill.cli.app import app
from ensemble_distill.data import batches
from ensemble_distill.data.source import Array
from ensemble_distill.methods.method import Labels
from ensemble_distill.predictive.gaussian import Gaussian
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.run import load_student
from ensemble_distill.settings import load_settings, settings_from, settings_toml
from ensemble_distill.training.rows import CachedRows, CachedSplit, TeacherOutputs, collate
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train
from ensemble_distill.workspace import Workspace

ROWS = {"train": 40, "validation": 12}
METHODS = ["hydra", "kd", "supervised", "batch-ensemble"]


pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache; runs of this module go there under names of their own."""
    return with_cache(make_folder(tmp_path_factory.mktemp("road") / "tiny", rows=ROWS))


def said_by(run: Path, x: Array) -> tuple[Float64, Float64]:
    """Means and variances (B, H) of a student's heads, from its raw numbers by hand."""
    with torch.no_grad():
        raw = load_student(run, trust=True)(torch.from_numpy(x)).double().numpy()
    family = json.loads((run / "config.json").read_text())["student"]["family"]
    assert family["name"] == "gaussian"
    return family["center"] + family["scale"] * raw[..., 0], family["scale"] ** 2 * np.exp(raw[..., 1])


def pooled(means: Float64, variances: Float64) -> tuple[Float64, Float64]:
    return means.mean(1, keepdims=True), (variances.mean(1) + means.var(1))[:, None]


def kl(means: Float64, variances: Float64, other: Float64, others: Float64) -> Float64:
    return 0.5 * (np.log(others / variances) + (variances + (means - other) ** 2) / others - 1)


def edistill(line: str) -> Result:
    return CliRunner().invoke(app, shlex.split(line))


# --- settings ---------------------------------------------------------------------------------------------------

KINDS: list[dict[str, Any]] = [
    {"output": "mean-logvar"},
    {"output": "mean-variance", "standardized": {"mean": -0.1, "std": 1e-3}},
    {"output": "mean", "variance": [0.1, 20.0], "members": {"m*": {"variance": [0.2, 30.0]}}},
    {"output": "mean", "variance": 0.1, "standardized": {"mean": 454.0, "std": 17.0}, "weights": [1.0, 2.0, 0.5]},
]


@pytest.mark.parametrize("teachers", KINDS)
def test_settings_come_back_as_they_were(tmp_path: Path, teachers: dict[str, Any]) -> None:
    values = {"task": "regression", "teachers": teachers, "data": {"train": "train.npz"}, "cache": {"dtype": "float32"}}
    mine = settings_from(values, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "elsewhere" / "edistill.toml"
    file.write_text(settings_toml(mine, file.parent))
    assert load_settings(file) == mine
    assert 'task = "regression"' in file.read_text()


def test_a_run_is_made_again_by_the_settings_beside_it(cached: Path) -> None:
    report = trained(cached, student__heads=[5])
    before = contents(report.folder, ["summary.csv", "checkpoint.safetensors"])
    train(load_settings(report.folder / "args.toml"), overwrite=True)
    assert contents(report.folder, ["summary.csv", "checkpoint.safetensors"]) == before


CONTRADICTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"teachers.output": "logits"}, ["teachers.output is 'logits'", "task is regression", "mean-variance"]),
    ({"teachers.output": "probabilities"}, ["teachers.output is 'probabilities'", "task is regression"]),
    ({"task": "classification"}, ["teachers.output is 'mean-logvar'", "task is classification", "or probabilities"]),
    ({"task": "classification", "teachers.output": "mean"}, ["teachers.output is 'mean'", "task is classification"]),
    ({"teachers.output": "mean"}, ["how far targets lie", "Set teachers.variance", "unit squared"]),
    ({"teachers.variance": 2.0}, ["teachers.variance is 2.0", "'mean-logvar'", "Leave the variance out"]),
    ({"teachers.output": "mean", "teachers.variance": 0}, ["teachers.variance is 0: input should be greater than 0"]),
    ({"teachers.output": "mean", "teachers.variance": -1.5}, ["teachers.variance is -1.5"]),
    ({"teachers.output": "mean", "teachers.variance": float("inf")}, ["teachers.variance is inf", "finite"]),
    ({"teachers.average": "logits"}, ["teachers.average is 'logits'", "regression"]),
    ({"cache.dtype": "float16"}, ["cache.dtype is 'float16'", "float32 is used"]),
    ({"teachers.standardized": {"mean": 1.0}}, ["teachers.standardized.std is missing"]),
    ({"teachers.standardized": {"mean": 1.0, "std": 0.0}}, ["teachers.standardized.std is 0.0", "greater than 0"]),
    ({"teachers.standardized": {"mean": 1.0, "sd": 2.0}}, ["unknown key teachers.standardized.sd", "std?"]),
    ({"teachers.standardized": True}, ["teachers.standardized is True", "table"]),
    (
        {"task": "classification", "teachers.output": "logits", "teachers.standardized": {"mean": 0, "std": 1}},
        ["teachers.standardized is set", "the task is classification"],
    ),
    (
        {"task": "classification", "teachers.output": "logits", "teachers.variance": 2},
        ["teachers.variance is 2.0, but teachers.output is 'logits'"],
    ),
]


def as_flags(changes: Mapping[str, Any]) -> str:
    """--set KEY=VALUE for each, in TOML."""

    def toml(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
        return str(value).lower() if isinstance(value, bool) else str(value)

    return " ".join(f"--set '{key}={toml(value)}'" for key, value in changes.items())


@pytest.mark.parametrize(("changes", "said"), CONTRADICTIONS)
def test_contradictions_are_told_before_anything_is_done(
    cached: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: list[str]
) -> None:
    before = contents(cached)
    monkeypatch.chdir(cached)
    with refused(*said):
        settings(cached, changes)
    for command in ("cache-logits", "train"):
        result = edistill(f"{command} {as_flags(changes)}")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.count("Error: ") == 1
        for part in said:
            assert part in result.stderr.replace("\n\nhint: ", " ")
    assert contents(cached) == before


@pytest.mark.parametrize("method", ["endd", "proxy-endd"])
def test_a_dirichlet_is_none_of_numbers(cached: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    before = contents(cached)
    monkeypatch.chdir(cached)
    result = edistill(f"train --method {method}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{method} is for classification, and the task is regression" in result.stderr
    assert contents(cached) == before


# --- units ------------------------------------------------------------------------------------------------------


def test_a_fresh_head_says_what_is_known_of_no_row_in_particular(cached: Path) -> None:
    """Mean and variance over all rows and views 0, so raw zeros are the best answer that does not look at x."""
    report = trained(cached)
    outputs = Cache(cached / "cache").open("train", 2).read(range(40)).astype(np.float64)
    family = StudentConfig.load(report.folder).architecture.family
    means = outputs[..., 0].mean(1)
    variance = means.var() + np.exp(outputs[..., 1].mean())
    assert_allclose((family.center, family.scale), (means.mean(), np.sqrt(variance)), rtol=1e-9)


def test_a_fresh_head_is_in_reach_of_the_members_that_count(cached: Path, tmp_path: Path) -> None:
    """One of weight 0 is far off; the others count by their weights."""
    folder = make_folder(tmp_path / "t", rows=ROWS)
    state = member_state(1)
    state["mean.bias"] += 3e4
    state["log_variance.bias"] += 9
    save_file(state, folder / "teachers/member-1.safetensors")
    cache_logits(settings(folder))
    outputs = Cache(folder / "cache").open("train", 2).read(range(40)).astype(np.float64)
    for weights in ([1.0, 0.0, 1.0], [3.0, 0.0, 1.0]):
        report = trained(folder, teachers__weights=weights, train__method="kd", train__epochs=40)
        family = StudentConfig.load(report.folder).architecture.family
        means, spreads = (np.average(outputs[..., of], axis=1, weights=weights) for of in (0, 1))
        wanted = (means.mean(), np.sqrt(means.var() + np.exp(spreads.mean())))
        assert_allclose((family.center, family.scale), wanted, rtol=1e-6)
        x, y = load_data(folder, "validation")
        said, _ = said_by(report.folder, x)
        assert np.sqrt(np.mean((said[:, 0] - y) ** 2)) < 2 * SPREAD


@pytest.mark.parametrize("slope", [0.0, 1e-3])
def test_members_that_know_nothing_are_imitated_too(tmp_path: Path, slope: float) -> None:
    """Their means hardly move, and are no unit for their variance."""
    folder = make_folder(tmp_path / "t", rows=ROWS)
    for seed in range(3):
        state = member_state(seed)
        state["mean.weight"] *= slope
        state["mean.bias"] = torch.tensor([454.1 + seed])
        save_file(state, folder / f"teachers/member-{seed}.safetensors")
    cache_logits(settings(folder))
    table = summary(trained(folder, train__epochs=10))
    assert float(table[-1]["validation_loss"]) < 0.2


@pytest.fixture(scope="module")
def in_thousandths(cached: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows and members, where the target is 1000 y + 5."""
    folder = make_folder(tmp_path_factory.mktemp("thousandths") / "tiny", rows=ROWS, units=(-0.005, 0.001))
    for split in ROWS:
        x, y = load_data(cached, split)
        save_data(folder, split, len(x), x=x, y=1000 * y.astype(np.float64) + 5)
    cache_logits(settings(folder))
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_the_targets_unit_does_not_matter(cached: Path, in_thousandths: Path, method: str) -> None:
    """The same losses (densities are a thousandth), and the same figures in the other unit.

    By SGD: adaptive optimizers make steps of rounding errors where the gradient is 0, as before BatchNorm.
    """
    plain = {"train__opt": "sgd", "train__method": method}
    one, other = (trained(folder, **plain) for folder in (cached, in_thousandths))
    for a, b in zip(summary(one), summary(other), strict=True):
        for figure in ("train_loss", "validation_loss", "validation_nll"):
            moved = np.log(1000) if method == "supervised" or figure == "validation_nll" else 0
            assert_allclose(float(b[figure]) - moved, float(a[figure]), rtol=2e-5, atol=1e-5)
    x, _ = load_data(cached, "validation")
    (means, variances), (thousands, squared) = said_by(one.folder, x), said_by(other.folder, x)
    assert_allclose((thousands - 5) / 1000, means, rtol=2e-7)
    assert_allclose(squared / 1e6, variances, rtol=2e-5)


# --- losses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_losses_fall_and_are_what_numpy_says(cached: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH", 5)  # of the 12 validation rows: 5, 5 and 2
    report = trained(cached, train__method=method, train__epochs=15, student__kwargs={"dropout": 0.0})
    table = summary(report)
    first, *_, last = [row for row in table if row["stage"] == table[-1]["stage"]]
    assert float(last["validation_loss"]) < float(first["validation_loss"])
    assert float(last["train_loss"]) < float(table[0]["train_loss"])
    x, y = load_data(cached, "validation")
    teacher, student = ensemble(x), said_by(report.folder, x)
    assert student[0].shape == (12, 3 if method in ("hydra", "batch-ensemble") else 1)
    nll = -norm.logpdf(y[:, None], student[0], np.sqrt(student[1]))
    wanted = {
        "hydra": kl(*teacher, *student),
        "batch-ensemble": kl(*teacher, *student),
        "kd": kl(*pooled(*teacher), *student),
        "supervised": nll,
    }[method]
    assert_allclose(float(last["validation_loss"]), wanted.mean(), rtol=1e-4)
    mixture = -logsumexp(-nll, axis=1, b=1 / nll.shape[1])
    assert_allclose(float(last["validation_nll"]), mixture.mean(), rtol=1e-4)
    assert mixture.mean() < 4.5 < np.log(SPREAD) + 0.5 * np.log(2 * np.pi) + 1


@pytest.mark.thorough
def test_heads_part_each_towards_its_own_member(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "t", rows={"train": 240, "validation": 60})
    more: dict[str, Any] = {"views.transform": "none", "cache.batch-size": 240}
    cache_logits(settings(folder, more))
    more |= {
        "train.epochs": 15,
        "train.batch-size": 24,
        "train.lr": 0.03,
        "student.kwargs": {"dropout": 0.0, "width": 32},
        "data.validation": None,
    }
    report = train(settings(folder, more))
    x, _ = load_data(folder, "validation")
    (means, variances), teacher = said_by(report.folder, x), ensemble(x)
    apart = [[kl(*(t[:, m] for t in teacher), means[:, h], variances[:, h]).mean() for m in range(3)] for h in range(3)]
    assert np.argmin(apart, axis=1).tolist() == [0, 1, 2], apart


def test_the_summary_of_a_student_is_numpys(cached: Path) -> None:
    x, _ = load_data(cached, "validation")
    for weights in (None, [3.0, 1.0, 0.0]):
        run = trained(cached, teachers__weights=weights).folder
        means, variances = said_by(run, x)
        student = load_student(run, trust=True)
        with torch.no_grad():
            raw = student(torch.from_numpy(x))
        found, exact = (student.predictive(numbers).summary() for numbers in (raw, raw.double()))
        shares = np.full(3, 1 / 3) if weights is None else np.array(weights) / 4
        mean = means @ shares
        data, model = variances @ shares, ((means - mean[:, None]) ** 2) @ shares
        for values, in_full, wanted in (
            (found.mean, exact.mean, mean),
            (found.data, exact.data, data),
            (found.model, exact.model, model),
            (found.total, exact.total, data + model),
        ):
            assert values.shape == (12,)
            assert_allclose(in_full, wanted, rtol=1e-7)
            rounding = 6e-5 * np.sqrt(wanted) if values is found.model else 0  # float32 goes in steps of 3e-5 about 454
            assert (np.abs(values.numpy() - wanted) <= 1e-5 * wanted + rounding).all()


# --- labels -----------------------------------------------------------------------------------------------------


def test_mixed_rows_have_mixed_targets(cached: Path) -> None:
    """The view mixes two inputs, and a number between two targets is a target."""
    mine = settings(cached, {"views.transform": "mixup"})
    plan = Workspace(mine).split("train")
    records = Cache(cached / "cache").open("train", 2)
    rows = CachedRows([CachedSplit(plan.source, plan.view, plan.seed, records)], None)
    batch = collate([rows[row, view] for row in range(40) for view in range(2)])
    x, y = load_data(cached, "train")
    mixed = 0
    for at, (row, view) in enumerate(batch.indices):
        _, partner = plan.view.plan(0, int(view), int(row), 40).rows
        weight = float(batch.weight[at])
        assert (float(batch.own[at]), float(batch.partner[at])) == (float(y[row]), float(y[partner]))
        assert_allclose(batch.x[at], weight * x[row] + (1 - weight) * x[partner], atol=1e-6)
        mixed += partner != row and 0.05 < weight < 0.95
    assert mixed > 60
    gaussian = Gaussian(torch.full((80, 1), LEVEL), torch.full((80, 1), 2.0))
    labels = Labels(batch.own, batch.partner, batch.weight, batch.known)
    share = batch.weight.double().numpy()
    target = share * batch.own.double().numpy() + (1 - share) * batch.partner.double().numpy()
    assert_allclose(labels.nll(gaussian)[:, 0], -norm.logpdf(target, LEVEL, np.e), rtol=1e-5)


@pytest.fixture(scope="module")
def partly_labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_folder(tmp_path_factory.mktemp("partly") / "tiny", rows={**ROWS, "transfer": 24})
    np.savez(folder / "data/transfer.npz", x=load_data(folder, "transfer")[0])
    cache_logits(settings(folder))
    return folder


def test_a_batch_of_labeled_and_unlabeled_rows(partly_labeled: Path) -> None:
    plans = {name: Workspace(settings(partly_labeled)).split(name) for name in ("train", "transfer")}
    cache = Cache(partly_labeled / "cache")
    splits = [CachedSplit(p.source, p.view, p.seed, cache.open(name, 2)) for name, p in plans.items()]
    rows = CachedRows(splits, None)
    assert len(rows) == 64
    order = [(39, 0), (40, 1), (63, 0), (0, 1)]
    batch = collate([rows[index] for index in order])
    assert batch.known.tolist() == [True, False, False, True]
    assert batch.own.dtype == torch.float32
    records = [split.records for split in splits]
    wanted = [records[0].read([39], 0), records[1].read([0], 1), records[1].read([23], 0), records[0].read([0], 1)]
    assert np.array_equal(TeacherOutputs(splits).read(batch.indices), np.concatenate(wanted))
    far = Gaussian(torch.zeros(4, 1), torch.zeros(4, 1))
    nll = Labels(batch.own, batch.partner, batch.weight, batch.known).nll(far)[:, 0]
    assert ((nll > 1e4) == batch.known).all()
    assert nll[1:3].tolist() == [0, 0]


def test_unlabeled_rows_teach_what_needs_no_labels(partly_labeled: Path, cached: Path) -> None:
    """`supervised` leaves them out, and becomes what it is without them."""
    for method, steps in (("hydra", 8), ("supervised", 5)):
        run = trained(partly_labeled, train__method=method, train__epochs=1).folder
        count = load_file(run / "checkpoint.safetensors")["/optimizer/state/0/step"]
        assert count == (steps if method == "supervised" else steps - 2), method
        trained_on = set(StudentConfig.load(run).provenance.trained_on)
        assert trained_on == ({"train"} if method == "supervised" else {"train", "transfer"})
    alone = trained(cached, train__method="supervised", train__epochs=1).folder
    assert (alone / "student.safetensors").read_bytes() == (run / "student.safetensors").read_bytes()


def test_labels_are_missed_before_the_first_step(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "t", rows=ROWS)
    for split in ROWS:
        np.savez(folder / f"data/{split}.npz", x=load_data(folder, split)[0])
    cache_logits(settings(folder))
    with refused("supervised needs labels, and data.train has none"):
        train(settings(folder, {"train.method": "supervised"}))
    assert not (folder / "runs").exists() or not any(f for f in (folder / "runs").rglob("*") if f.name == "args.toml")
    for method in ("hydra", "kd"):
        table = summary(trained(folder, train__method=method))
        assert all(np.isfinite(float(row["validation_loss"])) for row in table)
        assert "validation_nll" not in table[0]


@pytest.mark.thorough
def test_whole_numbers_are_targets_and_names_of_classes_no_matter(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "t", rows=ROWS)
    for split in ROWS:
        x, y = load_data(folder, split)
        save_data(folder, split, len(x), y=y.astype(np.int64), classes=np.array(["a", "b"]))
    assert cache_logits(settings(folder)).classes == ()
    for method in ("hydra", "supervised"):
        report = trained(folder, train__method=method)
        assert float(summary(report)[-1]["validation_nll"]) < 6
    report.folder.rename(folder / "teachers/student")
    assert cache_logits(settings(folder, {"output.cache": "with-student"})).members[-1] == "student"
