"""A step does not wait for the device: nothing that it moved there is read back before the losses are, all at once.

There is no device here, so tensors that are moved to it are marked, and so is everything that is computed of them; to
read a marked one is what would wait.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from ensemble_distill.methods import method_names
from ensemble_distill.training.stepping import Stepping
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

READS = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.is_nonzero),
    *(Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__, Tensor.__array__),
    *(Tensor.nonzero, torch.nonzero, Tensor.masked_select, torch.masked_select, Tensor.unique, torch.unique),
    *(Tensor.equal, torch.equal, Tensor.allclose, torch.allclose, torch.bincount, Tensor.bincount),
}


class Moved(Tensor):
    """A tensor on the device, and what follows from it.

    Attributes:
        waits: what read one within a step; None outside of steps, where to read is allowed.
    """

    waits: list[str] | None = None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masked = func is Tensor.__getitem__ and any(_is_mask(part) for part in _parts(args[1]))
        if Moved.waits is not None and (func in READS or masked):
            Moved.waits.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _is_mask(part: Any) -> bool:
    return isinstance(part, Moved) and part.dtype == torch.bool


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What waited in the steps of trainings that follow."""
    found: list[str] = []
    update, to = Stepping.update, Tensor.to

    def moved(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        there = to(self, *args, **kwargs)
        device = any(isinstance(given, torch.device) for given in (*args, *kwargs.values()))
        return there.as_subclass(Moved) if device and Moved.waits is not None else there

    def watched(*args: Any, **kwargs: Any) -> None:
        Moved.waits = found
        try:
            update(*args, **kwargs)
        finally:
            Moved.waits = None

    monkeypatch.setattr(Stepping, "update", watched)
    monkeypatch.setattr(Tensor, "to", moved)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny.make_folder(tmp_path_factory.mktemp("waits") / "f", rows={"train": 24})
    cache_logits(tiny.settings(made))
    (made / "method.py").write_text(WAITING)
    return made


def of(method: str, **more: Any) -> dict[str, Any]:
    options = {"train.clip-grad": 1.0, "train.model-ema": True, "train.epochs": 3}
    return {"train.method": method, "output.name": f"waits-{method.rpartition(':')[2]}", **options, **more}


@pytest.mark.thorough
@pytest.mark.parametrize("method", method_names())
def test_no_method_waits(folder: Path, waits: list[str], method: str) -> None:
    train(tiny.settings(folder, of(method)))
    assert waits == []


WAITING = """
from ensemble_distill.methods.kd import KnowledgeDistillation
from dataclasses import replace


class Waiting(KnowledgeDistillation):
    def stages(self, options, members):
        return [replace(stage, loss=self.waiting(stage.loss)) for stage in super().stages(options, members)]

    def waiting(self, loss):
        def read(*args):
            found = loss(*args)
            return found if found.item() > -1 else None
        return read
"""


def test_one_that_waits_is_seen(folder: Path, waits: list[str]) -> None:
    train(tiny.settings(folder, of("method.py:Waiting")))
    assert set(waits) == {"item"}
