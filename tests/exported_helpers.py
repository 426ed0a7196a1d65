"""Exported files of every kind against each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from trusted import EVERYTHING

from ensemble_distill import export, predict
from ensemble_distill.settings import Settings
from ensemble_distill.workflows.evaluate import evaluate


def assert_every_kind_agrees(settings: Settings, run: str, inputs: str | Sequence[str]) -> None:
    """What is predicted of inputs, with each head, and the figures of `evaluate`, are those of the run to rounding."""
    files = export(settings, run, onnx=True, safetensors=True, program=True, card=False).files
    by_onnx, *others = (predict(file, inputs, heads=_several(file), trust=EVERYTHING).rows for file in files)
    for rows in others:
        assert len(rows) == len(by_onnx)
        for found, wanted in zip(rows, by_onnx, strict=True):
            assert list(found) == list(wanted)
            for name, value in wanted.items():
                close = pytest.approx(value, rel=1e-3, abs=1e-4) if isinstance(value, float) else value
                assert found[name] == close, name
    of_run = evaluate(settings, run)
    for file in files:
        found = evaluate(settings, str(file))
        for figure, value in (of_run.models["student"] or {}).items():
            close = None if value is None else pytest.approx(value, rel=1e-3, abs=1e-4)
            assert (found.models["student"] or {})[figure] == close, figure


def _several(file: Path) -> bool:
    from ensemble_distill.serving.kinds import open_file

    return open_file(file, trust=EVERYTHING).heads > 1
