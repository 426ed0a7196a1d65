"""Series (C, L) and volumes (C, D, H, W): through sources, and the views and shifts that act on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.torch import save_file
from tiny import refused

from ensemble_distill import cache_logits, export, load_student, predict, train
from ensemble_distill.data import open_source
from ensemble_distill.data.rows import ViewedRows
from ensemble_distill.data.shifts import Shifted, shifts_for
from ensemble_distill.data.subset import Subset
from ensemble_distill.data.views import in_units, open_view, require_kind, view_names
from ensemble_distill.data.views.noise import NOISE
from ensemble_distill.serving.served import Served
from ensemble_distill.settings import settings_from

RNG = np.random.default_rng(0)
LEVELS = np.array([1.0, 100.0, 0.0])  # of the channels: their deviations differ, and one is constant
SERIES = (RNG.normal(size=(20, 3, 11)) * LEVELS[:, None] + 7).astype(np.float32)
VOLUMES = (RNG.normal(size=(20, 3, 4, 5, 6)) * LEVELS[:, None, None, None] - 3).astype(np.float32)
KINDS = {"series": SERIES, "volume": VOLUMES}


def written(folder: Path, x: np.ndarray) -> Path:
    np.savez(folder / "a.npz", x=x, y=np.arange(len(x)) % 2)
    return folder / "a.npz"


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_told_apart_by_their_rank(tmp_path: Path, kind: str) -> None:
    x = KINDS[kind]
    source = open_source(written(tmp_path, x.astype(np.float64)))
    assert source.kind == source.item(0).kind == kind
    assert source.item(3).x.dtype == np.float32
    assert_array_equal(source.item(3).x, x[3])


@pytest.mark.parametrize("kind", KINDS)
def test_the_unit_is_each_channels_deviation(tmp_path: Path, kind: str) -> None:
    x = KINDS[kind]
    every = tuple(axis for axis in range(x.ndim) if axis != 1)
    wanted = np.where(LEVELS > 0, x.std(axis=every, dtype=np.float64), 0)
    source = open_source(written(tmp_path, x))
    assert source.scale is not None
    assert source.scale.shape == (3, *(1,) * (x.ndim - 2))
    assert_allclose(source.scale.reshape(-1), wanted, rtol=1e-6)
    some = np.array([3, 1, 7])
    subset = Subset(source, some).scale
    assert subset is not None
    assert_allclose(subset.reshape(-1), np.where(LEVELS > 0, x[some].std(axis=every, dtype=np.float64), 0), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_goes_by_the_unit(tmp_path: Path, kind: str) -> None:
    source = open_source(written(tmp_path, KINDS[kind]))
    rows = ViewedRows(source, open_view("noise", source.scale), 0)
    moved = np.stack([rows.inputs(row, [0, 1], [None])[at] for row in range(20) for at in (0, 1)])
    away = moved - np.repeat(KINDS[kind], 2, axis=0)
    every = tuple(axis for axis in range(away.ndim) if axis != 1)
    assert source.scale is not None
    assert_allclose(away.std(axis=every), NOISE * source.scale.reshape(-1), rtol=0.1, atol=1e-9)
    assert_array_equal(rows.inputs(4, [1], [None])[0], moved[9])


@pytest.mark.parametrize("kind", KINDS)
def test_mixup_is_a_weighted_mean(tmp_path: Path, kind: str) -> None:
    source = open_source(written(tmp_path, KINDS[kind]))
    view = open_view("mixup")
    plan = view.plan(0, 0, 5, 20)
    (x,) = ViewedRows(source, view, 0).inputs(5, [0], [None])
    weight = plan.weight  # type: ignore[attr-defined]
    assert_allclose(x, weight * KINDS[kind][5] + (1 - weight) * KINDS[kind][plan.rows[1]], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_moves_pictures_is_refused_by_name(kind: str) -> None:
    acting = [name for name in view_names() if kind in open_view(name).kinds]  # type: ignore[comparison-overlap]
    assert acting == ["mixup", "noise", "none"]
    with refused("'crop-flip+mixup'", f"the data holds {kind}", "mixup, noise, none"):
        require_kind(open_view("crop-flip+mixup"), kind, "crop-flip+mixup")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_shifted_by_noise(tmp_path: Path, kind: str) -> None:
    source = open_source(written(tmp_path, KINDS[kind]))
    assert shifts_for(source.kind) == ("noise",)
    away = np.stack([Shifted(source, "noise", 3).item(row).x - source.item(row).x for row in range(20)])
    own = KINDS[kind].reshape(20, 3, -1).std(axis=2)
    assert_allclose(away.reshape(20, 3, -1).std(axis=2)[:, :2].mean(axis=0) / own[:, :2].mean(axis=0), 0.4, rtol=0.25)
    assert (away[:, 2] == 0).all()
    with refused("rotation", kind, "noise"):
        Shifted(source, "rotation", 1)


def test_only_noise_asks_for_the_unit() -> None:
    assert in_units("mixup+noise")
    assert not in_units("mixup")
    assert not in_units("view.py:make")


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((4, 2, 0), np.float32), ("float32 of shape (2, 0)",)),
        (np.full((4, 2, 3), np.nan), ("x is nan at (0, 0) of row 0",)),
        (np.zeros((4, 2, 3), np.int64), ("int64 of shape (2, 3)", "series (C, L)")),
        (np.zeros((4, 1, 1, 1, 1, 1), np.float32), ("(1, 1, 1, 1, 1)", "volumes (C, D, H, W)")),
    ],
)
def test_others_are_refused(tmp_path: Path, x: np.ndarray, words: tuple[str, ...]) -> None:
    with refused(*words):
        open_source(written(tmp_path, x))


ROAD = """
from torch import nn
CONVOLUTIONS = {1: (nn.Conv1d, nn.AdaptiveAvgPool1d), 3: (nn.Conv3d, nn.AdaptiveAvgPool3d)}
def body(dims):
    convolution, pool = CONVOLUTIONS[dims]
    return nn.Sequential(convolution(3, 4, 3, padding=1), nn.ReLU(), pool(1), nn.Flatten())
def member(dims):
    return nn.Sequential(*body(dims), nn.Linear(4, 2))
"""


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_road(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(ROAD)
    (tmp_path / "teachers").mkdir()
    written(tmp_path, KINDS[kind])
    dims, namespace = KINDS[kind].ndim - 2, {}  # type: ignore[var-annotated]
    exec(ROAD, namespace)
    for member in range(2):
        torch.manual_seed(member)
        save_file(namespace["member"](dims).state_dict(), tmp_path / f"teachers/m{member}.safetensors")
    values = {
        "teachers": {"model": "model.py:member", "model-kwargs": {"dims": dims}},
        "data": {"train": "a.npz"},
        "views": {"transform": "mixup+noise", "count": 2},
        "student": {"model": "model.py:body", "kwargs": {"dims": dims}},
        "train": {"epochs": 1, "batch-size": 8, "device": "cpu", "workers": 0},
    }
    settings = settings_from(values, tmp_path)
    cache_logits(settings)
    train(settings)
    export(settings, onnx=True)
    served = Served(next((tmp_path / "runs").glob("*/export/model.onnx")))
    assert served.input == "input"
    assert served.session.get_inputs()[0].shape == ["batch_size", *KINDS[kind].shape[1:]]
    student = load_student(tmp_path / "runs/hydra-s0")
    with torch.no_grad():
        mean = student.predictive(student(torch.from_numpy(KINDS[kind]))).summary().mean
    found = [row["probability"] for row in predict(served.path, "a.npz").rows]
    assert_allclose(found, mean.max(dim=-1).values, rtol=1e-4)
