"""The supervised baseline against NumPy loops and scipy: mixed rows, rows without a label, batches without any."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from methods_helpers import FIRST, LABELED, B, K, a_batch, gradient, softened, stages
from scipy.stats import norm

from ensemble_distill.methods.method import Batch
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.gaussian import Gaussian

both_tasks = pytest.mark.parametrize("task", ["classification", "regression"])


def test_for_classes_it_is_the_mean_cross_entropy_of_labeled_rows() -> None:
    batch = a_batch()
    assert batch.labels is not None
    (stage,) = stages("supervised")
    logits = np.random.default_rng(1).normal(size=(B, 1, K))
    expected = 0.0
    for row in LABELED:
        q, weight = softened(logits[row, 0], 1.0), float(batch.labels.weight[row])
        expected -= weight * np.log(q[batch.labels.own[row]])
        expected -= (1 - weight) * np.log(q[batch.labels.partner[row]])
    found = stage.loss(batch, Categorical(torch.tensor(logits)), FIRST)
    assert float(found) == pytest.approx(expected / len(LABELED), rel=1e-12)


def test_for_numbers_it_is_the_mean_likelihood_of_labeled_rows() -> None:
    batch = a_batch("regression")
    labels = batch.labels
    assert labels is not None
    (stage,) = stages("supervised")
    mean, log_variance = np.random.default_rng(1).normal(size=(2, B, 1))
    expected = 0.0
    for row in LABELED:
        weight = float(labels.weight[row])
        target = weight * float(labels.own[row]) + (1 - weight) * float(labels.partner[row])
        expected -= norm.logpdf(target, mean[row, 0], np.exp(log_variance[row, 0] / 2))
    found = stage.loss(batch, Gaussian(torch.tensor(mean), torch.tensor(log_variance)), FIRST)
    assert float(found) == pytest.approx(expected / len(LABELED), rel=1e-12)


@both_tasks
def test_a_batch_in_which_no_row_has_a_label_changes_nothing(task: str) -> None:
    batch = a_batch(task)
    assert batch.labels is not None
    nothing = Batch(batch.teacher, replace(batch.labels, known=torch.zeros(B, dtype=torch.bool)))
    (stage,) = stages("supervised")
    numbers = torch.randn(2, B, 1, K, dtype=torch.float64, requires_grad=True)
    student = Categorical(numbers[0]) if task == "classification" else Gaussian(*numbers[..., 0])
    loss = stage.loss(nothing, student, FIRST)
    assert float(loss.detach()) == 0
    assert not gradient(loss, numbers).any()
