"""The GPU's checks hold where the device is the CPU once more, and fail where something differs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def gpu() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        for name in ("model", "gpu"):  # other examples have files of these names
            patch.setitem(sys.modules, name, None)
            del sys.modules[name]
        return importlib.import_module("gpu")


@pytest.mark.slow
def test_the_cpu_beside_itself(gpu: Any, digits: Path) -> None:
    found = gpu.checks(digits, "cpu")
    assert len(found) == 7
    assert all(check["held"] and check["difference"] == 0 for check in found.values())


@pytest.mark.thorough
def test_what_differs_is_seen(gpu: Any, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(digits / "runs" / "hydra-s0" / "student.safetensors")
    other = digits / "runs" / "other"
    other.mkdir()
    save_file({key: 1.1 * values for key, values in weights.items()}, other / "student.safetensors")
    assert gpu.differing_weights(digits, "hydra-s0", "other") == pytest.approx(0.1, rel=1e-4)
    found: dict[str, Any] = {}
    gpu.tell(found, "weights", 0.1, gpu.WEIGHTS)
    gpu.tell(found, "no number", np.nan, gpu.WEIGHTS)
    assert [check["held"] for check in found.values()] == [False, False]
