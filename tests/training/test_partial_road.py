"""The whole road from out-of-fold outputs: cache, train, evaluate, calibrate, beside figures in NumPy."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import refused

from ensemble_distill import cache_logits, calibrate, compare, evaluate, load_student, train
from ensemble_distill.cache.reader import Cache
from ensemble_distill.data import batches
from ensemble_distill.evaluation.result import Evaluation
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.settings import Settings, settings_from
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.training.feed import Pooling

Floats = NDArray[np.float64]
ROWS = {"train": 48, "validation": 24, "test": 30}
M, K = 3, 3


@pytest.fixture(autouse=True)
def _in_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH", 11)


def logits(x: Floats, member: int) -> Floats:
    w = np.eye(4, K) + np.random.default_rng(member).normal(size=(4, K)) / 2
    z: Floats = 2 * np.abs(x) @ w
    return z


def folder_with(folder: Path, holes: dict[str, Any], far: int = 0, in_turn: bool = False) -> Settings:
    """A folder whose members are silent on some rows of some splits: {split: (N, M) whether a member answers}.

    All of them answer `far` rows from elsewhere. Rows are in a random order, or their classes come in turn.
    """
    (folder / "model.py").write_text("from torch import nn\ndef body():\n    return nn.Linear(4, 8)\n")
    (folder / "teachers").mkdir()
    rng, said = np.random.default_rng(0), {m: {} for m in range(M)}  # type: ignore[var-annotated]
    for split, rows in ROWS.items():
        x = rng.normal(size=(rows, 4)).astype(np.float32)
        y = np.abs(x[:, :K]).argmax(1)
        x = x[np.lexsort((y, [(y[:row] == y[row]).sum() for row in range(rows)]))] if in_turn else x
        np.savez(folder / f"{split}.npz", x=x, y=np.abs(x[:, :K]).argmax(1))
        for m in range(M):
            there = holes.get(split, np.ones((rows, M), bool))[:, m]
            said[m][split] = np.where(there[:, None], logits(x, m), np.nan)
    elsewhere = 4 * rng.normal(size=(far, 4)).astype(np.float32)
    np.savez(folder / "far.npz", x=elsewhere)
    for m in range(M):
        np.savez(folder / "teachers" / f"fold-{m}.npz", **said[m], **({"ood/far": logits(elsewhere, m)} if far else {}))
    values: dict[str, Any] = {
        "teachers": {"path": "teachers"},
        "data": {split: f"{split}.npz" for split in ROWS} | ({"ood": {"far": "far.npz"}} if far else {}),
        "student": {"model": "model.py:body"},
        "train": {"epochs": 4, "batch-size": 8, "device": "cpu", "workers": 0},
        "cache": {"dtype": "float32"},
        "views": {"transform": "none"},
    }
    return settings_from(values, folder)


def of_folds(split: str, out: bool = True) -> NDArray[np.bool_]:
    """Whether each member answers each row: those of its own fold, or of the others."""
    found: NDArray[np.bool_] = (np.arange(ROWS[split]) % M)[:, None] == np.arange(M)
    return found if out else ~found


def by_method(settings: Settings, name: str, **method: Any) -> Settings:
    return settings.model_copy(
        update={
            "train": settings.train.model_copy(update={"method": name}),
            "method": method,
        }
    )


def heads_of(folder: Path, name: str, split: str) -> Floats:
    """What the heads of a run say, (N, H, K) probabilities."""
    student = load_student(folder / "runs" / name)
    with torch.no_grad():
        z = student(torch.from_numpy(np.load(folder / f"{split}.npz")["x"])).double().numpy()
    p: Floats = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    return p


def members_of(folder: Path, split: str) -> Floats:
    z = np.stack([np.load(folder / "teachers" / f"fold-{m}.npz")[split] for m in range(M)], 1)
    p: Floats = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    return p


def evaluated(settings: Settings, split: str = "test") -> Evaluation:
    return evaluate(settings, split=split)


def test_each_row_is_learned_from_the_members_who_answer_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings, heard = folder_with(tmp_path, {"train": of_folds("train"), "test": of_folds("test", out=False)}), Silent()
    cache_logits(settings)
    assert Cache(tmp_path / "cache").manifest.unanswered
    assert cache_logits(settings).added == 0  # up to date, though what it says of row 0 is nothing
    for name, method in (("hydra", {}), ("hydra", {"loss": "deviation"}), ("batch-ensemble", {}), ("kd", {})):
        report = train(by_method(settings, name, **method), progress=heard, overwrite=True)
        assert report.parameters
    assert any("Of 3 members one answers each training row" in text for text in heard.notes)
    train(by_method(settings, "hydra"), overwrite=True)
    found = evaluated(by_method(settings, "hydra"))
    p, q = members_of(tmp_path, "test"), heads_of(tmp_path, "hydra-s0", "test")
    y = np.load(tmp_path / "test.npz")["y"]
    there, rows = ~np.isnan(p[..., 0]), np.arange(ROWS["test"])
    kl = np.nansum(np.where(there, (p * np.log(p / q)).sum(-1), np.nan), 1) / there.sum(1)
    assert found.fidelity["member_kl"] == pytest.approx(kl.mean(), rel=1e-5)
    whole = np.nanmean(p, 1)
    assert found.models["ensemble"]["nll"] == pytest.approx(-np.log(whole[rows, y]).mean(), rel=1e-5)  # type: ignore[index]
    assert found.models["student"]["nll"] == pytest.approx(-np.log(q.mean(1)[rows, y]).mean(), rel=1e-5)  # type: ignore[index]
    own = [-np.log(p[there[:, m], m][np.arange(there[:, m].sum()), y[there[:, m]]]).mean() for m in range(M)]
    assert found.models["member"]["nll"] == pytest.approx(np.mean(own), rel=1e-5)  # type: ignore[index]
    assert found.ladder is not None
    assert len(found.ladder.mean_kl) == 2  # who answer a row
    assert found.to_json()["answering"] == {"members": 3, "least": 2, "most": 2, "unanswered": 0}
    assert found.subensembles["best-2"] is not None
    assert found.models["best-2"] is None  # one of the two is silent on every third row
    assert evaluated(by_method(settings, "hydra"), "validation").models["best-2"] is not None
    (apart,) = compare(settings, ["hydra-s0", "batch-ensemble-s0"]).apart.values()
    other = evaluate(settings, "batch-ensemble-s0").fidelity
    for name in ("member_kl", "model_uncertainty_l1", "model_uncertainty_ratio"):
        assert apart[name].value == pytest.approx(other[name] - found.fidelity[name])  # type: ignore[operator]


def test_rows_that_one_member_answers_have_no_model_uncertainty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = folder_with(tmp_path, {split: of_folds(split) for split in ROWS})
    cache_logits(settings)
    train(settings)
    heard = Silent()
    found = evaluate(settings, progress=heard)
    assert any("No sub-ensembles" in text for text in heard.notes)
    ensemble = found.models["ensemble"]
    assert ensemble is not None
    assert ensemble["model_uncertainty"] is None
    assert ensemble["nll"] == pytest.approx(found.models["member"]["nll"])  # type: ignore[index]
    assert (found.worth, found.ladder) == (None, None)
    assert found.fidelity["model_uncertainty_ratio"] is None
    assert found.fidelity["diversity_explained"] is not None
    report = calibrate(settings, progress=heard)
    assert report.calibration is not None
    assert report.calibration.spread == 1
    assert any("One member answers each row of validation" in text for text in heard.notes)


def test_methods_that_need_several_members_a_row_refuse_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = folder_with(tmp_path, {"train": of_folds("train")})
    cache_logits(settings)
    for name in ("endd", "proxy-endd"):
        with refused(name, "one member alone answers 48 of 48 training rows", "--method hydra"):
            train(by_method(settings, name))
    with refused("method.row-weight is 1", "48 of 48", "Leave it out"):
        train(by_method(settings, "hydra", **{"row-weight": 1.0}))


def test_a_dirichlet_learns_where_two_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = folder_with(tmp_path, {"train": of_folds("train", out=False)})
    cache_logits(settings)
    for name in ("endd", "proxy-endd"):
        train(by_method(settings, name))
        assert evaluate(by_method(settings, name), f"{name}-s0").fidelity["model_uncertainty_l1"] is not None


def test_rows_that_nobody_answers_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    holes = {split: of_folds(split) for split in ROWS}
    for each in holes.values():
        each[:5] = False
    settings, heard = folder_with(tmp_path, holes), Silent()
    cache_logits(settings)
    train(settings, progress=heard)
    assert any("No member answers 5 of 48 training rows: they are left out" in text for text in heard.notes)
    found = evaluate(settings)
    assert found.rows == ROWS["test"] - 5
    assert found.answering is not None
    assert found.answering.unanswered == 5
    q, y = heads_of(tmp_path, "hydra-s0", "test").mean(1)[5:], np.load(tmp_path / "test.npz")["y"][5:]
    assert found.models["student"]["nll"] == pytest.approx(-np.log(q[np.arange(len(y)), y]).mean(), rel=1e-5)  # type: ignore[index]
    p, of = members_of(tmp_path, "validation")[5:], np.arange(ROWS["validation"] - 5)
    q, y = heads_of(tmp_path, "hydra-s0", "validation")[5:], np.load(tmp_path / "validation.npz")["y"][5:]
    kl = np.nanmean((p * np.log(p / q)).sum(-1), 1)
    with (tmp_path / "runs/hydra-s0/summary.csv").open() as file:
        *_, last = csv.DictReader(file)
    assert float(last["validation_loss"]) == pytest.approx(kl.mean(), rel=1e-4)
    assert float(last["validation_nll"]) == pytest.approx(-np.log(q.mean(1)[of, y]).mean(), rel=1e-4)
    train(by_method(settings, "supervised"))  # labels are there


def test_answers_are_held_against_the_labels_of_their_own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the rows before would be of other classes, as where a member's classes are in another order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ROWS, "train", 240)
    there = np.ones((240, M), bool)
    there[0, 1:] = False
    settings, heard = folder_with(tmp_path, {"train": there}, in_turn=True), Silent()
    assert cache_logits(settings, progress=heard).added
    assert heard.warnings == []


def test_a_member_of_weight_0_answers_nothing() -> None:
    outputs = torch.tensor([[[1.0, 2.0], [torch.nan] * 2], [[torch.nan] * 2, [1.0, 2.0]], [[torch.nan] * 2] * 2])
    pooling = Pooling(Classification(("a", "b")), torch.tensor([0.0, 1.0]), partial=True)
    assert pooling.answered(outputs).tolist() == [False, True, False]
    assert replace(pooling, weights=None).answered(outputs).tolist() == [True, True, False]


def test_the_best_two_are_not_compared_elsewhere_where_they_are_not_on_the_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    holes = np.ones((ROWS["test"], M), bool)
    holes[::2, 0] = False
    settings = folder_with(tmp_path, {"test": holes}, far=20)
    cache_logits(settings)
    train(settings)
    found = evaluate(settings)
    assert found.subensembles["best-2"] is not None, "chosen on validation rows, which all answer"
    assert found.ood["far"]["student"]["total_uncertainty"] is not None
    assert found.ood["far"].get("best-2") is None or found.models["best-2"] is not None


def test_members_and_splits_that_say_nothing_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    silent = of_folds("train")
    silent[:, 1] = False
    settings = folder_with(tmp_path, {"train": silent, "test": np.zeros((ROWS["test"], M), bool)})
    cache_logits(settings)
    with refused("1 of 3 members answer no training row (fold-1)", "--method kd"):
        train(settings)
    train(by_method(settings, "kd"))
    with refused("No member answers any row of test", "data.test"):
        evaluate(by_method(settings, "kd"))


def test_regressors_out_of_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text("from torch import nn\ndef body():\n    return nn.Linear(4, 8)\n")
    (tmp_path / "teachers").mkdir()
    rng, y = np.random.default_rng(0), {}
    x = {split: rng.normal(size=(rows, 4)).astype(np.float32) for split, rows in ROWS.items()}
    for split in ROWS:
        y[split] = (100 + 10 * x[split][:, 0] + rng.normal(size=ROWS[split])).astype(np.float32)
        np.savez(tmp_path / f"{split}.npz", x=x[split], y=y[split])
    means = {m: {split: 100 + (10 + m) * x[split][:, 0] + m for split in ROWS} for m in range(M)}
    for m in range(M):
        said = {split: np.c_[mean, np.full(len(mean), 4.0)] for split, mean in means[m].items()}
        for split in ("train", "test"):
            said[split][~of_folds(split)[:, m]] = np.nan
        np.savez(tmp_path / "teachers" / f"fold-{m}.npz", **said)
    settings = settings_from(
        {
            "task": "regression",
            "teachers": {"output": "mean-variance"},
            "data": {split: f"{split}.npz" for split in ROWS},
            "student": {"model": "model.py:body"},
            "train": {"epochs": 2, "batch-size": 16, "device": "cpu", "workers": 0},
        },
        tmp_path,
    )
    cache_logits(settings)
    train(settings)
    family = load_student(tmp_path / "runs/hydra-s0").family
    learned = np.choose(np.arange(ROWS["train"]) % M, [means[m]["train"] for m in range(M)])
    assert family.center == pytest.approx(learned.mean(), rel=1e-5)  # type: ignore[attr-defined]
    assert family.scale == pytest.approx(np.sqrt(learned.var() + 4), rel=1e-5)  # type: ignore[attr-defined]
    found, at = evaluate(settings), np.arange(ROWS["test"]) % M
    rmse = [np.sqrt(np.mean((means[m]["test"] - y["test"])[at == m] ** 2)) for m in range(M)]
    assert found.models["member"]["rmse"] == pytest.approx(np.mean(rmse), rel=1e-5)  # type: ignore[index]
    assert found.models["ensemble"]["model_uncertainty"] is None  # type: ignore[index]
    teachers = settings.teachers.model_copy(update={"weights": (3.0, 1.0, 0.0)})
    output = settings.output.model_copy(update={"name": "weighted"})
    train(settings.model_copy(update={"teachers": teachers, "output": output}))
    family = load_student(tmp_path / "runs/weighted").family
    learned = learned[np.arange(ROWS["train"]) % M < 2]  # on a row that one member answers, weights change nothing
    assert family.center == pytest.approx(learned.mean(), rel=1e-5)  # type: ignore[attr-defined]
    assert family.scale == pytest.approx(np.sqrt(learned.var() + 4), rel=1e-5)  # type: ignore[attr-defined]
