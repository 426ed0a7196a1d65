"""Hydra's two losses against NumPy loops and torch.distributions, and how it gets from one head to many."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from methods_helpers import (
    FEATURES,
    FIRST,
    LABELED,
    WEIGHTS,
    B,
    Floats,
    K,
    M,
    a_batch,
    a_student,
    gradient,
    softened,
    stages,
)
from scipy.stats import norm
from tiny import refused
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from ensemble_distill.methods import open_method
from ensemble_distill.methods.method import Batch
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.gaussian import Gaussian
from ensemble_distill.predictive.protocol import Average
from ensemble_distill.tasks import open_task


def hinton_loss(teacher: Floats, student: Floats, t: float, w: Floats, average: Average) -> float:
    """T² × mean over rows of KL(the softened members' mean ‖ the one softened head)."""
    total = 0.0
    for members, (head,) in zip(teacher, student, strict=True):
        if average == "probabilities":
            target = sum(w[m] * softened(members[m], t) for m in range(M))
        else:
            target = softened(sum(w[m] * members[m] for m in range(M)), t)
        q = softened(head, t)
        total += sum(target[k] * (np.log(target[k]) - np.log(q[k])) for k in range(K))
    return t**2 * total / len(teacher)


def heads_loss(teacher: Floats, student: Floats, t: float, w: Floats) -> float:
    """T² × mean over rows of Σ_m w_m KL(softened member m ‖ softened head m); w_m = 1/M in the paper."""
    total = 0.0
    for members, heads in zip(teacher, student, strict=True):
        for m in range(M):
            p, q = softened(members[m], t), softened(heads[m], t)
            total += w[m] * sum(p[k] * (np.log(p[k]) - np.log(q[k])) for k in range(K))
    return t**2 * total / len(teacher)


def test_the_losses_are_the_papers() -> None:
    for average in ["probabilities", "logits"]:
        for weights in [None, WEIGHTS]:
            for temperature in [1.0, 4.0]:
                batch = a_batch(weights=weights, average=average)
                teacher = np.asarray(batch.teacher.logits)  # type: ignore[attr-defined]
                w = np.full(M, 1 / M) if weights is None else weights
                hinton, heads = stages("hydra", temperature=temperature)
                rng = np.random.default_rng(1)
                one, many = rng.normal(size=(B, 1, K)), rng.normal(size=(B, M, K))
                found = hinton.loss(batch, Categorical(torch.tensor(one)), FIRST)
                assert float(found) == pytest.approx(hinton_loss(teacher, one, temperature, w, average), rel=1e-12)
                found = heads.loss(batch, Categorical(torch.tensor(many)), FIRST)
                assert float(found) == pytest.approx(heads_loss(teacher, many, temperature, w), rel=1e-12)


def test_for_numbers_each_head_has_the_divergence_from_its_own_normal() -> None:
    for temperature in [1.0, 3.0]:
        for weights in [None, WEIGHTS]:
            batch = a_batch("regression", weights=weights)
            teacher = batch.teacher
            assert isinstance(teacher, Gaussian)
            mean, log_variance = torch.randn(2, B, M, dtype=torch.float64)
            _, heads = stages("hydra", temperature=temperature)
            w = np.full(M, 1 / M) if weights is None else weights
            expected = 0.0
            for m in range(M):
                of_member = Normal(teacher.mean[:, m], (temperature * teacher.log_variance[:, m].exp()).sqrt())
                of_head = Normal(mean[:, m], (temperature * log_variance[:, m].exp()).sqrt())
                expected += temperature**2 * w[m] * float(kl_divergence(of_member, of_head).mean())
            assert float(heads.loss(batch, Gaussian(mean, log_variance), FIRST)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradients_keep_their_size_as_the_temperature_rises(temperature: float) -> None:
    """T (q − p) / B, times 1/M with a head per member: T² makes up for what the temperature takes."""
    batch = a_batch()
    hinton, heads = stages("hydra", temperature=temperature)
    targets = softened(np.asarray(batch.teacher.logits), temperature)  # type: ignore[attr-defined]
    for stage, count, target in ((hinton, 1, targets.mean(1, keepdims=True)), (heads, M, targets)):
        logits = torch.randn(B, count, K, dtype=torch.float64, requires_grad=True)
        found = gradient(stage.loss(batch, Categorical(logits), FIRST), logits)
        q = softened(logits.detach().numpy(), temperature)
        assert_close(found, torch.tensor(temperature * (q - target) / (B * count)))


def test_the_losses_vanish_at_their_targets_alone() -> None:
    batch = a_batch()
    hinton, heads = stages("hydra", temperature=3.0)
    assert isinstance(batch.teacher, Categorical)
    offset = torch.randn(B, M, 1, dtype=torch.float64)
    assert float(heads.loss(batch, Categorical(batch.teacher.logits + offset), FIRST)) == pytest.approx(0, abs=1e-12)
    mean = 3 * batch.teacher.tempered(3).pooled().logits
    assert float(hinton.loss(batch, Categorical(mean), FIRST)) == pytest.approx(0, abs=1e-12)
    collapsed = Categorical((3 * batch.teacher.tempered(3).pooled().logits).expand(-1, M, -1))
    disagreement = 9 * batch.teacher.tempered(3).summary().model.mean()
    assert_close(heads.loss(batch, collapsed, FIRST), disagreement)  # what is left to a second phase to learn


def test_for_numbers_the_losses_vanish_at_their_targets_alone() -> None:
    batch = a_batch("regression")
    hinton, heads = stages("hydra")
    teacher = batch.teacher
    assert isinstance(teacher, Gaussian)
    assert float(heads.loss(batch, teacher, FIRST)) == pytest.approx(0, abs=1e-12)
    mean, variance = teacher.mean.mean(1), teacher.log_variance.exp().mean(1) + teacher.mean.var(1, correction=0)
    moments = Gaussian(mean.unsqueeze(1), variance.log().unsqueeze(1))
    assert float(hinton.loss(batch, moments, FIRST)) == pytest.approx(0, abs=1e-12)
    assert float(hinton.loss(batch, Gaussian(teacher.mean[:, :1], teacher.log_variance[:, :1]), FIRST)) > 0.01


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_hinton_head_is_copied_and_the_body_kept(task: str) -> None:
    hinton, heads = stages("hydra", hinton_share=0.25)
    assert (hinton.share, heads.share) == (0.25, 0.75)
    student = a_student("hydra", task)
    assert hinton.start(student) is student
    grown = heads.start(student)
    assert grown.body is student.body
    x = torch.randn(B, FEATURES, dtype=torch.float64)
    assert_close(grown(x), student(x).expand(-1, M, -1))


# --- a loss that sees deviations apart -----------------------------------------------------------------------------


def deviations(logits: Floats, w: Floats, over: Floats) -> Floats:
    """(M, K): logits less their w-mean over classes, less the members' mean of that."""
    centered = np.stack([z - sum(w[k] * z[k] for k in range(K)) for z in logits])
    return centered - sum(over[m] * centered[m] for m in range(M))


def test_the_deviation_loss_is_its_formula() -> None:
    for weights in [None, WEIGHTS]:
        for temperature in [1.0, 4.0]:
            batch = a_batch(weights=weights)
            teacher = np.asarray(batch.teacher.logits) / temperature  # type: ignore[attr-defined]
            over = np.full(M, 1 / M) if weights is None else weights
            _, heads = stages("hydra", temperature=temperature, loss="deviation", deviation_weight=2.5)
            student = np.random.default_rng(1).normal(size=(B, M, K))
            expected = 0.0
            for t, s in zip(teacher, student / temperature, strict=True):
                w, q = (sum(over[m] * softened(z[m], 1) for m in range(M)) for z in (t, s))
                expected += sum(w[k] * (np.log(w[k]) - np.log(q[k])) for k in range(K))
                apart = deviations(t, w, over) - deviations(s, w, over)
                expected += 2.5 / 2 * sum(over[m] * w[k] * apart[m, k] ** 2 for m in range(M) for k in range(K))
            found = heads.loss(batch, Categorical(torch.tensor(student), batch.teacher.weights), FIRST)  # type: ignore[attr-defined]
            assert float(found) == pytest.approx(temperature**2 * expected / B, rel=1e-12)


def test_the_deviation_loss_of_numbers_is_its_formula() -> None:
    batch = a_batch("regression")
    teacher = batch.teacher
    assert isinstance(teacher, Gaussian)
    mean, log_variance = torch.randn(2, B, M, dtype=torch.float64)
    _, heads = stages("hydra", loss="deviation", deviation_weight=0.5)
    expected = 0.0
    for row in range(B):
        moments = []
        for means, spreads in ((teacher.mean[row], teacher.log_variance[row]), (mean[row], log_variance[row])):
            moments.append((means.mean(), (spreads.exp().mean() + means.var(unbiased=False)).sqrt()))
        expected += float(kl_divergence(*(Normal(*m) for m in moments)))
        data = teacher.log_variance[row].exp().mean()
        for m in range(M):
            d, v = (
                (a[row, m] - a[row].mean()) - (b[row, m] - b[row].mean())
                for a, b in ((teacher.mean, mean), (teacher.log_variance, log_variance))
            )
            expected += 0.5 / M * float(d**2 / (2 * data) + v**2 / 4)
    assert float(heads.loss(batch, Gaussian(mean, log_variance), FIRST)) == pytest.approx(expected / B, rel=1e-12)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_near_the_members_both_losses_are_one(task: str) -> None:
    """To second order the divergence of members is that of their mean and of their deviations."""
    batch = a_batch(task)
    plain, apart = (stages("hydra", loss=loss)[1].loss for loss in ("kl", "deviation"))
    torch.manual_seed(0)
    family = a_student("hydra", task).family
    # members that nearly agree: else their own curvatures are not the pooled prediction's
    raw = family.raw(batch.teacher)
    raw = raw.mean(1, keepdim=True) + 0.01 * (raw - raw.mean(1, keepdim=True))
    near = Batch(family.predictive(raw, None, "probabilities"), None)
    student = family.predictive(raw + 1e-3 * torch.randn_like(raw), None, "probabilities")
    assert float(apart(near, student, FIRST)) == pytest.approx(float(plain(near, student, FIRST)), rel=0.1)


@pytest.mark.parametrize("loss", ["kl", "deviation"])
def test_rows_weigh_by_their_members_disagreement(loss: str) -> None:
    batch = a_batch()
    student = Categorical(torch.randn(B, M, K, dtype=torch.float64))
    plain, weighted = (stages("hydra", loss=loss, row_weight=power)[1].loss for power in (0.0, 0.5))
    rows = []
    for row in range(B):
        alone = Batch(Categorical(batch.teacher.logits[[row]]), None)  # type: ignore[attr-defined]
        rows.append(float(plain(alone, Categorical(student.logits[[row]]), FIRST)))
    root = np.sqrt(np.asarray(batch.teacher.summary().model))
    assert float(weighted(batch, student, FIRST)) == pytest.approx(np.dot(rows, root) / root.sum(), rel=1e-9)
    same = Batch(Categorical(torch.zeros(B, M, K, dtype=torch.float64)), None)  # nobody disagrees anywhere
    for power in (0.5, 1.25, 2.0):
        weighted = stages("hydra", loss=loss, row_weight=power)[1].loss
        assert float(weighted(same, student, FIRST)) == pytest.approx(float(plain(same, student, FIRST)))


def test_a_weight_of_deviations_needs_their_loss() -> None:
    method = open_method("hydra")
    asked = method.Options.model_validate({"deviation_weight": 2.5})
    with refused("deviation-weight is 2.5", "'kl'", "deviation"):
        method.settled(asked, open_task("classification"), False)
    settled = method.settled(method.Options.model_validate({"loss": "deviation"}), open_task("classification"), False)
    assert settled.model_dump()["deviation_weight"] == 1.0


# --- labels beside the members -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_labels_are_added_by_what_the_heads_predict_together(weights: Floats | None) -> None:
    batch = a_batch(weights=weights)
    labels, w = batch.labels, np.full(M, 1 / M) if weights is None else weights
    assert labels is not None
    rng = np.random.default_rng(1)
    plain, labeled = (stages("hydra", label_weight=weight) for weight in (0.0, 2.5))
    for before, stage, heads in zip(plain, labeled, (1, M), strict=True):
        logits = rng.normal(size=(B, heads, K))
        over = w if heads == M else np.ones(1)
        student = Categorical(torch.tensor(logits), batch.teacher.weights if heads == M else None)
        expected = 0.0
        for row in LABELED:
            q = sum(over[m] * softened(logits[row, m], 1.0) for m in range(heads))
            weight = float(labels.weight[row])
            expected -= weight * np.log(q[labels.own[row]]) + (1 - weight) * np.log(q[labels.partner[row]])
        added = float(stage.loss(batch, student, FIRST)) - float(before.loss(batch, student, FIRST))
        assert added == pytest.approx(2.5 * expected / len(LABELED), rel=1e-9)


def test_labels_of_numbers_are_added_by_the_density_of_the_mixture() -> None:
    batch = a_batch("regression")
    labels = batch.labels
    assert labels is not None
    mean, log_variance = np.random.default_rng(1).normal(size=(2, B, M))
    student = Gaussian(torch.tensor(mean), torch.tensor(log_variance))
    (_, plain), (_, labeled) = stages("hydra"), stages("hydra", label_weight=0.5)
    expected = 0.0
    for row in LABELED:
        weight = float(labels.weight[row])
        target = weight * float(labels.own[row]) + (1 - weight) * float(labels.partner[row])
        expected -= np.log(norm.pdf(target, mean[row], np.exp(log_variance[row] / 2)).mean())
    added = float(labeled.loss(batch, student, FIRST)) - float(plain.loss(batch, student, FIRST))
    assert added == pytest.approx(0.5 * expected / len(LABELED), rel=1e-9)


def test_labels_are_needed_where_they_weigh_and_nothing_is_added_where_no_row_has_one() -> None:
    method = open_method("hydra")
    for weight, needs in ((0.0, {"teacher"}), (1.0, {"teacher", "labels"})):
        assert method.needed(method.Options.model_validate({"label-weight": weight})) == needs
    student = Categorical(torch.randn(B, M, K, dtype=torch.float64))
    bare = Batch(a_batch().teacher, None)
    (_, plain), (_, labeled) = stages("hydra"), stages("hydra", label_weight=1.0)
    assert_close(labeled.loss(bare, student, FIRST), plain.loss(bare, student, FIRST))
