"""Weights into modules: every key, any precision, and misfits told by what differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from teachers_helpers import lowered, net
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.teachers import fit


def test_weights_of_another_precision_become_the_modules() -> None:
    module, state = net(), lowered(net().state_dict())
    fit.load_weights(module, state, "m")
    assert module[0].weight.dtype == torch.float32
    assert torch.equal(module[0].weight, state["0.weight"].float())


def test_weights_saved_before_batchnorm_counted_are_accepted() -> None:
    state = {key: value + 1 for key, value in net().state_dict().items() if "num_batches" not in key}
    module = net()
    assert state.keys() < module.state_dict().keys(), "there is a BatchNorm"
    fit.load_weights(module, state, "m")
    assert all(torch.equal(module.state_dict()[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.bias"), r"missing from the checkpoint: 0\.bias\. Check"),
        (lambda s: s.update(extra=torch.ones(1)), r"not in the module: extra\. Check"),
        (lambda s: s.update({f"x{i}": torch.ones(1) for i in range(5)}), "x0, x1, x2 and 2 more"),
        (
            lambda s: (s.pop("0.bias"), s.update({"0.weight": torch.ones(2, 2)})),
            r"missing from the checkpoint: 0\.bias; "
            r"of another shape: 0\.weight is \(2, 2\) in the checkpoint, \(4, 5\) in the module",
        ),
        (lambda s: s.update(net(width=6).state_dict()), "of another shape.*and 4 more"),
    ],
)
def test_a_misfit_is_told_by_its_keys(change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    state = dict(net().state_dict())
    change(state)
    with pytest.raises(EdistillError, match=rf"(?s)member-1 does not fit its module.*{message}") as error:
        fit.load_weights(net(), state, "member-1")
    assert "teachers.model-kwargs" in str(error.value)


def test_a_misfit_in_the_classes_alone_is_called_that() -> None:
    with pytest.raises(EdistillError, match=r"trained on 7 classes, but its module is built for 3.*num_classes to 7"):
        fit.load_weights(net(), net(classes=7).state_dict(), "m")
