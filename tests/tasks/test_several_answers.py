"""What a row of several answers may say, numbers or labels: of data and records that are none, and of tolerances."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from tiny import refused

from ensemble_distill.serving.predictions import formatted
from ensemble_distill.tasks import open_task, task_from_json


@dataclass(frozen=True)
class Labeled:
    labels: Any
    classes: tuple[str, ...] | None = None


@pytest.mark.parametrize(
    "targets", [None, "x", {"a": 1}, [1, 2], [{"name": "heat"}] * 2, [{"name": "heat", "unit": "", "std": True}] * 2]
)
def test_a_record_of_other_targets_is_none(targets: Any) -> None:
    with pytest.raises(ValueError, match=r"targets is|missing|should be"):
        task_from_json({"task": "regression", "classes": [], "targets": targets})


@pytest.mark.parametrize("scale", [1e-22, 1e22])
def test_units_whose_squares_float32_does_not_hold_are_refused(scale: float) -> None:
    y = np.random.default_rng(0).normal(size=(12, 2)) * [1.0, scale]
    with refused("The target flow", f"{scale * y[:, 1].std() / scale:.3g}", "in another unit"):
        open_task("regression").found({"train": Labeled(y.astype(np.float32), ("heat", "flow"))}, {"member-0": 4}, None)


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_a_label_that_is_neither_yes_nor_no_is_told_with_its_row(value: float) -> None:
    y = np.zeros((4, 2), np.float32)
    y[2, 1] = value
    with refused(f"y is [0.0, {value}] at row 12", "drop it"):
        open_task("multi-label").as_labels(y, 4, "y", first_row=10)


def test_a_target_that_is_not_finite_is_told_with_its_column() -> None:
    with refused("y[:, 1] is not finite: nan at row 3"):
        open_task("regression").as_labels(np.array([[0.0, 1.0]] * 3 + [[0.0, np.nan]]), 4, "y")


@pytest.mark.parametrize(
    ("key", "told"), [("classification", 'task = "multi-label"'), ("regression", "(rows, targets)")]
)
def test_labels_of_more_dimensions_are_told_which_task_has_them(key: str, told: str) -> None:
    with refused("(4, 2, 1)" if key == "regression" else "(4, 2)", told):
        open_task(key).as_labels(np.zeros((4, 2, 1) if key == "regression" else (4, 2), np.int64), 4, "y")


def test_an_exported_sum_over_many_labels_may_differ_by_what_each_may() -> None:
    kind, outputs = open_task("multi-label"), {"logits": np.full((2, 500), 2e4, np.float32)}
    assert kind.tolerance("total_uncertainty", outputs) == pytest.approx(500 * 1e-5)
    assert (kind.tolerance("logits", outputs) > np.spacing(outputs["logits"])).all()


@pytest.mark.filterwarnings("error")
def test_sure_members_are_compared_and_predicted_without_overflow() -> None:
    task = task_from_json({"task": "multi-label", "classes": ["dog", "cat"]})
    logits = np.array([[-2e4, 2e4]], np.float32)
    assert task.change(logits, -logits)[0] == 1
    (row,) = task.predictions({"logits": logits})
    assert (row["labels"], row["p dog"], row["p cat"]) == (["cat"], 0, 1)


def test_a_label_of_any_name_is_told_from_several() -> None:
    task = task_from_json({"task": "multi-label", "classes": ["aa", "b;b", "cc"]})
    records = list(task.predictions({"logits": np.array([[1.0, 1, 1], [-1, -1, -1]], np.float32)}))
    told = [json.loads(line)["labels"] for line in formatted(records, "jsonl").splitlines()]
    assert told == [["aa", "b;b", "cc"], []]
    assert [line.split(",")[0] for line in formatted(records, "csv").splitlines()] == ["labels", r"aa;b\;b;cc", ""]


def test_labels_of_a_row_of_a_dataset_are_told_with_the_row() -> None:
    with refused("y of row 20", "2 columns", "3 names"):
        open_task("multi-label").as_labels(np.zeros((1, 2), np.int64), 1, "y", ("dog", "cat", "boat"), 20)
