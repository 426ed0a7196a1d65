"""JSON documents as records: they are held to the types, and a message says where, what, and what should be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Calibration, MadeFrom, Member, Size
from ensemble_distill.runtime.records import GIVEN, parsed


@dataclass(frozen=True)
class Inner:
    share: float
    sizes: tuple[Size, ...] = ()

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ValueError(f"share is {self.share}, and at most 1")
        if self.share < 0:
            raise EdistillError(f"share is {self.share}. Give one above 0.")


@dataclass(frozen=True)
class Outer:
    owner: Annotated[object, GIVEN]
    inner: Inner | None
    options: Mapping[str, Any]


def test_a_record_is_what_the_document_says() -> None:
    owner = object()
    said = {"inner": {"share": 1, "sizes": [2, 3]}, "options": {"list": [1, 2.5, None]}, "later": "passed over"}
    found = parsed(Outer, said, owner=owner)
    assert found == Outer(owner, Inner(1.0, (2, 3)), {"list": [1, 2.5, None]})
    assert found.owner is owner
    assert isinstance(found.options["list"], list)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"inner": None}, "options is missing"),
        ({"inner": {"share": "1"}, "options": {}}, "inner.share is '1': "),
        ({"inner": {"share": True}, "options": {}}, "inner.share is True: "),
        ({"inner": {"share": 0.5, "sizes": [1, 0]}, "options": {}}, "inner.sizes.1 is 0: "),
        ({"inner": {"share": 0.5, "sizes": [1.5]}, "options": {}}, "inner.sizes.0 is 1.5: "),
        ({"inner": {"share": 2.0}, "options": {}}, "inner: share is 2.0, and at most 1"),
        ({"inner": {"share": -1.0}, "options": {}}, "share is -1.0. Give one above 0"),
        ({"inner": None, "options": "x" * 99}, f"options is '{'x' * 59}…: "),
        (7, "it is 7: "),
        (None, "it is None: "),
    ],
)
def test_what_is_none_is_told_by_its_place_and_value(said: object, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        parsed(Outer, said, owner=1)


@pytest.mark.thorough
def test_what_is_nested_too_deeply_is_told() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        parsed(Outer, {"inner": None, "options": {"deep": deep}}, owner=1)


@pytest.mark.parametrize(
    ("kind", "said", "told"),
    [
        (Calibration, {"temperature": 1.0, "spread": 1.0}, "variance"),  # what was not fitted is not 1
        (Calibration, {"temperature": 1.0, "spread": 1.0, "variance": float("nan")}, "variance is nan"),
        (Calibration, {"temperature": 1.0, "spread": 0.0, "variance": 1.0}, "spread is 0"),
        (Calibration, {"temperature": 1.0, "spread": 1.0, "variance": 1.0, "more": 1.0}, "more is 1.0"),
        (MadeFrom, {"weights": "0" * 64}, "calibration is missing"),
        (MadeFrom, {"weights": 7, "calibration": None}, "weights is 7"),
        (Member, {"name": "../m", "sha256": "0" * 64}, "../m"),
        (Member, {"name": "m", "sha256": "0" * 64, "class_order": [0, 0]}, "(0, 0)"),
    ],
)
def test_a_fact_that_nobody_wrote_is_refused(kind: Any, said: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        parsed(kind, said)
