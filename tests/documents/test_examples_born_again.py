"""The networks of examples/born_again: their sizes are the paper's, and what is shared by name is there to share."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ensemble_distill.students.split import last_stage_of, split

FOLDER = Path(__file__).parents[2] / "examples" / "born_again"


def loaded(name: str) -> Any:
    """A file there, which others of the examples have the names of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for other in ("model", name):
            patch.setitem(sys.modules, other, None)
            del sys.modules[other]
        return importlib.import_module(name)


PARAMETERS = loaded("parameters")
ROWS = {row.name: row for row in PARAMETERS.rows()}
densenet_bc, wide_resnet, ban_resnet = PARAMETERS.densenet_bc, PARAMETERS.wide_resnet, PARAMETERS.ban_resnet

# relative difference from the paper where its figure was not found, and how the reading that was taken explains it
UNEXPLAINED = {
    # 18 units of 33 with the last compression that 90-60, 80-80 and 80-120 have to have; the text says 6.5, and 116-33
    "DenseNet-112-33": (0.17, 0.19),
    # 7 units of 120; its three deeper siblings agree
    "DenseNet-90-60, 0.5 × depth": (0.0, 0.01),
    # narrower ones agree, and none of the rules that fit them makes one five times as large as the teacher
    "DenseNet-90-60, 1.5 × compression": (-0.57, -0.55),
    # no unit tried between the ends that fit the four wide ones costs 2.4 times as much at twice the channels
    "BAN-Pre-ResNet-14-0.5": (-0.24, -0.22),
    "BAN-Pre-ResNet-14-1": (0.14, 0.16),
}

SMALL = [
    (wide_resnet, {"depth": 16, "width": 1}, 64),
    (densenet_bc, {"depth": 22, "growth": 12}, 69),
    (densenet_bc, {"depth": 22, "growth": 12, "ratio": 0.5}, 69),
    (densenet_bc, {"depth": 22, "growth": 12, "squeezed": True}, 34),
    (densenet_bc, {"depth": 40, "growth": 6, "stem": 24}, 69),
    (ban_resnet, {"units": 3, "teacher_depth": 22, "teacher_growth": 12}, 69),
    (ban_resnet, {"units": 2, "ratio": 0.5, "block": "basic", "teacher_depth": 22, "teacher_growth": 12}, 69),
    (ban_resnet, {"units": 1, "teacher_depth": 22, "teacher_growth": 12, "squeezed": True}, 34),
]
each_small = pytest.mark.parametrize(("factory", "arguments", "features"), SMALL)


@pytest.mark.thorough
def test_parameters() -> None:
    for name in ROWS:
        row = ROWS[name]
        if name not in UNEXPLAINED:
            assert row.agrees()
        else:
            low, high = UNEXPLAINED[name]
            assert not row.agrees()
            assert low < row.difference() < high
            assert row.remark


def test_parameters_of_a_small_member() -> None:
    assert sum(p.numel() for p in wide_resnet(16, 1, classes=10).parameters()) == 175066


@each_small
def test_shapes(factory: Callable[..., nn.Module], arguments: dict[str, Any], features: int) -> None:
    body, teacher = factory(**arguments), factory(**arguments, classes=7)
    for size in (16, 32):
        x = torch.randn(2, 3, size, size)
        assert body(x).shape == (2, features)
        assert teacher(x).shape == (2, 7)


@each_small
def test_a_body_is_a_teacher_without_classifier(
    factory: Callable[..., nn.Module], arguments: dict[str, Any], features: int
) -> None:
    body, teacher = (factory(**arguments, classes=classes).state_dict() for classes in (0, 7))
    assert teacher.keys() - body.keys() == {"classifier.weight", "classifier.bias"}
    assert {name: t.shape for name, t in body.items()} == {name: teacher[name].shape for name in body}
    assert teacher["classifier.weight"].shape == (7, features)


@pytest.mark.thorough
def test_ban_resnet_shares_its_teachers_ends() -> None:
    for block in ["bottleneck", "basic"]:
        for depth, growth in [(22, 12), (90, 60)]:
            for squeezed in [False, True]:
                with torch.device("meta"):
                    teacher = densenet_bc(depth, growth, classes=10, squeezed=squeezed)
                    student = ban_resnet(1, 0.5, block, depth, growth, classes=10, squeezed=squeezed)
                for name in ("stem.weight", "classifier.weight", "classifier.bias"):
                    assert student.get_parameter(name).shape == teacher.get_parameter(name).shape
                # and what the transitions leave, too
                for stage in (1, 2):
                    left = (
                        network.get_parameter(f"stages.{stage}.0.conv.weight").shape[0]
                        for network in (teacher, student)
                    )
                    assert len(set(left)) == 1


@each_small
def test_a_body_can_be_taken_apart(factory: Callable[..., nn.Module], arguments: dict[str, Any], features: int) -> None:
    body, x = factory(**arguments).eval(), torch.randn(2, 3, 16, 16)
    for at in (last_stage_of(body), "stages.2"):
        parts = split(body, at)
        torch.testing.assert_close(parts.tail(parts.bridge(parts.trunk(x))), body(x))


@pytest.mark.parametrize(("factory", "arguments"), [(wide_resnet, {"depth": 9}), (ban_resnet, {"units": 0})])
def test_refuses_what_has_no_units(factory: Callable[..., nn.Module], arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="or more"):
        factory(**arguments)
