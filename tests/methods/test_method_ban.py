"""The four objectives of born-again networks: each gradient against the paper's decomposition, in NumPy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from methods_helpers import FIRST, HALF, LABELED, B, Floats, K, a_batch, gradient, predictive, softened, stages
from tiny import refused
from torch import Tensor, multiprocessing
from torch.testing import assert_close

from ensemble_distill.methods import open_method
from ensemble_distill.methods.ban import permuted_but_the_largest
from ensemble_distill.methods.hydra import members_loss
from ensemble_distill.methods.method import Batch, Labels, Loss, Step
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.tasks import open_task

OBJECTIVES = ("ban", "ban+l", "cwtm", "dkpp")


def loss_of(objective: str, **options: Any) -> Loss:
    (stage,) = stages("ban", objective=objective, **options)
    assert stage.share == 1
    return stage.loss


def probabilities(batch: Batch) -> Floats:
    """The members' mean probabilities (B, K)."""
    assert isinstance(batch.teacher, Categorical)
    found: Floats = softened(batch.teacher.logits.numpy(), 1.0).mean(1)
    return found


def targets(labels: Labels) -> Floats:
    """One-hot classes (B, K), mixed as the rows are; zeros where there is no label."""
    found = np.zeros((len(labels.own), K))
    for row in np.flatnonzero(labels.known.numpy()):
        found[row, labels.own[row]] += float(labels.weight[row])
        found[row, labels.partner[row]] += 1 - float(labels.weight[row])
    return found


def found_gradient(loss: Loss, batch: Batch, logits: Tensor, step: Step = FIRST) -> Floats:
    """By the student's logits (B, K)."""
    of = logits.clone().requires_grad_()
    found: Floats = gradient(loss(batch, Categorical(of), step), of)[:, 0].numpy()
    return found


@pytest.fixture
def logits() -> Tensor:
    return torch.tensor(np.random.default_rng(5).normal(size=(B, 1, K)))


# --- gradients ----------------------------------------------------------------------------------------------------


def test_ban_is_the_student_less_the_teacher(logits: Tensor) -> None:
    """q − p, the mean over the batch."""
    batch = a_batch()
    q, p = softened(logits[:, 0].numpy(), 1.0), probabilities(batch)
    assert_close(found_gradient(loss_of("ban"), batch, logits), (q - p) / B)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_with_labels_the_label_gradient_is_added(logits: Tensor, weight: float) -> None:
    batch = a_batch()
    assert batch.labels is not None
    q, p, y = softened(logits[:, 0].numpy(), 1.0), probabilities(batch), targets(batch.labels)
    of_labels = np.where(batch.labels.known.numpy()[:, None], q - y, 0) / len(LABELED)
    found = found_gradient(loss_of("ban+l", label_weight=weight), batch, logits)
    assert_close(found, (q - p) / B + weight * of_labels)


def test_both_terms_count_alike_where_nothing_is_said(logits: Tensor) -> None:
    method, batch = open_method("ban"), a_batch()
    options = method.settled(method.Options.model_validate({"objective": "ban+l"}), open_task("classification"), False)
    (stage,) = method.stages(options, 1)
    expected = found_gradient(loss_of("ban+l", label_weight=1.0), batch, logits)
    assert_close(found_gradient(stage.loss, batch, logits), expected)


def test_cwtm_weighs_the_label_gradient_by_the_teachers_confidence_in_shares_of_the_batch(logits: Tensor) -> None:
    """Equation 10, also where the teacher is wrong."""
    batch = a_batch()
    assert batch.labels is not None
    q, p, y = softened(logits[:, 0].numpy(), 1.0), probabilities(batch), targets(batch.labels)
    assert any(p[row].argmax() != batch.labels.own[row] for row in LABELED), "the teacher is wrong somewhere"
    expected = np.zeros((B, K))
    for row in LABELED:
        share = p[row].max() / sum(p[other].max() for other in LABELED)
        expected[row] = share * (q[row] - y[row])
    assert_close(found_gradient(loss_of("cwtm"), batch, logits), expected)


def test_dkpp_keeps_the_largest_and_permutes_what_is_dark(logits: Tensor) -> None:
    """Equation 11: q_* − max p at the teacher's class, and q − φ(p) elsewhere."""
    batch = a_batch()
    q, p = softened(logits[:, 0].numpy(), 1.0), probabilities(batch)
    implied = q - B * found_gradient(loss_of("dkpp"), batch, logits, HALF)
    moved = 0
    for row in range(B):
        top = p[row].argmax()
        assert implied[row, top] == pytest.approx(p[row].max(), abs=1e-12)
        assert np.sort(implied[row]) == pytest.approx(np.sort(p[row]), abs=1e-12)
        moved += not np.allclose(implied[row], p[row])
    assert moved, "something is permuted"


def test_without_any_label_cwtm_and_the_labels_term_are_0_and_still_train_nothing(logits: Tensor) -> None:
    batch = Batch(a_batch().teacher, None)
    assert not found_gradient(loss_of("cwtm"), batch, logits).any()
    expected = found_gradient(loss_of("ban"), batch, logits)
    assert_close(found_gradient(loss_of("ban+l"), batch, logits), expected)


@pytest.mark.parametrize("objective", ["ban", "dkpp"])
def test_positions_count_like_rows(objective: str) -> None:
    """Outputs (B, M, L, K), as a language model's: the gradient is that of B × L rows."""
    rng = np.random.default_rng(3)
    teacher, student = torch.tensor(rng.normal(size=(2, 2, 1, 5, K)))
    student.requires_grad_()
    loss = loss_of(objective)
    flat = student.detach().reshape(10, 1, K).requires_grad_()
    found = gradient(loss(Batch(Categorical(teacher), None), Categorical(student), FIRST), student)
    expected = gradient(loss(Batch(Categorical(teacher.reshape(10, 1, K)), None), Categorical(flat), FIRST), flat)
    assert_close(found.reshape(10, 1, K), expected)


def test_for_numbers_ban_is_the_divergence_from_the_mixtures_moments() -> None:
    batch = a_batch("regression")
    assert batch.labels is not None
    student = predictive("regression", torch.randn(B, 1, 2, dtype=torch.float64))
    (kd,) = stages("kd")
    assert_close(loss_of("ban")(batch, student, FIRST), kd.loss(batch, student, FIRST))
    (labels,) = stages("supervised")
    expected = kd.loss(batch, student, FIRST) + labels.loss(batch, student, FIRST)
    assert_close(loss_of("ban+l", label_weight=1.0)(batch, student, FIRST), expected)


# --- across ranks -------------------------------------------------------------------------------------------------


def across(objective: str) -> Loss:
    if objective == "rows":
        return members_loss(1.0, row_weight=1.5)
    return stages("supervised")[0].loss if objective == "labels" else loss_of(objective)


RANKS = (("cwtm", 2), ("cwtm", 1), ("labels", 3), ("rows", 3))  # an objective, and how many rows rank 0 has


@pytest.mark.thorough
def test_what_is_divided_by_is_of_every_rank(tmp_path_factory: pytest.TempPathFactory, logits: Tensor) -> None:
    """The mean of two ranks' gradients is the gradient of one process with all rows, also where a rank has no label."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(rank, (str(folder), logits), nprocs=2)
    for case, (objective, _) in enumerate(RANKS):
        parts = [torch.load(folder / f"{case}-{index}.pt", weights_only=True).numpy() for index in range(2)]
        assert_close(np.concatenate(parts) / 2, found_gradient(across(objective), a_batch(), logits))


def rank(index: int, folder: str, logits: Tensor) -> None:
    """Rank 0 has the first rows, and rank 1 the rest; row 0 has no label."""
    import os

    os.environ.update(RANK=str(index), WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=index, world_size=2)
    whole = a_batch()
    assert whole.labels is not None
    assert isinstance(whole.teacher, Categorical)
    for case, (objective, first) in enumerate(RANKS):
        rows = slice(0, first) if index == 0 else slice(first, None)
        labels = Labels(*(getattr(whole.labels, name)[rows] for name in ("own", "partner", "weight", "known")))
        part = Batch(Categorical(whole.teacher.logits[rows]), labels if labels.known.any() else None)
        torch.save(torch.tensor(found_gradient(across(objective), part, logits[rows])), f"{folder}/{case}-{index}.pt")
    torch.distributed.destroy_process_group()


# --- permutations -------------------------------------------------------------------------------------------------


def test_every_order_of_the_others_is_as_likely_and_rows_have_their_own() -> None:
    values = torch.tensor([0.1, 0.7, 0.15, 0.05], dtype=torch.float64).expand(6000, 1, 4)
    permuted = permuted_but_the_largest(values, Step(3, 10, seed=1))
    assert (permuted[..., 1] == 0.7).all()
    seen = Counter(tuple(row.tolist()) for row in permuted[:, 0, [0, 2, 3]])
    assert len(seen) == 6
    chi_squared = sum((count - 1000) ** 2 / 1000 for count in seen.values())
    assert chi_squared < 20.5  # the 99.9th percentile with 5 degrees of freedom


def test_permutations_follow_from_seed_and_step() -> None:
    values = torch.tensor(np.random.default_rng(0).normal(size=(50, 1, 10)))
    again = [permuted_but_the_largest(values, step) for step in (Step(3, 10, 1), Step(3, 10, 1))]
    assert torch.equal(*again)
    for other in (Step(4, 10, 1), Step(3, 10, 2)):
        assert not torch.equal(again[0], permuted_but_the_largest(values, other))


def test_of_two_classes_there_is_nothing_to_permute() -> None:
    values = torch.tensor([[[0.2, 0.8]], [[0.9, 0.1]]])
    assert torch.equal(permuted_but_the_largest(values, FIRST), values)


def test_of_equal_entries_one_stays_and_none_is_lost() -> None:
    values = torch.tensor([0.1, 0.4, 0.4, 0.1]).expand(50, 1, 4)
    permuted = permuted_but_the_largest(values, FIRST)
    assert torch.equal(permuted.sort(-1).values, values.sort(-1).values)
    assert (permuted[..., 1] == 0.4).all(), "the first of the largest"
    assert not torch.equal(permuted, values)


# --- the split of the gradient ------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_split_is_the_squared_gradient_of_label_and_of_all_other_classes(objective: str, logits: Tensor) -> None:
    batch = a_batch()
    assert batch.labels is not None
    batch.labels.partner[1] = batch.labels.own[1]  # mixed with a row of its own class, which is its label still
    (stage,) = stages("ban", objective=objective)
    assert stage.watch is not None
    found = stage.watch(batch, Categorical(logits))
    by_logits = B * found_gradient(loss_of("ban"), batch, logits)
    labels = batch.labels
    plain = [row for row in LABELED if float(labels.weight[row]) == 1 or row == 1]
    assert float(labels.weight[1]) < 1
    assert len(plain) < len(LABELED)
    of_label = [by_logits[row, labels.own[row]] ** 2 for row in plain]
    assert float(found["gradient_label"]) == pytest.approx(np.mean(of_label))
    whole = [np.square(by_logits[row]).sum() for row in plain]
    assert float(found["gradient_label"] + found["gradient_dark"]) == pytest.approx(np.mean(whole))


def test_without_labels_or_classes_there_is_no_split() -> None:
    (stage,) = stages("ban")
    assert stage.watch is not None
    assert not stage.watch(Batch(a_batch().teacher, None), Categorical(torch.zeros(B, 1, K)))
    whole = a_batch().labels
    assert whole is not None
    mixed = Labels(torch.zeros(B).long(), torch.ones(B).long(), torch.full((B,), 0.7), whole.known)
    found = stage.watch(Batch(a_batch().teacher, mixed), Categorical(torch.zeros(B, 1, K)))
    assert all(figure.isnan() for figure in found.values())
    assert not stage.watch(a_batch("regression"), predictive("regression", torch.zeros(B, 1, 2)))


# --- options ------------------------------------------------------------------------------------------------------


def test_options_that_do_not_go_together_are_refused() -> None:
    for options, task, said in [
        ({"objective": "cwtm"}, "regression", ("cwtm", "regression", "ban+l")),
        ({"objective": "dkpp"}, "regression", ("dkpp", "regression")),
        ({"label_weight": 2.0}, "classification", ("label-weight is 2", "'ban'", "ban+l")),
        ({"label_weight": 2.0, "objective": "cwtm"}, "classification", ("label-weight is 2", "'cwtm'")),
    ]:
        method = open_method("ban")
        with refused(*said):
            method.settled(method.Options.model_validate(options), open_task(task), False)


def test_labels_are_needed_where_the_loss_has_them() -> None:
    for objective, labels in [("ban", False), ("ban+l", True), ("cwtm", True), ("dkpp", False)]:
        method = open_method("ban")
        needed = method.needed(method.Options.model_validate({"objective": objective}))
        assert needed == ({"teacher", "labels"} if labels else {"teacher"})
