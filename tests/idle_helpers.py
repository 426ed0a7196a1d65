"""A source and a member as the rules of idle settings see them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from ensemble_distill.facts import Preprocessing

GRAY = Preprocessing((6, 6), (0.5,), (0.5,))


def source(kind: str = "pixels", labels: bool = True) -> Any:
    return SimpleNamespace(kind=kind, labels=np.zeros(3, np.int64) if labels else None)


def teacher(
    bare: bool = True, model: str = "model.py:make", preprocessing: Preprocessing | None = GRAY, name: str = "member-0"
) -> Any:
    return SimpleNamespace(bare=bare, member=SimpleNamespace(name=name, model=model, preprocessing=preprocessing))
