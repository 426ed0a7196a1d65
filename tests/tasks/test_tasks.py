"""What every task owes the house: this file runs over whatever is discovered."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.tasks import Task, open_task, task_from_json, task_names
from ensemble_distill.tasks.checks.positions import IGNORED
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.tasks.figures import UNCERTAINTIES
from ensemble_distill.tasks.regression import Regression

ROWS = 12


@dataclass(frozen=True)
class Split:
    """As much of a source as a task looks at."""

    labels: Any
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Sample:
    """A task with data and members that fit it.

    Attributes:
        record: what its JSON says; labels: of ROWS rows; raw: what a member returns of them; wrong: labels that no row
            of it has, each with a word of what is told.
    """

    key: str
    record: dict[str, Any]
    labels: np.ndarray[Any, Any]
    raw: torch.Tensor
    output: str
    wrong: tuple[tuple[Any, str], ...]
    names: tuple[str, ...] | None = None

    @property
    def member(self) -> Member:
        return Member("member-0", "0" * 64, self.output)

    @property
    def kind(self) -> type[Task]:
        return open_task(self.key)

    @property
    def task(self) -> Task:
        widths = {
            "member-0": self.kind.answers(self.kind.joined(self.raw, ROWS, self.member), self.member, "test", rows)
        }
        return self.kind.found(
            {"train": Split(self.labels, self.names)}, {name: a.shape[-1] for name, a in widths.items()}, None
        )


rows = list(range(ROWS))
drawn = np.random.default_rng(0)
noise = torch.from_numpy(drawn.normal(size=(ROWS, 6)).astype(np.float32))
SAMPLES = [
    Sample(
        "classification",
        {"task": "classification", "classes": ["a", "b", "c"]},
        np.arange(ROWS) % 3,
        3 * noise[:, :3],
        "logits",
        ((np.full(ROWS, 0.5), "float64"), (np.full(ROWS, -1), "-1"), (np.zeros((ROWS, 2), int), "(12, 2)")),
        ("a", "b", "c"),
    ),
    Sample(
        "regression",
        {"task": "regression", "classes": []},
        drawn.normal(size=ROWS),
        noise[:, :2],
        "mean-logvar",
        ((np.full(ROWS, np.nan), "nan"), (np.full(ROWS, "x"), "<U1"), (np.zeros((ROWS, 2, 2)), "(12, 2, 2)")),
    ),
    Sample(
        "regression",
        {
            "task": "regression",
            "classes": [],
            "targets": [{"name": "heat", "unit": "kW", "std": 1.0}, {"name": "flow", "unit": "", "std": 1.0}],
        },
        np.stack([np.tile([-1.0, 1.0], ROWS // 2), np.repeat([4.0, 6.0], ROWS // 2)], 1),
        noise[:, :4],
        "mean-logvar",
        ((np.full((ROWS, 2), np.inf), "inf"), (np.zeros((ROWS, 0)), "(12, 0)")),
        ("heat [kW]", "flow"),
    ),
    Sample(
        "multi-label",
        {"task": "multi-label", "classes": ["dog", "cat", "boat"]},
        drawn.integers(0, 2, (ROWS, 3)),
        3 * noise[:, :3],
        "logits",
        (
            (np.full((ROWS, 3), 2), "[2, 2, 2]"),
            (np.zeros(ROWS, int), "(12,)"),
            (np.full((ROWS, 3), 0.5), "[0.5, 0.5, 0.5]"),
        ),
        ("dog", "cat", "boat"),
    ),
    Sample(
        "language-modelling",
        {"task": "language-modelling", "classes": ["<eos>", "a", "b"], "positions": 2, "token_unit": None},
        np.where(drawn.random((ROWS, 2)) < 0.2, IGNORED, np.arange(2 * ROWS).reshape(ROWS, 2) % 3),
        3 * torch.from_numpy(drawn.normal(size=(ROWS, 2, 3)).astype(np.float32)),
        "logits",
        ((np.zeros(ROWS, int), "(12,)"), (np.full((ROWS, 2), -1), "-1"), (np.full((ROWS, 2), 0.5), "float64")),
        ("<eos>", "a", "b"),
    ),
]
each = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.key}-{len(sample.record)}")


def test_every_task_is_sampled_here() -> None:
    assert {sample.key for sample in SAMPLES} == set(task_names())


def test_tasks_are_found_and_told_without_torch() -> None:
    code = (
        "import sys, json; from ensemble_distill.tasks import task_from_json; "
        "tasks = [task_from_json(record) for record in json.loads(sys.argv[1])]; "
        "print([t.told for t in tasks], 'torch' in sys.modules)"
    )
    records = json.dumps([sample.record for sample in SAMPLES])
    done = subprocess.run([sys.executable, "-c", code, records], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


@each
def test_data_and_members_make_the_task_and_it_travels(sample: Sample) -> None:
    task = sample.task
    assert task.to_json() == sample.record
    assert task_from_json(json.loads(json.dumps(task.to_json()))) == task
    assert task.key == sample.key
    assert sample.kind.found({"train": Split(sample.labels)}, {"member-0": task.width}, task) == task


@each
def test_records_that_no_task_wrote_are_refused(sample: Sample) -> None:
    for wrong in ({**sample.record, "classes": ["a", "a"]}, {**sample.record, "classes": None}, {"task": sample.key}):
        with pytest.raises((ValueError, KeyError, TypeError)):
            task_from_json(wrong)


@each
def test_labels_have_one_dtype_and_others_are_told(sample: Sample) -> None:
    y = sample.kind.as_labels(sample.labels, ROWS, "data.train: y", sample.names)
    np.testing.assert_allclose(y, sample.labels, rtol=1e-6)
    assert y.dtype in (np.int64, np.float32)
    for wrong, told in sample.wrong:
        with pytest.raises(EdistillError) as error:
            sample.kind.as_labels(np.asarray(wrong), ROWS, "data.train: y", sample.names)
        assert told in str(error.value)
        assert "data.train: y" in str(error.value)


@each
def test_answers_are_what_the_family_takes_and_figures_come_of_them(sample: Sample) -> None:
    task = sample.task
    answers = task.answers(task.joined(sample.raw, ROWS, sample.member), sample.member, "test", rows)
    assert answers.shape == (ROWS, *task.shape)
    family = task.members_family()
    assert family.width(len(task.names)) == task.width
    of_rows = torch.as_tensor(sample.kind.as_labels(sample.labels, ROWS, "y", sample.names))
    said = task.each_answer(torch.from_numpy(np.stack([answers, answers + 0.1], 1)).double(), of_rows)
    count = task.answers_in(ROWS, of_rows.numpy())
    assert said.shape == (count, 2, task.width)
    assert len(task.each_of_row(torch.ones(ROWS), of_rows)) == count
    members = family.predictive(said, None, "probabilities")
    y = task.each_label(of_rows, of_rows)
    y = y.double() if y.is_floating_point() else y
    values = task.quality(members, y) | {"nll": members.nll(y).numpy()}
    values |= {name: task.uncertainty(members).numpy() for name in UNCERTAINTIES}
    values |= task.each_uncertainty(members, pooled=False)
    found = task.figures(values)
    assert set(task.figures_shown) <= found.keys()
    missing = [name for name, value in found.items() if value is None or not np.isfinite(value)]
    assert all(name.startswith("model_uncertainty.") for name in missing)  # a member has none
    each = task.each_uncertainty(members, pooled=True)
    assert bool(each) == (task.width > 2 * (task.key == "regression") and not task.one_class)
    for name, value in each.items():
        assert value.shape == (ROWS, len(task.names)), name
    for name, value in values.items():
        assert value.shape[:2] == (count, 2), name
    fresh = task.student_family(np.stack([answers, answers], 1).astype(np.float64), None)
    assert fresh.width(len(task.names)) == task.width


@each
def test_rows_are_compared_and_what_changed_is_told(sample: Sample) -> None:
    task = sample.kind
    answers = task.answers(task.joined(sample.raw, ROWS, sample.member), sample.member, "test", rows).astype(np.float64)
    first = task.compared(answers)
    apart = task.apart(first, 1e-6)
    allowed = np.broadcast_to(np.asarray(apart.scale) * 0.05 + np.asarray(apart.least), first.shape)
    assert (allowed > 0).all()
    other = answers.copy()
    other.reshape(ROWS, -1)[3, 0] += 10
    difference, what = task.change(answers, other)
    assert difference > 0.02
    assert what
    assert task.change(answers, answers)[0] == 0
    assert "1.5" in task.number_told(0, 1.5, first.shape[1])


def test_a_number_of_several_targets_is_told_as_what_it_is() -> None:
    of_three = [Regression.number_told(output, 1.5, 6) for output in (1, 2, 3)]
    assert of_three == [
        "a mean of 1.5 for target 1",
        "a mean of 1.5 for target 2",
        "a log-variance of 1.5 for target 0",
    ]
    assert Regression.number_told(1, 1.5, 2) == "a log-variance of 1.5"


def test_members_of_two_targets_are_refused_where_the_data_has_one() -> None:
    splits = {"train": Split(np.zeros(ROWS, np.float32))}
    with pytest.raises(EdistillError, match="member-0 says 2 numbers a row, and the data has one number a row"):
        Regression.found(splits, {"member-0": 4}, None)


@each
def test_splits_of_another_kind_are_refused_by_name(sample: Sample) -> None:
    task = sample.task
    task.refuse_other_labels(Split(sample.labels, sample.names), "data.test", "runs/x")
    other = np.full(ROWS, 7) if sample.key == "classification" else np.zeros((ROWS, 5), int)  # or positions
    with pytest.raises(EdistillError, match=r"data\.test .*runs/x"):
        task.refuse_other_labels(Split(other), "data.test", "runs/x")


@each
def test_what_is_served_can_be_predicted_from(sample: Sample) -> None:
    task = sample.task
    outputs = {
        name: np.log(np.full(shape, 1 / 3)) if name == "logits" and task.one_class else np.ones(shape)
        for name, shape in task.served(4).items()
    }
    names, outputs = task.each_served([f"row {at}" for at in range(4)], 0, outputs, None)
    count = task.answers_in(4, None)
    assert len(names) == count
    assert task.usable(outputs).tolist() == [True] * count
    records = list(task.predictions(outputs))
    assert len(records) == count
    assert all(isinstance(value, str | float | list) for record in records for value in record.values())
    for name in outputs:
        broken = {**outputs, name: np.where(np.arange(outputs[name].size) == 0, np.nan, outputs[name].ravel())}
        broken[name] = broken[name].reshape(outputs[name].shape)
        assert task.usable(broken).tolist() == [False] + [True] * (count - 1)


def test_what_runtimes_may_differ_by_grows_with_the_logits_that_a_sure_student_says() -> None:
    """Of a thousand classes and logits to 111, float32 alone changed logits by 1.1e-4 and an uncertainty by 1.1e-5."""
    said = np.zeros((2, 3, 5), np.float32)
    outputs = {"head_logits": said, "logits": said[:, 0], "total_uncertainty": np.zeros(2, np.float32)}
    limits = {"head_logits": 1e-4, "logits": 1e-4, "total_uncertainty": 1e-5}
    for name, limit in limits.items():
        assert np.max(Classification.tolerance(name, outputs)) == pytest.approx(limit)
    said[1, 2, 4] = -111
    for name, limit in limits.items():
        assert 1.4 * limit < np.max(Classification.tolerance(name, outputs)) < limit + 1e-4
