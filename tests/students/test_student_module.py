"""The student as a module: what its numbers mean, how one head becomes one per member, and what is not decayed."""

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.testing import assert_close

from ensemble_distill.predictive.categorical import Categorical, CategoricalFamily
from ensemble_distill.predictive.dirichlet import Dirichlet, DirichletFamily
from ensemble_distill.predictive.gaussian import Gaussian, GaussianFamily
from ensemble_distill.predictive.protocol import Family
from ensemble_distill.students.bodies import build_body
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.student import Form, Student

SHAPE = (6,)


def make_body() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU())


def test_more_heads_share_the_body_and_copy_the_first_head() -> None:
    student = Student(make_body(), Heads(2, 4, (3,), 3), CategoricalFamily(), average="logits").eval()
    more = student.with_heads(5)
    x = torch.randn(6, *SHAPE)
    assert more.body is student.body
    assert more.average == "logits"
    assert more.family is student.family
    assert not more.training
    assert student.train().with_heads(3).training
    student.eval()
    assert_close(more(x), student(x)[:, :1].expand(-1, 5, -1))
    assert more.predictive(more(x)).summary().model.max() < 1e-6


@pytest.mark.parametrize(
    ("family", "kind", "width", "heads"),
    [
        (CategoricalFamily(), Categorical, 3, 4),
        (GaussianFamily(center=20.0, scale=5.0), Gaussian, 2, 4),
        (DirichletFamily(offset=1.0), Dirichlet, 3, 1),
    ],
)
def test_a_family_says_what_the_numbers_mean(family: Family, kind: type, width: int, heads: int) -> None:
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1])
    student = Student(make_body(), Heads(heads, 4, (3,), width), family, weights).eval()
    raw = student(torch.randn(6, *SHAPE))
    found, wanted = student.predictive(raw), family.predictive(raw, weights if heads == 4 else None, "probabilities")
    assert isinstance(found, kind)
    assert_close(found.summary().total, wanted.summary().total)
    assert_close(found.pooled().means(), wanted.pooled().means())


@pytest.mark.parametrize("form", ["heads", "rank-one"])
def test_either_form_gives_each_member_a_prediction_and_keeps_its_settings(form: Form) -> None:
    weights = torch.tensor([0.5, 0.3, 0.2])
    student = Student(make_body(), Heads(1, 4, (3,), 2), GaussianFamily(20.0, 5.0), weights, "logits").eval()
    formed = student.formed(form, 3)
    x = torch.randn(6, *SHAPE)
    assert formed.heads.count == 3
    assert (formed.family, formed.average, formed.training) == (student.family, "logits", False)
    assert formed.weights is not None
    assert_close(formed(x), student(x).expand(-1, 3, -1), rtol=1e-5, atol=1e-6)
    assert "weights" not in formed.state_dict()  # the configuration has them


def test_biases_of_heads_and_what_the_body_names_are_not_decayed() -> None:
    body = build_body("test_vit", {}, (3, 160, 160))
    student = Student(body, Heads(3, 64, (5,), 2), CategoricalFamily())
    undecayed = student.no_weight_decay()
    assert "body.pos_embed" in undecayed
    theirs = {f"body.{name}" for name in timm.create_model("test_vit").no_weight_decay()}
    assert undecayed == theirs
    plain = Student(make_body(), Heads(3, 4, (), 2), CategoricalFamily())
    groups = param_groups_weight_decay(plain, 0.1, no_weight_decay_list=plain.no_weight_decay())
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    wanted = {"body.0.weight", "heads.layers.0.weight"}
    assert {name for name, p in plain.named_parameters() if id(p) in decayed} == wanted
