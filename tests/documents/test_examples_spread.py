"""The learned spread of the CIFAR-10 example moves heads by a factor of their row; their pooled prediction stays."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.optimize import nnls
from torch import nn
from torch.testing import assert_close

from ensemble_distill.predictive.categorical import Categorical, CategoricalFamily
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.student import Student

EXAMPLE = Path(__file__).parents[2] / "examples" / "cifar10_resnet8"
FEATURES = 27 * 1 + 2 * 2


def make_body(width: int, tail: int) -> nn.Module:
    """In place of the example's, which needs the members' code: rows (B, 3) to as many features."""
    return nn.Linear(3, 27 * width + 2 * tail)


@pytest.fixture
def spread(monkeypatch: pytest.MonkeyPatch) -> Any:
    body = ModuleType("body")
    body.make_body = make_body  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "body", body)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.delitem(sys.modules, "spread", raising=False)
    yield importlib.import_module("spread")
    sys.modules.pop("spread", None)


@pytest.fixture
def trained(tmp_path: Path) -> Student:
    """A student of four heads and five classes, saved as a run's."""
    torch.manual_seed(0)
    student = Student(make_body(1, 2), Heads(4, FEATURES, (), 5), CategoricalFamily()).eval()
    save_file(student.state_dict(), tmp_path / "student.safetensors")
    return student


def test_it_begins_with_the_trained_student_and_trains_the_spread_alone(
    spread: Any, trained: Student, tmp_path: Path
) -> None:
    own = Student(spread.make_spreading(1, 2, 4, 5), Heads(4, 20, (), 5), CategoricalFamily())
    begun = spread.start_from_run(own, tmp_path)
    names = {name for name, parameter in begun.named_parameters() if parameter.requires_grad}
    assert names == {"body.spread.weight", "body.spread.bias"}
    with torch.no_grad():
        begun.body.spread.weight.zero_()
        x = torch.randn(6, 3)
        assert_close(begun(x).log_softmax(-1), trained(x).log_softmax(-1), atol=1e-5, rtol=1e-5)


def test_deviations_grow_by_the_factor_of_their_row_and_the_pooled_prediction_stays(
    spread: Any, trained: Student, tmp_path: Path
) -> None:
    own = Student(spread.make_spreading(1, 2, 4, 5), Heads(4, 20, (), 5), CategoricalFamily())
    begun = spread.start_from_run(own, tmp_path)
    x = torch.randn(50, 3)
    with torch.no_grad():
        before = Categorical(trained(x))
        begun.body.spread.weight.zero_()
        begun.body.spread.weight[0, 0] = 0.4
        begun.body.spread.bias.fill_(-0.5)
        after = Categorical(begun(x))
        uncertainties = before.summary()
    assert before.pooled().kl(after.pooled()).max() < 1e-3
    factors = (0.5 * (0.4 * (uncertainties.total / uncertainties.model).log() - 0.5)).exp()

    def apart(said: Categorical) -> torch.Tensor:
        z = said.logits - said.logits.mean(-1, keepdim=True)
        return (z - z.mean(1, keepdim=True)).flatten(1)

    assert_close(apart(after), factors.unsqueeze(1) * apart(before), atol=1e-4, rtol=1e-4)


def test_numbers_of_the_classes_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    classes = importlib.import_module("classes")
    random = np.random.default_rng(0)
    parts, s = random.dirichlet(np.full(4, 0.3), 500) + 1e-6, np.array([1.0, 3.0, 0.5, 2.0])
    found = classes.fitted(parts, parts @ s, steps=500)
    np.testing.assert_allclose(found, nnls(parts, parts @ s)[0], rtol=1e-2)
    few = classes.fitted(parts, parts @ s, steps=1)
    assert few.std() < found.std()
    assert classes.worth(0.0) == 10
