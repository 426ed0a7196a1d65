"""`evaluate`: its figures against NumPy's, where they come from, what is kept, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import one_head
import pytest
from evaluate_helpers import CACHED, assert_figures, ensemble_of, figures, kept_document, pixels_of, student_of
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score
from tiny import unseal

from ensemble_distill.errors import EdistillError
from ensemble_distill.settings import Settings
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.train import train

SettingsOf = Callable[..., Settings]


# --- figures ----------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_figures_are_those_of_the_members_and_the_student(digits: Path, settings_of: SettingsOf) -> None:
    document = evaluate(settings_of(digits)).to_json()
    x, y = pixels_of(digits / "data/test.npz"), np.load(digits / "data/test.npz")["y"]
    members, heads = ensemble_of(digits, x), student_of(digits / "runs/hydra-s0", x)
    assert_figures(document["models"]["ensemble"], figures(members, y))
    assert_figures(document["models"]["student"], figures(heads, y), rtol=1e-6)
    own = [figures(members[:, [m]], y) for m in range(8)]
    mean = {name: float(np.mean([one[name] for one in own])) for name in own[0] if name != "model_uncertainty"}
    assert_figures(document["models"]["member"], mean)
    assert document["models"]["member"]["model_uncertainty"] is None

    kl = entropy(np.exp(members), np.exp(heads), axis=-1).mean()
    p, q = np.exp(members).mean(1), np.exp(heads).mean(1)
    mean_kl = entropy(p, q, axis=-1).mean()
    ensemble, student = figures(members, y), figures(heads, y)
    deviation, theirs = np.exp(members) - p[:, None], np.exp(heads) - q[:, None]
    wanted = {
        "member_kl": kl,
        "mean_kl": mean_kl,
        "agreement": (p.argmax(-1) == q.argmax(-1)).mean(),
        "gap_closed": (mean["nll"] - student["nll"]) / (mean["nll"] - ensemble["nll"]),
        "diversity_explained": 1 - kl / (ensemble["model_uncertainty"] + mean_kl),
        "deviation_correlation": (deviation * theirs).sum() / np.sqrt((deviation**2).sum() * (theirs**2).sum()),
        "model_uncertainty_ratio": student["model_uncertainty"] / ensemble["model_uncertainty"],
    }
    assert_figures(document["fidelity"], wanted, rtol=5e-3, atol=1e-3)
    controls = document["fidelity_controls"]
    assert controls["collapsed"]["diversity_explained"] == 0
    assert_allclose(controls["offsets"]["model_uncertainty_ratio"], 1, rtol=1e-5)
    assert controls["offsets"]["diversity_explained"] < 0 < document["fidelity"]["diversity_explained"]
    assert 0 < controls["halves"]["model_uncertainty_l1"] < 1


@pytest.mark.thorough
def test_the_ensemble_pools_as_the_run_was_trained(digits: Path, settings_of: SettingsOf) -> None:
    weights = [float(m + 1) for m in range(8)]
    settings = settings_of(
        digits,
        {"teachers.average": "logits", "teachers.weights": weights, "train.epochs": 1, "output.name": "weighted"},
    )
    run = train(settings).folder
    x, y = pixels_of(digits / "data/test.npz"), np.load(digits / "data/test.npz")["y"]
    plain = settings_of(digits)  # what the run recorded counts
    document = evaluate(plain, "weighted").to_json()
    assert_figures(document["models"]["ensemble"], figures(ensemble_of(digits, x), y, np.array(weights), logits=True))
    student = figures(student_of(run, x), y, np.array(weights), logits=True)
    assert_figures(document["models"]["student"], student, rtol=1e-5, atol=1e-7)


def test_kept_rows_reduce_to_the_figures(digits: Path, settings_of: SettingsOf) -> None:
    document = evaluate(settings_of(digits)).to_json()
    kept = digits / "runs/hydra-s0/evaluations"
    assert kept_document(kept / "test.json") == document
    with np.load(kept / "test.npz") as rows, np.load(kept / "ood/quarter-turned.npz") as away:
        for model, found in document["models"].items():
            for name, value in found.items():
                source = f"{model}_{'correct' if name == 'accuracy' else name}"
                if name != "ece" and value is not None:
                    assert rows[source].shape == ((400, 8) if model == "member" else (400,))
                    assert_allclose(rows[source].mean(dtype=np.float64), value, rtol=1e-5)
            assert (f"{model}_model_uncertainty" in rows) == (model != "member")
        assert_allclose(
            (rows["ensemble_prediction"] == rows["student_prediction"]).mean(), document["fidelity"]["agreement"]
        )
        for name in ("member_kl", "mean_kl"):
            assert_allclose(rows[f"both_{name}"].mean(dtype=np.float64), document["fidelity"][name], rtol=1e-5)
        ratio = np.abs(rows["student_model_uncertainty"] - rows["ensemble_model_uncertainty"]).sum()
        ratio /= rows["ensemble_model_uncertainty"].sum()
        assert_allclose(ratio, document["fidelity"]["model_uncertainty_l1"], rtol=1e-4)
        truth = np.repeat([0, 1], 400)
        for model in ("ensemble", "student", "best-2", "best-3"):
            for name, value in document["ood"]["quarter-turned"][model].items():
                scores = np.r_[rows[f"{model}_{name}"], away[f"{model}_{name}"]]
                assert_allclose(roc_auc_score(truth, scores), value, rtol=1e-4)
        assert "ensemble_nll" not in away, "labels from elsewhere mean nothing here"


@pytest.mark.thorough
def test_costs_are_sane(digits: Path, settings_of: SettingsOf) -> None:
    cost = evaluate(settings_of(digits)).cost
    macs = 64 * 64 + 64 * 64 + 64 * 10
    for model, members in {"member": 1, "best-2": 2, "best-3": 3, "ensemble": 8}.items():
        assert cost[model]["macs"] == members * macs
        assert cost[model]["parameters"] == members * (macs + 64 + 64 + 10)
    student = 2 * (64 * 64 + 64 * 64) + 8 * 128 * 10  # two bodies, and heads on both
    assert cost["student"]["macs"] == student
    assert cost["student"]["parameters"] == student + 2 * (64 + 64) + 8 * 10
    assert all(0 < figures["latency_ms"] < 1000 for figures in cost.values())
    assert cost["member"]["latency_ms"] < cost["ensemble"]["latency_ms"]


def test_a_student_of_one_head_leaves_null_what_needs_several(digits: Path, settings_of: SettingsOf) -> None:
    settings = settings_of(digits, {"train.method": one_head.SPEC, "train.epochs": 1, "method": {}})
    document = evaluate(settings, str(train(settings).folder)).to_json()
    assert document["models"]["student"]["model_uncertainty"] is None
    assert document["ood"]["quarter-turned"]["student"]["model_uncertainty"] is None
    fidelity = document["fidelity"]
    known = {name for name, value in fidelity.items() if value is not None}
    assert known == {"mean_kl", "agreement", "gap_closed"}
    controls = document["fidelity_controls"]
    assert {name for name, found in controls.items() if any(v is not None for v in found.values())} == {"halves"}


# --- where the members' outputs come from -----------------------------------------------------------------------


def numbers(value: Any, path: str = "") -> dict[str, float | None]:
    if isinstance(value, dict):
        return {
            key: number for name, inner in value.items() for key, number in numbers(inner, f"{path}/{name}").items()
        }
    return {path: value}


@pytest.mark.thorough
def test_straight_from_the_teachers_is_the_same_as_from_the_cache(digits: Path, settings_of: SettingsOf) -> None:
    cached = evaluate(settings_of(digits)).to_json()
    shutil.rmtree(digits / "cache")
    straight = evaluate(settings_of(digits)).to_json()
    for part in ("models", "fidelity", "ood"):
        a, b = numbers(cached[part]), numbers(straight[part])
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert (value is None) == (b[name] is None), name
            if value is not None:
                assert_allclose(value, b[name], err_msg=name, rtol=5e-3, atol=1e-3)


@pytest.mark.thorough
def test_without_teachers_the_cache_is_enough(digits: Path, settings_of: SettingsOf) -> None:
    before = evaluate(settings_of(digits)).to_json()
    shutil.rmtree(digits / "teachers")
    after = evaluate(settings_of(digits)).to_json()
    assert {model for model, figures in after["cost"].items() if figures is None} == {*before["cost"]} - {"student"}
    assert after["cost"]["student"]["macs"] == before["cost"]["student"]["macs"]
    for document in (before, after):  # whom to serve instead follows from the costs
        worth = {model: of and {**of, "cost": None} for model, of in document["worth"].items()}
        document |= {"cost": None, "worth": worth, "instead": None}
    assert after == before


@pytest.mark.thorough
def test_training_rows_are_seen_as_they_are(digits: Path, settings_of: SettingsOf) -> None:
    document = evaluate(settings_of(digits), split="train").to_json()  # the cache holds them mixed only
    x, y = pixels_of(digits / "data/train.npz"), np.load(digits / "data/train.npz")["y"]
    assert document["rows"] == 1000
    assert_figures(document["models"]["ensemble"], figures(ensemble_of(digits, x), y), rtol=1e-4, atol=1e-6)


# --- which rows -------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_another_split_is_kept_beside(digits: Path, settings_of: SettingsOf) -> None:
    settings = settings_of(digits)
    evaluate(settings)
    document = evaluate(settings, split="calibration").to_json()
    assert (document["split"], document["rows"]) == ("calibration", 197)
    kept = digits / "runs/hydra-s0/evaluations"
    assert {path.name for path in kept.glob("[!.]*.*")} == {
        "test.json",
        "test.npz",
        "calibration.json",
        "calibration.npz",
    }


def test_without_test_rows_the_validation_rows_are_taken(digits: Path, settings_of: SettingsOf) -> None:
    text = (digits / "edistill.toml").read_text()
    (digits / "edistill.toml").write_text(re.sub(r"(?m)^(test|ood) = .*$", "", text))
    document = evaluate(settings_of(digits)).to_json()
    assert (document["split"], document["rows"], document["ood"]) == ("validation", 200, {})


@pytest.mark.thorough
def test_rows_without_labels_have_no_accuracy(digits: Path, settings_of: SettingsOf) -> None:
    np.savez(digits / "data/plain.npz", x=np.load(digits / "data/test.npz")["x"])
    settings = settings_of(digits)
    labeled = evaluate(settings).to_json()
    document = evaluate(settings_of(digits, {"data.test": "data/plain.npz", "output.cache": "none"})).to_json()
    for model, found in document["models"].items():
        for name in ("accuracy", "nll", "brier", "ece"):
            assert found[name] is None
        assert_allclose(found["total_uncertainty"], labeled["models"][model]["total_uncertainty"], **CACHED)
    assert document["fidelity"]["gap_closed"] is None
    assert document["fidelity"]["agreement"] is not None


# --- which run --------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_run_by_name_by_path_or_the_latest(
    digits: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(digits, {"train.epochs": 1, "output.name": "data"})
    train(settings)
    monkeypatch.chdir(digits)
    assert evaluate(settings).run == "data", "the latest"
    assert evaluate(settings, "hydra-s0").run == "hydra-s0"
    assert evaluate(settings, "runs/hydra-s0/").run == "hydra-s0"
    assert evaluate(settings, "data").run == "data", "and not the folder ./data"


def test_without_a_run_it_says_so(digits: Path, settings_of: SettingsOf) -> None:
    with pytest.raises(EdistillError, match=r"There is no run other\. .+ \(in .+runs: hydra-s0\)"):
        evaluate(settings_of(digits), "other")
    with pytest.raises(EdistillError, match=r"teachers holds no run \(student\.safetensors is missing\)"):
        evaluate(settings_of(digits), str(digits / "teachers"))
    shutil.rmtree(digits / "runs")
    with pytest.raises(EdistillError, match=r"runs holds no finished run\. Run edistill train first\."):
        evaluate(settings_of(digits))


# --- refusals ---------------------------------------------------------------------------------------------------


def refused(digits: Path, settings: Settings, match: str, **more: Any) -> None:
    with pytest.raises(EdistillError, match=match):
        evaluate(settings, **more)
    assert not (digits / "runs/hydra-s0/evaluations").exists(), "nothing is kept"


def test_an_unknown_split(digits: Path, settings_of: SettingsOf) -> None:
    refused(digits, settings_of(digits), r"data\.tset is not set \(there are: train, validation, ", split="tset")


def test_changed_test_data(digits: Path, settings_of: SettingsOf) -> None:
    with np.load(digits / "data/test.npz") as there:
        x, y = there["x"].copy(), there["y"]
    x[0, 0, 0] ^= 1
    np.savez(digits / "data/test.npz", x=x, y=y)
    refused(digits, settings_of(digits), r"holds outputs for test data \w+… \(400 rows\), but data\.test is \w+… \(400")


@pytest.mark.parametrize("cached", [True, False])
def test_a_changed_teacher(digits: Path, settings_of: SettingsOf, cached: bool) -> None:
    path = digits / "teachers/member-03.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path)
    if not cached:
        shutil.rmtree(digits / "cache")
    told = (
        r"hydra-s0 was trained from member member-03 \(\w{12}…\), which is not among the teachers in .+\. Put it back"
    )
    refused(digits, settings_of(digits), told)


def test_a_teacher_seen_through_another_preprocessing(digits: Path, settings_of: SettingsOf) -> None:
    settings = settings_of(digits, {"teachers.preprocessing.mean": [0.25], "output.cache": "none"})
    told = r"trained from member member-00 with preprocessing .+0\.5.+, but now it is .+0\.25.+ Set teachers\.preproce"
    refused(digits, settings, told)


@pytest.mark.parametrize("split", ["test", "ood.elsewhere"])
@pytest.mark.parametrize(
    ("x", "told"),
    [
        (np.zeros((3, 64), np.float32), r"holds features, and .+hydra-s0 takes pixels of \(1, 8, 8\)"),
        (np.zeros((3, 8, 8, 2), np.uint8), r"gives inputs of \(2, 8, 8\), and .+hydra-s0 takes pixels of \(1, 8, 8\)"),
    ],
)
def test_rows_that_the_student_does_not_take(
    digits: Path, settings_of: SettingsOf, split: str, x: NDArray[Any], told: str
) -> None:
    np.savez(digits / "data/strange.npz", x=x)
    refused(digits, settings_of(digits, {f"data.{split}": "data/strange.npz"}), rf"data\.{split} {told}")


def test_labels_that_mean_other_classes(digits: Path, settings_of: SettingsOf) -> None:
    with np.load(digits / "data/test.npz") as there:
        x, y = there["x"], there["y"]
    settings = settings_of(digits, {"data.test": "data/other.npz"})
    np.savez(digits / "data/other.npz", x=x, y=y + 1)
    refused(digits, settings, r"data\.test has label 10, but .+hydra-s0 has classes 0 to 9\.")
    np.savez(digits / "data/other.npz", x=x, y=y, classes=np.array(list("abcdefghijk")))
    refused(
        digits, settings, r"data\.test has the classes a, b, c, d, … \(11\), and .+hydra-s0 has 0, 1, 2, 3, … \(10\)"
    )
    config = unseal(digits / "runs/hydra-s0")
    record = json.loads(config.read_text())
    config.write_text(json.dumps({**record, "classes": list("abcdefghij")}))
    np.savez(digits / "data/other.npz", x=x, y=y, classes=np.array(list("zacdefghij")))
    refused(digits, settings, r"data\.test has the class 'z', .+ the 10 of the ensemble \(a, b, c, d, …\)")


def test_a_damaged_record(digits: Path, settings_of: SettingsOf) -> None:
    record = digits / "cache/records/test/member-00.v0.npy"
    record.write_bytes(record.read_bytes()[:-1])
    refused(digits, settings_of(digits), r"member-00\.v0\.npy is damaged: .+ run edistill cache-logits")
