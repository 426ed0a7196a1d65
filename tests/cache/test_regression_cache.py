"""The cache of members that predict numbers: what it holds, what is refused, and that a refusal costs nothing."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from numpy.testing import assert_allclose
from safetensors.torch import save_file
from tiny import contents, refused, settings
from tiny_regression import LEVEL, SPREAD, ensemble, load_data, make_folder, member_state, save_data

from ensemble_distill.cache.reader import Cache
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

UNITS = (LEVEL, SPREAD)
STANDARDIZED = {"teachers.standardized": {"mean": LEVEL, "std": SPREAD}}


def returning(output: str, form: str, variance: float | None = None) -> dict[str, Any]:
    """Settings for members of one kind."""
    kwargs = {"form": form, "variance": output == "mean-variance"}
    return {"teachers.output": output, "teachers.variance": variance, "teachers.model-kwargs": kwargs}


pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")


# --- what it holds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "form", "variance", "standardized"),
    [
        *itertools.product(["mean"], ["column", "flat", "squeezed"], [25.0], [False]),
        ("mean", "column", 25.0, True),
        *itertools.product(["mean-variance"], ["joined", "pair", "flat pair"], [None], [True]),
        *itertools.product(["mean-logvar"], ["joined", "flat pair"], [None], [False, True]),
    ],
)
def test_the_cache_holds_what_numpy_says(
    tmp_path: Path, output: str, form: str, variance: float | None, standardized: bool
) -> None:
    rows = {"train": 10, "validation": 30, "ood/far": 5}  # the last batch of these has one row or two
    folder = make_folder(tmp_path / "t", rows=rows, units=UNITS if standardized else (0.0, 1.0))
    more = {"cache.batch-size": 29, **(STANDARDIZED if standardized else {}), **returning(output, form, variance)}
    cache_logits(settings(folder, more))
    cache = Cache(folder / "cache")
    for split in ("validation", "ood/far"):
        x, _ = load_data(folder, split)
        means, variances = ensemble(x)
        found = cache.open(split).read(range(len(x)))
        assert found.dtype == np.float32
        assert_allclose(found[..., 0], means, rtol=3e-7)  # what the members' own float32 allows
        assert_allclose(np.exp(found[..., 1]), variances if variance is None else variance, rtol=3e-6)
    for kept in cache.manifest.members:
        assert (kept.output, kept.units, kept.variance) == (output, UNITS if standardized else None, variance)
    assert (cache.manifest.task, cache.manifest.dtype, cache.manifest.classes) == ("regression", "float32", ())


def test_a_spread_of_a_twentieth_around_454_survives(tmp_path: Path) -> None:
    """In float16 28 % of this variance would be left."""
    folder = make_folder(tmp_path / "t", rows={"validation": 12})
    offsets = np.random.default_rng(0).normal(scale=0.05, size=12)
    for seed, offset in enumerate(offsets):
        state = member_state(0) | {"mean.bias": torch.tensor([454 + offset], dtype=torch.float32)}
        save_file(state, folder / f"teachers/member-{seed}.safetensors")
    cache_logits(settings(folder))
    found = Cache(folder / "cache").open("validation").read(range(12))[..., 0].astype(np.float64)
    assert_allclose(found.var(axis=1), offsets.var(), rtol=1e-3)
    assert_allclose(found.var(axis=1, dtype=np.float64).mean(), offsets.var(), rtol=3e-4)


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    folder = make_folder(tmp_path / "t", rows={"train": 24, "validation": 20}, units=UNITS)
    cache_logits(settings(folder, {**STANDARDIZED, **returning("mean", "column", 16.0)}))
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teachers.standardized": None}, ["standardized (454.0, 17.0)", "now it is None"]),
        ({"teachers.standardized": {"mean": 454, "std": 18}}, ["standardized (454.0, 17.0)", "(454.0, 18.0)"]),
        ({"teachers.variance": 17}, ["variance 16.0", "now it is 17.0"]),
        (returning("mean-logvar", "joined"), ["output mean", "now it is mean-logvar"]),
    ],
)
def test_a_cache_is_of_the_members_as_they_were_said_to_be(
    cached: Path, change: dict[str, Any], said: list[str]
) -> None:
    before = contents(cached)
    now = {**STANDARDIZED, **returning("mean", "column", 16.0), **change}
    for command in (cache_logits, train):
        with refused(str(cached / "cache"), *said):
            command(settings(cached, now))
    assert contents(cached) == before


def test_a_cache_is_for_one_task(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "t", rows={"train": 9})
    np.savez(folder / "data/train.npz", x=load_data(folder, "train")[0])
    cache_logits(settings(folder))
    of_classes = {"task": "classification", "teachers.output": "logits", "cache.dtype": "float32"}
    with refused(str(folder / "cache"), "task = 'regression'", "'classification'"):
        cache_logits(settings(folder, of_classes))


def test_a_member_that_changed_its_mind_is_found_out(cached: Path) -> None:
    now = {**STANDARDIZED, **returning("mean", "column", 16.0)}
    for offset, apart in ((1e-3, None), (0.1, "0.425"), (-0.1, "0.425")):  # 17 times that, in deviations of 4
        now["teachers.model-kwargs"]["offset"] = offset
        if apart is None:
            cache_logits(settings(cached, now))
            continue
        with refused("Member member-0 answers row 0 of train otherwise", "in its own standard deviations", apart):
            cache_logits(settings(cached, now))


def test_what_was_said_of_units_is_checked_against_targets(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "standardized", rows={"validation": 30}, units=UNITS)
    with refused("Member member-0 answers", "the targets are 4", "in the target's unit"):
        cache_logits(settings(folder))
    cache_logits(settings(folder, STANDARDIZED))  # what the error asks for, at once
    folder = make_folder(tmp_path / "plain", rows={"validation": 30})
    with refused("Member member-0 answers", f"standardized by {UNITS}"):
        cache_logits(settings(folder, STANDARDIZED))
    folder = make_folder(tmp_path / "unlabeled", rows={"validation": 30, "ood/far": 30}, units=UNITS)
    np.savez(folder / "data/validation.npz", x=load_data(folder, "validation")[0])
    cache_logits(settings(folder))  # nothing to compare with; labels of an OOD set mean nothing


# --- nothing is lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("negative", "the variance -1 at row 0 of train"),
        ("infinite", "at row 0 of train: not finite"),
        ("wide", "returns (8, 3) for 8 rows"),
        ("failing", "fails on train on an input of shape (8, 3)"),
    ],
)
def test_a_broken_member_costs_no_cache(tmp_path: Path, form: str, said: str) -> None:
    folder = make_folder(tmp_path / "t", rows={"train": 9})
    cache_logits(settings(folder, returning("mean-variance", "joined")))
    before = contents(folder / "cache")
    for overwrite in (False, True):
        with refused("Member member-0", said):
            cache_logits(settings(folder, returning("mean-variance", form)), overwrite=overwrite)
        assert contents(folder / "cache") == before


def test_a_variance_at_fault_in_the_middle_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "t", rows={"validation": 12})
    x, y = load_data(folder, "validation")
    x[9] = [2.0, 0.0, 0.0]
    x[:9, 0] = x[10:, 0] = 0
    save_data(folder, "validation", 12, x=x, y=y)
    state = member_state(1)
    state["log_variance.weight"], state["log_variance.bias"] = torch.tensor([[-60.0, 0, 0]]), torch.zeros(1)
    save_file(state, folder / "teachers/member-1.safetensors")
    with refused("Member member-1", "the variance 0", "row 9 of validation"):  # exp(-120), in float32
        cache_logits(settings(folder, returning("mean-variance", "pair")))
    with refused("Member member-1", "log-variance of -120", "row 9 of validation"):
        cache_logits(settings(folder))


def test_targets_are_one_finite_number_a_row(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "t", rows={"validation": 12})
    for y, said in [
        (np.zeros((12, 1, 1), np.float32), "y has shape (12, 1, 1) for 12 rows of x. Give one number a row."),
        (np.zeros((12, 2)), "says one number a row, and the data has 2 numbers a row (target 0, target 1)"),
        (np.zeros((2, 12)), "y has shape (2, 12) for 12 rows of x"),
        (np.zeros(11), "y has shape (11,) for 12 rows"),
        (np.array(["454"] * 12), "y is <U3. Targets of regression are numbers"),
        (np.where(np.arange(12) == 5, np.nan, 454.0), "y is not finite: nan at row 5"),
        (np.where(np.arange(12) == 5, 1e39, 454.0), "y is not finite: inf at row 5"),
        (np.zeros(12, complex), "y is complex128"),
    ]:
        save_data(folder, "validation", 12, y=y)
        with refused(said):
            cache_logits(settings(folder))
        assert not (folder / "cache").exists()


def test_a_dataset_has_a_target_for_every_row_or_for_none(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "t", rows={"validation": 24})
    (folder / "mine.py").write_text(
        "import numpy as np\n"
        "class Rows(list):\n"
        "    pass\n"
        "def some():\n"
        "    return Rows((np.full(3, r, 'f4'), None if r in (5, 7) else float(r)) for r in range(24))\n"
        "def none():\n"
        "    return Rows(np.full(3, r, 'f4') for r in range(24))\n"
    )
    with refused("mine.py:some: row 5 has no y, but row 0 has", "data.transfer"):
        cache_logits(settings(folder, {"data.validation": "mine.py:some"}))
    assert not (folder / "cache/manifest.json").exists()
    cache_logits(settings(folder, {"data.validation": "mine.py:none"}))


def test_numbers_are_no_classes(tmp_path: Path) -> None:
    folder = tiny.make_folder(tmp_path / "t", rows={"train": 12})
    tiny.save_data(folder, "train", 12, y=np.linspace(0, 2, 12))
    with refused("data.train", "y is float64. Classes are whole numbers from 0"):
        cache_logits(settings(folder))


def test_a_classifiers_weights_predict_no_numbers(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "t", rows={"train": 9})
    (folder / "model.py").write_text("from torch import nn\ndef Member():\n    return nn.Linear(3, 10)\n")
    for file in (folder / "teachers").iterdir():
        seed = int(file.stem[-1])
        weights = torch.randn(11, 10, generator=torch.Generator().manual_seed(seed))
        save_file({"weight": weights[:3].T.contiguous(), "bias": weights[3].contiguous()}, file)
    with refused("Member member-0 says 5 numbers a row, and the data has one number a row"):
        cache_logits(settings(folder))
