"""`evaluate` on numbers: figures in the target's unit, against scipy on what the members say by themselves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import one_head
import pytest
import tiny_regression
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from tiny import refused

from ensemble_distill import load_student
from ensemble_distill.data import batches
from ensemble_distill.settings import Settings, load_settings
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.evaluate import evaluate, evaluate_together
from ensemble_distill.workflows.train import train

Floats = NDArray[np.float64]
UNITS = (tiny_regression.LEVEL, tiny_regression.SPREAD)
STANDARDIZED = {"teachers.standardized": {"mean": UNITS[0], "std": UNITS[1]}}
NEAR: dict[str, Any] = {"rtol": 1e-4}  # float32 records of numbers around 454


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four members that return standardized numbers, and two runs. Do not write to it."""
    folder = tiny_regression.make_folder(tmp_path_factory.mktemp("numbers") / "tiny", 4, units=UNITS)
    cache_logits(settings(folder))
    train(settings(folder, {"output.name": "heads"}))
    train(settings(folder, {"output.name": "one", "train.method": one_head.SPEC}))
    return folder


@pytest.fixture(autouse=True)
def _in_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH", 7)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def settings(folder: Path, overrides: dict[str, Any] | None = None) -> Settings:
    return load_settings(folder / "edistill.toml", {**STANDARDIZED, **(overrides or {})})


def data(folder: Path, split: str) -> tuple[NDArray[np.float32], Floats]:
    """Features and targets."""
    with np.load(folder / f"data/{split}.npz") as arrays:
        return arrays["x"], arrays["y"].astype(np.float64)


def figures(mean: Floats, variance: Floats, y: Floats) -> dict[str, float]:
    """Of the mixture, from means and variances (N, M)."""
    center, total = mean.mean(1), variance.mean(1) + mean.var(1)
    return {
        "rmse": float(np.sqrt(((y - center) ** 2).mean())),
        "nll": float(-np.log(norm(mean, np.sqrt(variance)).pdf(y[:, None]).mean(1)).mean()),
        "coverage95": float((np.abs(y - center) <= 1.96 * np.sqrt(total)).mean()),
        "total_uncertainty": float(total.mean()),
        "data_uncertainty": float(variance.mean()),
        "model_uncertainty": float(mean.var(1).mean()),
    }


@torch.no_grad()
def heads_say(run: Path, x: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Means and variances (N, H) of a run's heads, in the target's unit."""
    student = load_student(run, trust=True)
    predictive: Any = student.predictive(student(torch.from_numpy(x)))
    return predictive.mean.double().numpy(), predictive.log_variance.double().exp().numpy()


def test_figures_are_in_the_targets_unit(folder: Path) -> None:
    document = evaluate(settings(folder), "heads").to_json()
    x, targets = data(folder, "test")
    mean, variance = tiny_regression.ensemble(x, 4)
    ensemble, models = figures(mean, variance, targets), document["models"]
    assert document["task"] == "regression"
    assert list(models["ensemble"]) == list(ensemble)
    for name, value in ensemble.items():
        assert_allclose(models["ensemble"][name], value, err_msg=name, **NEAR)
    own = [figures(mean[:, [m]], variance[:, [m]], targets) for m in range(4)]
    for name in ("rmse", "nll", "coverage95", "total_uncertainty", "data_uncertainty"):
        assert_allclose(models["member"][name], np.mean([one[name] for one in own]), err_msg=name, **NEAR)
    assert models["member"]["model_uncertainty"] is None
    student = figures(*heads_say(folder / "runs/heads", x), targets)
    for name, value in student.items():
        assert_allclose(models["student"][name], value, err_msg=name, **NEAR)
    fidelity = document["fidelity"]
    assert fidelity["agreement"] is None
    assert_allclose(fidelity["gap_closed"], _gap(models), rtol=1e-9)
    assert_allclose(
        fidelity["model_uncertainty_ratio"], student["model_uncertainty"] / ensemble["model_uncertainty"], **NEAR
    )
    assert fidelity["diversity_explained"] is not None


def _gap(models: dict[str, dict[str, float]]) -> float:
    member, student, ensemble = (models[name]["nll"] for name in ("member", "student", "ensemble"))
    return (member - student) / (member - ensemble)


def test_ood_rows_are_told_by_the_variances(folder: Path) -> None:
    document = evaluate(settings(folder), "heads").to_json()
    truth = np.repeat([0, 1], [10, 7])
    rows = np.concatenate([data(folder, "test")[0], data(folder, "ood/far")[0]])
    means, variances = tiny_regression.ensemble(rows, 4)
    found = document["ood"]["far"]["ensemble"]
    assert_allclose(found["model_uncertainty"], roc_auc_score(truth, means.var(1)))
    assert_allclose(found["total_uncertainty"], roc_auc_score(truth, means.var(1) + variances.mean(1)))
    assert document["ood"]["far"]["member"]["model_uncertainty"] is None


def test_kept_rows_are_in_the_targets_unit(folder: Path) -> None:
    document = evaluate(settings(folder), "heads").to_json()
    _, y = data(folder, "test")
    with np.load(folder / "runs/heads/evaluations/test.npz") as rows:
        for model in ("ensemble", "student", "best-2"):
            error = y - rows[f"{model}_mean"]
            assert_allclose(np.sqrt((error**2).mean()), document["models"][model]["rmse"], rtol=1e-3)
            assert_allclose(rows[f"{model}_variance"], rows[f"{model}_total_uncertainty"], rtol=1e-5)
        assert rows["member_mean"].shape == (10, 4)


def test_one_head_beside_many(folder: Path) -> None:
    heads, one = evaluate_together(settings(folder), ["heads", "one"]).to_json()["runs"]
    assert heads["models"]["ensemble"] == one["models"]["ensemble"]
    assert one["models"]["student"]["model_uncertainty"] is None
    assert {name for name, value in one["fidelity"].items() if value is not None} == {"mean_kl", "gap_closed"}


def test_the_best_two_are_those_of_the_least_nll(folder: Path) -> None:
    document = evaluate(settings(folder), "heads").to_json()
    x, y = data(folder, "validation")
    mean, variance = tiny_regression.ensemble(x, 4)
    pairs = [(a, b) for a in range(4) for b in range(a)]
    nll = [figures(mean[:, pair], variance[:, pair], y)["nll"] for pair in pairs]
    best = sorted(pairs[int(np.argmin(nll))])
    assert document["subensembles"]["best-2"] == [f"member-{m}" for m in best]


def test_members_taken_in_another_unit_are_refused(folder: Path) -> None:
    other = {"teachers.standardized": {"mean": 0.0, "std": 1.0}, "output.cache": "none"}
    with refused("was trained from member member-0 with units (454.0, 17.0), but now it is (0.0, 1.0)", "standardized"):
        evaluate(load_settings(folder / "edistill.toml", other), "heads")


def test_without_targets_the_uncertainties_are_left(folder: Path) -> None:
    np.savez(folder / "data/plain.npz", x=data(folder, "test")[0])
    document = evaluate(settings(folder, {"data.test": "data/plain.npz", "output.cache": "none"}), "heads").to_json()
    for figures in document["models"].values():
        assert figures["rmse"] is figures["nll"] is figures["coverage95"] is None
        assert figures["total_uncertainty"] > 0
    assert document["fidelity"]["gap_closed"] is None
    assert document["fidelity"]["mean_kl"] is not None
