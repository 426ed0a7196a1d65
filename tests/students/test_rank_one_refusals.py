"""Bodies whose layers cannot be given rank-one members, and are refused instead of being half converted."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.predictive.categorical import CategoricalFamily
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.rank_one import RankOne, rank_one_body
from ensemble_distill.students.student import Student

MEMBERS, ROWS = 4, 3


def student_of(body: nn.Module) -> Student:
    return Student(body, Heads(1, 4, (), 3), CategoricalFamily()).eval()


def layers_of(body: nn.Module) -> list[RankOne]:
    return [module for module in body.modules() if isinstance(module, RankOne)]


@pytest.mark.parametrize("body", [nn.Sequential(nn.Flatten(), nn.ReLU()), nn.MultiheadAttention(8, 2)])
def test_a_body_without_layers_is_refused(body: nn.Module) -> None:
    told = f"student.model is a {type(body).__name__} without linear or convolutional layers .*--method hydra"
    with pytest.raises(EdistillError, match=told):
        student_of(body).with_rank_one(MEMBERS)


class Windows(nn.Module):
    """Folds halves of a row into the batch, so that a layer can no longer see whose row it has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.view(-1, 3)).view(-1, 4)
        return y


class Reader(nn.Module):
    """Computes with a layer's weight instead of calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        assert self.layer.in_features == x.shape[1]
        return nn.functional.linear(x, self.layer.weight)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (Windows, "student.model calls a Linear on 24 rows where its batch has 12, so batch-ensemble .*--method hydra"),
        (Reader, "student.model reads the weight of a Linear instead of calling it, .*--method hydra"),
    ],
)
def test_a_layer_that_cannot_tell_its_members_apart_is_refused(body: type[nn.Module], told: str) -> None:
    """Without that, members would silently take each other's factors, or none."""
    members = student_of(body()).with_rank_one(MEMBERS, 0.1)
    for student in (members, copy.deepcopy(members)):  # a copy as the moving average keeps one
        with pytest.raises(EdistillError, match=told):
            student(torch.randn(ROWS, 6))
        (layer,) = layers_of(student)
        alone = torch.randn(2 * MEMBERS, layer.in_features)  # outside of the body there is nothing to compare with
        assert layer(alone).shape == (2 * MEMBERS, layer.out_features)


def test_asking_for_a_weight_is_answered_no() -> None:
    (layer,) = layers_of(rank_one_body(nn.Linear(6, 4), MEMBERS, 0.0))
    assert not hasattr(layer, "weight")
    assert not hasattr(layer, "nothing")
    assert (layer.in_features, layer.out_features) == (6, 4)


def test_members_have_no_single_head_to_copy() -> None:
    members = student_of(nn.Linear(6, 4)).with_rank_one(MEMBERS)
    with pytest.raises(TypeError, match="no head 0"):
        members.with_heads(3)
    with pytest.raises(TypeError, match="no head 0"):
        members.with_rank_one(3)
