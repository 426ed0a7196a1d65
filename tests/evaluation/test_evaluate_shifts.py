"""`evaluate --shifts`: every severity of every shift, for members, ensemble and student alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_regression
import torch
from evaluate_helpers import assert_figures, figures, kept_document, student_of
from numpy.testing import assert_allclose
from scipy.special import log_softmax
from tiny import refused, settings

from ensemble_distill.data import open_source
from ensemble_distill.data.shifts import SEVERITIES, Shifted, levels, shift_names
from ensemble_distill.settings import Settings, load_settings
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.evaluate import evaluate, evaluate_together
from ensemble_distill.workflows.train import train

MODELS = ["ensemble", "member", "student", "best-2", "best-3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of four members and a run, `hydra-s0`. Do not write to it."""
    folder = tiny.make_folder(tmp_path_factory.mktemp("shifts") / "tiny", 4)
    cache_logits(settings(folder))
    train(settings(folder))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(made, tmp_path / "tiny"))


@pytest.mark.thorough
@torch.no_grad()
def test_figures_are_those_of_the_distorted_rows(folder: Path) -> None:
    document = evaluate(settings(folder), shifts=True).to_json()
    assert set(document["shifts"]) == set(shift_names())
    assert {"rotation", "translation", "noise", "blur", "contrast"} <= set(document["shifts"])
    entry = settings(folder).data.test
    assert entry is not None
    source = open_source(entry, "classification")
    changed = 0
    for name, severities in document["shifts"].items():
        assert list(severities) == [str(severity) for severity in SEVERITIES]
        assert document["shift_levels"][name] == list(levels(name))
        for severity, found in severities.items():
            assert list(found) == MODELS
            shifted = Shifted(source, name, int(severity))
            pixels = np.stack([shifted.item(row).x for row in range(10)]).transpose(0, 3, 1, 2)
            x = torch.from_numpy((pixels.astype(np.float32) / 255 - 0.5) / 0.5)
            members = log_softmax(np.stack([tiny.linear(m)(x).double().numpy() for m in range(4)], axis=1), axis=-1)
            assert source.labels is not None
            wanted = figures(members, source.labels)
            assert_figures(found["ensemble"], wanted, rtol=1e-4, atol=1e-6)
            heads = student_of(folder / "runs/hydra-s0", x)
            assert_figures(found["student"], figures(heads, source.labels), rtol=1e-4, atol=1e-6)
            some = [int(member[-1]) for member in document["subensembles"]["best-2"]]
            assert_figures(found["best-2"], figures(members[:, some], source.labels), rtol=1e-4, atol=1e-6)
            own = [figures(members[:, [m]], source.labels)["nll"] for m in range(4)]
            assert_allclose(found["member"]["nll"], np.mean(own), rtol=1e-4)
            changed += abs(wanted["nll"] - document["models"]["ensemble"]["nll"]) > 0.01
    assert changed > 15, "the rows are distorted"


@pytest.mark.thorough
def test_they_are_kept_and_an_evaluation_without_them_leaves_them(folder: Path) -> None:
    document = evaluate(settings(folder), shifts=True).to_json()
    kept = folder / "runs/hydra-s0/evaluations"
    assert kept_document(kept / "test.json") == document
    apart = kept_document(kept / "shifts/test.json")
    assert apart == {key: document[key] for key in apart}
    assert list(apart) == ["schema", "task", "run", "split", "rows", "shifts", "shift_levels"]
    later = evaluate(settings(folder)).to_json()
    assert later["shifts"] is later["shift_levels"] is None
    assert kept_document(kept / "shifts/test.json") == apart


@pytest.mark.thorough
def test_several_runs_share_them(folder: Path) -> None:
    train(settings(folder, {"output.name": "other", "train.seed": 1}))
    both = evaluate_together(settings(folder), ["hydra-s0", "other"], shifts=True).to_json()["runs"]
    assert len(both[0]["shifts"]) == 5
    for name, severities in both[0]["shifts"].items():
        assert len(severities) == 5
        for severity, found in severities.items():
            beside = both[1]["shifts"][name][severity]
            assert found["ensemble"] == beside["ensemble"]
            assert found["student"] != beside["student"]


def test_without_labels_the_uncertainties_are_left(folder: Path) -> None:
    np.savez(folder / "data/plain.npz", x=tiny.examples(10, 0)[0])
    unlabeled = settings(folder, {"data.test": "data/plain.npz", "output.cache": "none"})
    document = evaluate(unlabeled, shifts=True).to_json()
    found = document["shifts"]["rotation"]["5"]["student"]
    assert found["accuracy"] is found["nll"] is None
    assert found["total_uncertainty"] > 0


def test_the_teachers_are_needed(folder: Path) -> None:
    shutil.rmtree(folder / "teachers")
    assert evaluate(settings(folder)).models["ensemble"]["nll"] is not None, "the cache is enough"
    with refused("--shifts asks the members about distorted rows, and there is no ", "or leave --shifts out."):
        evaluate(settings(folder), shifts=True)


# --- numbers ----------------------------------------------------------------------------------------------------


def regression(folder: Path) -> Settings:
    return load_settings(folder / "edistill.toml")


def test_features_have_the_shifts_that_fit_them(tmp_path: Path) -> None:
    folder = tiny_regression.make_folder(tmp_path / "numbers")
    cache_logits(regression(folder))
    train(regression(folder))
    document = evaluate(regression(folder), shifts=True).to_json()
    assert set(document["shifts"]) == {"noise"}
    assert document["shift_levels"]["noise"] == list(levels("noise", "features"))
    entry = regression(folder).data.test
    assert entry is not None
    source = open_source(entry, "regression")
    y = np.asarray(source.labels, np.float64)
    for severity, found in document["shifts"]["noise"].items():
        shifted = Shifted(source, "noise", int(severity))
        mean, _ = tiny_regression.ensemble(np.stack([shifted.item(row).x for row in range(10)]))
        assert_allclose(found["ensemble"]["rmse"], np.sqrt(((y - mean.mean(1)) ** 2).mean()), rtol=1e-4)
        assert_allclose(found["ensemble"]["model_uncertainty"], mean.var(1).mean(), rtol=1e-3)
