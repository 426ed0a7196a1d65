"""Several runs of one ensemble side by side, and the best sub-ensembles beside them."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import one_head
import pytest
import tiny
import torch
from evaluate_helpers import assert_figures, figures, kept_document, pixels_of, untimed
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax
from tiny import refused, settings, unseal

from ensemble_distill.facts import Member
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.teachers.tried import TriedFirst
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.evaluate import evaluate, evaluate_together
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.train import train

MEMBERS = 5
FLOAT16 = {"rtol": 5e-3, "atol": 1e-3}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of five members and two runs, first (hydra) and second (one head). Do not write to it."""
    folder = tiny.make_folder(tmp_path_factory.mktemp("together") / "tiny", MEMBERS)
    cache_logits(settings(folder))
    train(settings(folder, {"output.name": "first"}))
    train(settings(folder, {"output.name": "second", "train.method": one_head.SPEC}))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(made, tmp_path / "tiny"))


@torch.no_grad()
def members_say(folder: Path, split: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Log-probabilities (N, M, K) of the members by their own modules, and the labels."""
    x = pixels_of(folder / f"data/{split}.npz")
    logits = np.stack([tiny.linear(seed)(x).double().numpy() for seed in range(MEMBERS)], axis=1)
    return log_softmax(logits, axis=-1), np.load(folder / f"data/{split}.npz")["y"]


def best(folder: Path, size: int, weights: NDArray[np.float64] | None = None, logits: bool = False) -> tuple[int, ...]:
    """The members with the least NLL on the validation rows."""
    log_p, y = members_say(folder, "validation")

    def nll(some: Sequence[int]) -> float:
        own = None if weights is None else weights[list(some)]
        return figures(log_p[:, list(some)], y, own, logits)["nll"]

    return min(itertools.combinations(range(MEMBERS), size), key=nll)


# --- sub-ensembles ----------------------------------------------------------------------------------------------


def test_sub_ensembles_are_chosen_on_validation_rows_and_told_of_on_test_rows(folder: Path) -> None:
    document = evaluate(settings(folder), "first").to_json()
    log_p, y = members_say(folder, "test")
    whole = figures(log_p, y)
    for name, size in (("best-2", 2), ("best-3", 3)):
        some = best(folder, size)
        assert document["subensembles"][name] == [f"member-{m}" for m in some]
        wanted = figures(log_p[:, list(some)], y)
        assert_figures(document["models"][name], wanted, **FLOAT16)
        near = document["subensemble_fidelity"][name]
        member = document["models"]["member"]["nll"]
        assert_allclose(near["gap_closed"], (member - wanted["nll"]) / (member - whole["nll"]), rtol=0.05)
        assert_allclose(
            near["model_uncertainty_ratio"], wanted["model_uncertainty"] / whole["model_uncertainty"], rtol=0.01
        )
        assert near["member_kl"] is near["diversity_explained"] is None
        assert list(near) == list(document["fidelity"])
        assert set(document["ood"]["noise"][name]) == {"total_uncertainty", "model_uncertainty"}
        assert document["cost"][name]["macs"] == size * document["cost"]["member"]["macs"]
        with np.load(folder / "runs/first/evaluations/test.npz") as rows:
            assert_allclose(rows[f"{name}_nll"].mean(), wanted["nll"], **FLOAT16)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_they_pool_as_the_ensemble_does(folder: Path, average: str) -> None:
    weights = np.array([1.0, 4.0, 2.0, 3.0, 1.0])
    changed = {"teachers.weights": weights.tolist(), "teachers.average": average, "output.name": "weighted"}
    train(settings(folder, changed))
    document = evaluate(settings(folder), "weighted").to_json()
    log_p, y = members_say(folder, "test")
    for name, size in (("best-2", 2), ("best-3", 3)):
        some = list(best(folder, size, weights, average == "logits"))
        assert document["subensembles"][name] == [f"member-{m}" for m in some]
        wanted = figures(log_p[:, some], y, weights[some], average == "logits")
        assert_figures(document["models"][name], wanted, **FLOAT16)


def test_a_member_of_weight_0_is_no_part_of_the_mean_member_or_of_the_cost(folder: Path) -> None:
    changed = {"teachers.weights": [1.0, 0.0, 2.0, 3.0, 0.0], "output.name": "weighted"}
    train(settings(folder, changed))
    document = evaluate(settings(folder), "weighted").to_json()
    log_p, y = members_say(folder, "test")
    each = [figures(log_p[:, [m]], y) for m in (0, 2, 3)]
    member, whole, own = (document["models"][name]["nll"] for name in ("member", "ensemble", "student"))
    for name in ("nll", "accuracy", "brier", "total_uncertainty"):
        assert_allclose(document["models"]["member"][name], np.mean([one[name] for one in each]), **FLOAT16)
    assert_allclose(document["ladder"]["nll"][0], member, rtol=1e-9)
    assert_allclose(document["fidelity"]["gap_closed"], (member - own) / (member - whole))
    assert document["cost"]["ensemble"]["parameters"] == 3 * document["cost"]["member"]["parameters"]
    alone = evaluate(settings(folder), "first").to_json()["cost"]
    assert document["cost"]["member"]["parameters"] == alone["member"]["parameters"]


def test_without_the_cache_the_members_are_asked(folder: Path) -> None:
    cached = evaluate(settings(folder), "first").to_json()
    straight = evaluate(settings(folder, {"output.cache": "none"}), "first").to_json()
    assert straight["subensembles"] == cached["subensembles"]
    assert_allclose(straight["models"]["best-2"]["nll"], cached["models"]["best-2"]["nll"], **FLOAT16)


def lacking(folder: Path, run: str = "first", split: str | None = None) -> Silent:
    """Evaluate, and find that there are no sub-ensembles and everything else."""
    heard = Silent()
    document = evaluate(settings(folder), run, split=split, progress=heard).to_json()
    for part in ("models", "subensembles", "subensemble_fidelity", "cost"):
        assert document[part]["best-2"] is document[part]["best-3"] is None
    assert document["models"]["student"]["nll"] is not None
    assert document["fidelity"]["mean_kl"] is not None
    return heard


def test_without_validation_rows_there_are_none(folder: Path) -> None:
    toml = folder / "edistill.toml"
    toml.write_text(toml.read_text().replace('validation = "data/validation.npz"\n', ""))
    (said,) = lacking(folder).notes
    assert said == "No sub-ensembles: data.validation, on which they would be chosen, is not set."
    kept = folder / "runs/first/evaluations/test.json"
    found, models = inspect(kept), json.loads(kept.read_text())["models"]
    assert [name for name in models if models[name] is None] == ["best-2", "best-3"]
    assert found["columns"] == ["", "ensemble", "member", "student"], "of those that there are"
    (nll,) = (row for row in found["rows"] if row[0] == "nll")
    assert [float(value) for value in nll[1:]] == pytest.approx(
        [models[name]["nll"] for name in found["columns"][1:]], rel=1e-3
    )


def test_without_validation_labels_there_are_none(folder: Path) -> None:
    np.savez(folder / "data/validation.npz", x=tiny.examples(12, 0)[0])
    (said,) = lacking(folder).notes
    assert said == "No sub-ensembles: data.validation, on which they would be chosen, has no labels."


def test_validation_rows_that_are_not_the_cached_ones_are_told_of(folder: Path) -> None:
    tiny.save_data(folder, "validation", 12, x=tiny.examples(12, 99)[0])
    (said,) = lacking(folder).warnings
    assert said.startswith("No sub-ensembles, since they are chosen on validation rows. ")
    assert "holds outputs for validation data" in said


def test_an_ensemble_of_two_has_none(tmp_path: Path) -> None:
    folder = tiny.make_folder(tmp_path / "two", 2)
    cache_logits(settings(folder))
    train(settings(folder, {"output.name": "first"}))
    (said,) = lacking(folder).notes
    assert said == "No sub-ensembles: the ensemble has 2 members, and a part of it fewer."


def test_an_ensemble_of_three_has_one_of_two(tmp_path: Path) -> None:
    folder = tiny.make_folder(tmp_path / "three", 3)
    cache_logits(settings(folder))
    train(settings(folder))
    document = evaluate(settings(folder)).to_json()
    assert len(document["subensembles"]["best-2"]) == 2
    assert document["subensembles"]["best-3"] is document["models"]["best-3"] is None


def test_figures_on_the_rows_they_were_chosen_on_are_called_too_good(folder: Path) -> None:
    heard = Silent()
    document = evaluate(settings(folder), "first", split="validation", progress=heard).to_json()
    assert document["models"]["best-2"] is not None
    assert heard.notes == ["The sub-ensembles were chosen on these same rows, so their figures are optimistic."]


# --- several runs -----------------------------------------------------------------------------------------------


def test_each_run_has_the_document_it_has_alone(folder: Path) -> None:
    alone = [evaluate(settings(folder), name).to_json() for name in ("first", "second")]
    together = evaluate_together(settings(folder), ["second", "first"]).to_json()
    assert list(together) == ["schema", "task", "split", "rows", "runs"]
    assert {key: together[key] for key in list(together)[:4]} == {
        "schema": 1,
        "task": "classification",
        "split": "test",
        "rows": 10,
    }
    assert [run["run"] for run in together["runs"]] == ["second", "first"]
    for document, own in zip(together["runs"], alone[::-1], strict=True):
        assert untimed(document) == untimed(own)
        kept = folder / "runs" / document["run"] / "evaluations"
        assert kept_document(kept / "test.json") == document
        with np.load(kept / "test.npz") as rows:
            assert {key.partition("_")[0] for key in rows} == {*document["models"], "both"}
            heads = document["models"]["student"]["model_uncertainty"]
            assert ("student_model_uncertainty" in rows) == (heads is not None) == (document["run"] == "first")


def test_members_are_asked_once_for_all_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[str] = Counter()
    answers = TriedFirst.answers

    def counted(member: TriedFirst, split: str, rows: Sequence[int], inputs: torch.Tensor | None) -> Any:
        asked[member.member.name] += len(rows)
        return answers(member, split, rows, inputs)

    monkeypatch.setattr(TriedFirst, "answers", counted)
    evaluate_together(settings(folder, {"output.cache": "none"}), ["first", "second"])
    assert asked == {f"member-{m}": 12 + 10 + 7 for m in range(MEMBERS)}, "validation, test and OOD rows"


@pytest.mark.thorough
def test_students_of_other_preprocessing_see_their_own(folder: Path) -> None:
    train(settings(folder, {"output.name": "darker", "student.preprocessing.mean": [0.3]}))
    alone = evaluate(settings(folder), "darker").to_json()
    together = evaluate_together(settings(folder), ["first", "darker"]).to_json()
    assert untimed(together["runs"][1]) == untimed(alone)
    assert alone["models"]["student"] != together["runs"][0]["models"]["student"]


def test_runs_of_one_name_are_told_apart_by_their_folders(folder: Path) -> None:
    shutil.copytree(folder / "runs/first", folder / "more/first")
    paths = [str(folder / "runs/first"), str(folder / "more/first")]
    assert [run["run"] for run in evaluate_together(settings(folder), paths).to_json()["runs"]] == paths


# --- refusals ---------------------------------------------------------------------------------------------------


def edit_config(run: Path, edit: dict[str, Any]) -> None:
    path = unseal(run)
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))


NUMBERS = {
    "task": "regression",
    "classes": [],
    "members": [Member(f"member-{m}", "0" * 64, "mean").to_json() for m in range(5)],
}


def test_a_run_given_twice(folder: Path) -> None:
    with refused("runs/first is given twice. Name each run once."):
        evaluate_together(settings(folder), ["first", "second", str(folder / "runs/first")])


def test_runs_of_other_members(folder: Path) -> None:
    config = json.loads((folder / "runs/second/config.json").read_text())
    members = config["members"]
    for changed, what in (
        (members[:4], "the number of members is 5 for the one and 4 for the other"),
        ([*members[:4], members[3]], "the name of member 4 is member-4 for the one and member-3 for the other"),
        ([{**members[0], "sha256": "0" * 64}, *members[1:]], "the sha256 of member 0 is "),
        ([{**members[0], "output": "probabilities"}, *members[1:]], "the output of member 0 is logits for the one and"),
    ):
        edit_config(folder / "runs/second", {"members": changed})
        with refused("runs/first and ", "runs/second cannot stand in one table: ", what, "Evaluate them apart."):
            evaluate_together(settings(folder), ["first", "second"])
    assert not (folder / "runs/first/evaluations").exists(), "nothing is kept"


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (NUMBERS, "the task is classification for the one and regression for the other"),
        ({"average": "logits"}, "the members' average is probabilities for the one and logits for the other"),
        ({"weights": [1, 2, 3, 4, 5]}, "the members' weights is None for the one and (1.0, 2.0, 3.0, 4.0, 5.0)"),
        ({"classes": ["a", "b", "c"]}, "the members' classes is ('0', '1', '2') for the one and ('a', 'b', 'c')"),
        ({"trained_on": {"train": "f" * 64}}, "for the one and ffffffffffff… for the other"),
    ],
)
def test_runs_of_other_tasks_or_data(folder: Path, edit: dict[str, Any], what: str) -> None:
    edit_config(folder / "runs/second", edit)
    with refused("cannot stand in one table: ", what):
        evaluate_together(settings(folder), ["first", "second"])


def test_a_run_of_another_task_than_the_settings(folder: Path) -> None:
    edit_config(folder / "runs/first", NUMBERS)
    with refused("runs/first is for regression, and the settings say task = 'classification'. Set task back"):
        evaluate(settings(folder), "first")


def test_a_student_that_is_not_finite(folder: Path) -> None:
    path = unseal(folder / "runs/first").with_name("student.safetensors")
    weights = load_file(path)
    name = next(name for name in weights if name.startswith("heads") and name.endswith("bias"))
    weights[name][0, 0] = float("nan")
    save_file(weights, path)
    with refused("Head 0 of the student of ", "runs/first says [nan, ", "at row 0 of test: not finite. Train it again"):
        evaluate(settings(folder), "first")
