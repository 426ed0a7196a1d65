"""Precision is what the manifest says, whatever a model's code asks torch for."""

from __future__ import annotations

import pytest
import torch

from ensemble_distill.runtime.devices import whole_float32


@pytest.fixture
def _restored() -> object:
    before = torch.get_float32_matmul_precision()
    yield None
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("asked", ["highest", "high", "medium"])
def test_float32_is_whole_within_and_as_it_was_behind(asked: str) -> None:
    torch.set_float32_matmul_precision(asked)
    tf32 = torch.backends.cudnn.allow_tf32
    with whole_float32():
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == asked
    assert torch.backends.cudnn.allow_tf32 == tf32


@pytest.mark.usefixtures("_restored")
def test_a_failure_within_leaves_it_as_it_was() -> None:
    torch.set_float32_matmul_precision("medium")
    with pytest.raises(KeyError), whole_float32():
        raise KeyError
    assert torch.get_float32_matmul_precision() == "medium"
