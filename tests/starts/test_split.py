"""Taking bodies apart: the parts in a row are the body, and what cannot be taken apart is refused."""

from __future__ import annotations

import pytest
import timm
import tiny
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ensemble_distill.predictive.categorical import CategoricalFamily
from ensemble_distill.students.last_stage import LastStage, apart
from ensemble_distill.students.per_head import per_head
from ensemble_distill.students.split import last_stage_of, split
from ensemble_distill.students.student import Student


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:  # a branch that no tracer follows, within what is not looked into
            return x
        y: Tensor = self.conv(x)
        return x + y.relu()


class Body(nn.Module):
    """Stem, three blocks, pooled; `around` adds a connection that passes the last block by."""

    def __init__(self, around: bool = False, branch: bool = False, twice: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.stages = nn.Sequential(Block(), Block(), Block())
        self.around, self.branch, self.twice = around, branch, twice
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        if self.branch and x.sum() > 0:
            x = -x
        h = self.stem(x)
        y = self.stages(h)
        if self.twice:
            y = self.stages(y)
        if self.around:
            y = y + h
        pooled: Tensor = self.norm(y.mean((2, 3)).flatten(1))
        return pooled


@pytest.mark.parametrize(
    ("last", "before"),
    [
        *((name, None) for name in ("stages.2", "stages.1", "stages", "norm", "stem")),
        *(("stages.2", "stages.1"), ("norm", "stem"), ("stages", "stages"), ("stages.0", "stem")),
    ],
)
def test_the_parts_one_after_the_other_are_the_body(last: str, before: str | None) -> None:
    body = Body().eval()
    parts = split(body, last, before)
    x = torch.randn(2, 3, 8, 8)
    seen = parts.trunk(x)
    assert_close(parts.tail(parts.bridge(seen)), body(x))
    names = {name for part in (parts.trunk, parts.bridge, parts.tail) for name, _ in part.named_parameters()}
    assert names == {name for name, _ in body.named_parameters()}
    if before in (None, last):
        assert not list(parts.bridge.parameters())


def test_weights_of_a_part_are_those_of_the_body() -> None:
    body = Body().eval()
    parts = split(body, "stages.2")
    assert {"stages.2.conv.weight", "norm.running_mean"} <= parts.tail.state_dict().keys()
    assert parts.tail.get_parameter("stages.2.conv.weight") is body.get_parameter("stages.2.conv.weight")


def test_what_cannot_be_taken_apart_is_refused() -> None:
    for body, said in [
        (Body(around=True), "What follows stages.2 in the body also reads what comes before it"),
        (Body(branch=True), "its forward does not trace (TraceError"),
        (Body(twice=True), "taken apart at stages.2, which runs 2 times"),
    ]:
        with tiny.refused(said):
            split(body, "stages.2")


def test_a_module_that_is_not_there_is_refused_with_those_that_are() -> None:
    with tiny.refused("taken apart at 'layer4', and its modules are stem, stages, stages.0", "norm"):
        split(Body(), "layer4")


def test_bodies_of_timm_can_be_taken_apart() -> None:
    for name in ["resnet10t", "test_efficientnet", "test_convnext", "test_byobnet"]:
        torch.manual_seed(0)
        body = timm.create_model(name, num_classes=0).eval()
        last = last_stage_of(body)
        parts = split(body, last)
        x = torch.randn(2, 3, *body.default_cfg["input_size"][1:])
        with torch.no_grad():
            assert_close(parts.tail(parts.bridge(parts.trunk(x))), body(x))
        assert sum(p.numel() for p in parts.tail.parameters()) > 0


def test_tails_of_timm_are_the_same_for_each_head() -> None:
    """BatchNormAct2d among them, a normalization with its activation behind it."""
    for name in ["resnet10t", "test_efficientnet", "test_byobnet", "mobilenetv3_small_050"]:
        torch.manual_seed(0)
        body = timm.create_model(name, num_classes=0).eval()
        parts = split(body, last_stage_of(body))
        with torch.no_grad():
            h = parts.bridge(parts.trunk(torch.randn(2, 3, 64, 64)))
            both = per_head(parts.tail, 2).eval()(h.repeat_interleave(2, 0))
            assert_close(both, parts.tail(h).repeat_interleave(2, 0))


def test_layers_with_a_forward_of_their_own_are_refused() -> None:
    for name in ["test_convnext", "test_efficientnet_gn", "test_nfnet"]:
        body = timm.create_model(name, num_classes=0).eval()
        with tiny.refused("and only torch's own linear, convolutional and normalization layers"):
            per_head(split(body, last_stage_of(body)).tail, 2)


def test_dropout_of_a_forward_does_not_go_on_in_evaluation() -> None:
    torch.manual_seed(0)
    body = timm.create_model("resnet10t", num_classes=0, drop_rate=0.5)
    parts = split(body, "layer4")
    assert parts.tail.training
    for part in (body, parts.trunk, parts.tail):
        part.eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_close(parts.tail(parts.trunk(x)), body(x))


def test_what_a_body_wants_undecayed_stays_so() -> None:
    class Wishing(Body):
        def no_weight_decay(self) -> set[str]:
            return {"stem.weight", "norm.weight", "nothing"}

    body = Wishing()
    config = LastStage("stages.2")
    trunk, heads = apart(body, config, (3, 8, 8), 2)
    undecayed = Student(trunk, heads, CategoricalFamily()).no_weight_decay()
    assert {"body.stem.weight", "heads.tail.norm.weight"} <= undecayed
    assert "body.nothing" not in undecayed


def test_the_last_stage_is_found() -> None:
    assert last_stage_of(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU())) == "2"
    assert last_stage_of(nn.Sequential(nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2)), nn.ReLU())) == "0.1"
    assert last_stage_of(timm.create_model("resnet10t", num_classes=0)) == "layer4"
    residual = Body()
    residual.norm = nn.Identity()
    assert last_stage_of(residual) == "stages.2"
    with tiny.refused("the body has no module with parameters"):
        last_stage_of(nn.Flatten())
