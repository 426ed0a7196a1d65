"""K-fold ensembles whose folds are known: training rows are seen through the members that were trained without them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tiny import refused

from ensemble_distill import cache_logits, calibrate, evaluate, load_student, train
from ensemble_distill.cache.reader import Cache
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.settings import Settings, settings_from
from ensemble_distill.workflows.doctor import doctor

N, M, K = 60, 3, 3
FOLDS = np.random.default_rng(1).permutation(np.arange(N) % M)
CODE = """
from torch import nn
def member():
    return nn.Linear(4, 3)
def body():
    return nn.Linear(4, 8)
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Networks, ten of which would sort wrongly by their letters, and rows of train and test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(CODE)
    (tmp_path / "teachers").mkdir()
    rng = np.random.default_rng(0)
    for at, name in enumerate(("fold-2", "fold-9", "fold-10")):
        weight = torch.tensor(np.eye(K, 4) * 2 + np.random.default_rng(at).normal(size=(K, 4)), dtype=torch.float32)
        save_file({"weight": weight, "bias": torch.zeros(K)}, tmp_path / "teachers" / f"{name}.safetensors")
    x = rng.normal(size=(N, 4)).astype(np.float32)
    np.savez(tmp_path / "train.npz", x=x, y=x[:, :K].argmax(1))
    np.save(tmp_path / "folds.npy", FOLDS)
    return settings_from(
        {
            "teachers": {"path": "teachers", "model": "model.py:member", "folds": "folds.npy"},
            "data": {"train": "train.npz"},
            "student": {"model": "model.py:body"},
            "views": {"transform": "noise", "count": 2},
            "train": {"epochs": 3, "batch-size": 16, "device": "cpu", "workers": 0},
            "cache": {"dtype": "float32", "batch-size": 7},
        },
        tmp_path,
    )


def softmax(z: Any) -> NDArray[np.float64]:
    p: NDArray[np.float64] = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    return p


def members(folder: Path, names: Sequence[str] = ("fold-2", "fold-9", "fold-10")) -> NDArray[np.float64]:
    """What each says of the training rows, (N, M, K)."""
    from safetensors.numpy import load_file

    x = np.load(folder / "train.npz")["x"].astype(np.float64)
    return np.stack([x @ load_file(folder / "teachers" / f"{name}.safetensors")["weight"].T for name in names], 1)


def test_held_out_rows_are_answered_by_the_member_that_was_trained_without_them(made: Settings, tmp_path: Path) -> None:
    cache_logits(made)
    cache = Cache(tmp_path / "cache")
    assert cache.manifest.names == ("fold-2", "fold-9", "fold-10")
    said, z = cache.open("held-out").read(range(N)), members(tmp_path)
    own = np.arange(M) == FOLDS[:, None]
    assert np.array_equal(~np.isnan(said).any(-1), own)
    assert np.allclose(said[own], z[own], atol=1e-5)
    assert not np.isnan(cache.open("train", 2).read(range(N))).any()
    assert cache_logits(made).added == 0


def test_members_and_student_are_measured_and_calibrated_on_them(made: Settings, tmp_path: Path) -> None:
    cache_logits(made)
    train(made)
    heard = Silent()
    found = evaluate(made, progress=heard)  # there is no other split
    assert found.split == "held-out"
    assert any("The student was trained on these rows" in text for text in heard.notes)
    p, y = softmax(members(tmp_path)), np.load(tmp_path / "train.npz")["y"]
    nll = [-np.log(p[m == FOLDS, m, y[m == FOLDS]]).mean() for m in range(M)]
    assert found.models["member"]["nll"] == pytest.approx(np.mean(nll), rel=1e-5)  # type: ignore[index]
    with torch.no_grad():
        q = softmax(load_student(tmp_path / "runs/hydra-s0")(torch.tensor(np.load("train.npz")["x"])).double().numpy())
    at = np.arange(N), FOLDS
    kl = (p[at] * np.log(p[at] / q[at])).sum(1).mean()
    assert found.fidelity["member_kl"] == pytest.approx(kl, rel=1e-4)
    asked = (tmp_path / "cache").rename(tmp_path / "elsewhere")  # then the members themselves are asked
    assert evaluate(made).fidelity["member_kl"] == pytest.approx(found.fidelity["member_kl"], rel=1e-5)
    asked.rename(tmp_path / "cache")
    report = calibrate(made, progress=heard)
    assert report.split == "held-out"
    assert report.calibration is not None
    assert report.calibration.spread == 1


def with_folds(made: Settings, tmp_path: Path, folds: Any) -> Settings:
    np.save(tmp_path / "folds.npy", folds)
    return made


def test_other_folds_than_the_data_and_the_members_have_are_refused(made: Settings, tmp_path: Path) -> None:
    for folds, told in (
        (FOLDS[:-1], ("(59,)", "data.train has 60 rows")),
        (FOLDS.astype(float), ("float64", "whole numbers (60,) from 0")),
        (np.stack([FOLDS, FOLDS], 1), ("(60, 2)",)),
        (np.where(np.arange(N) == 4, -1, FOLDS), ("fold -1 at row 4",)),
        (FOLDS + 1, ("the 3 folds 1, 2, 3", "3 members: fold-2, fold-9, fold-10", "from 0 to 2")),
        (np.minimum(FOLDS, 1), ("the 2 folds 0, 1", "3 members")),
        (np.arange(N) % 4, ("the 4 folds 0, 1, 2, 3", "3 members")),
    ):
        with refused("teachers.folds", *told):
            cache_logits(with_folds(made, tmp_path, folds))
    (tmp_path / "folds.npy").unlink()
    with refused("teachers.folds", str(tmp_path / "folds.npy")):
        cache_logits(made)


def test_a_cache_of_other_folds_is_not_misread(made: Settings, tmp_path: Path) -> None:
    cache_logits(made)
    with refused("teachers.folds", "held-out", "cache-logits --overwrite"):
        cache_logits(with_folds(made, tmp_path, (FOLDS + 1) % M))
    cache_logits(made, overwrite=True)


def test_a_limit_takes_the_folds_of_its_rows(made: Settings, tmp_path: Path) -> None:
    limited = settings_from({**made.model_dump(exclude_unset=True, by_alias=True), "limit": 9}, tmp_path)
    cache_logits(limited)
    said = Cache(Path(limited.output.cache)).open("held-out").read(range(9))
    from ensemble_distill.runtime.spread import spread

    assert np.array_equal(~np.isnan(said[..., 0]), np.arange(M) == FOLDS[spread(N, 9)][:, None])


def test_a_limit_may_leave_a_fold_without_rows(made: Settings, tmp_path: Path) -> None:
    given = made.model_dump(exclude_unset=True, by_alias=True)
    limited = with_folds(settings_from({**given, "limit": 2}, tmp_path), tmp_path, np.arange(N) * M // N)
    cache_logits(limited)
    said = Cache(Path(limited.output.cache)).open("held-out").read(range(2))
    assert np.array_equal(~np.isnan(said[..., 0]), [[True, False, False], [False, False, True]])
    train(limited)
    found = evaluate(limited)
    Path(limited.output.cache).rename(tmp_path / "elsewhere")  # then the members themselves are asked
    assert evaluate(limited).fidelity["member_kl"] == pytest.approx(found.fidelity["member_kl"], rel=1e-5)
    with refused("the 2 folds 0, 2", "from 0 to 2"):
        cache_logits(with_folds(limited, tmp_path, np.arange(N) % 2 * 2), overwrite=True)


def test_ready_made_outputs_that_contradict_the_folds_are_refused(made: Settings, tmp_path: Path) -> None:
    z = members(tmp_path)
    for file in (tmp_path / "teachers").iterdir():
        file.unlink()
    for m in range(M):
        np.savez(tmp_path / "teachers" / f"fold-{m}.npz", train=np.where((m == FOLDS)[:, None], z[:, m], np.nan))
    plain = made.model_copy(update={"views": made.views.model_copy(update={"transform": "none"})})
    plain = plain.model_copy(update={"teachers": plain.teachers.model_copy(update={"model": None})})
    cache_logits(plain)
    assert Cache(tmp_path / "cache").manifest.answered("held-out") == pytest.approx(1 / M)
    with refused("teachers.folds says that fold-2 was trained without fold 2", "does not answer row 0 of that fold"):
        cache_logits(with_folds(plain, tmp_path, (FOLDS + 1) % M), overwrite=True)


def test_doctor_looks_at_them(made: Settings, tmp_path: Path) -> None:
    assert not doctor(lambda: made).problems
    short = with_folds(made, tmp_path, FOLDS[:10])
    assert any("teachers.folds" in text and "(10,)" in text for text in doctor(lambda: short).problems)
