"""The versions of operators and of the file format that an ONNX file is written in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.testing import assert_allclose
from runs_helpers import RUN
from tiny import refused, refused_and_kept, settings

from ensemble_distill.exporting.versions import Versions, brought_to, opset_of
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.inspect import inspect

NEWEST = onnx.defs.onnx_opset_version()
ROWS = np.linspace(-1, 1, 3 * 36, dtype=np.float32).reshape(3, 1, 6, 6)


def said(path: Path) -> list[Any]:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"pixel_values": ROWS})


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ({"opset": 18, "ir_version": 8}, (18, 8)),
        ({"ir_version": 9}, (None, 9)),  # as torch writes it
        ({"opset": 18}, (18, None)),
        ({"opset": 21}, (21, 10)),
        pytest.param({"opset": 23}, (23, 11), marks=pytest.mark.skipif(NEWEST < 23, reason="an older onnx")),
    ],
)
def test_a_file_is_written_as_asked_and_says_the_same(
    runs: Path, asked: dict[str, int], written: tuple[int | None, int | None]
) -> None:
    path = runs / RUN / "export/model.onnx"
    plain, before = onnx.load(path), said(path)
    opset, ir = written[0] or opset_of(plain), written[1] or plain.ir_version
    assert export(settings(runs), "hydra-s0", onnx=True, **asked).files == (Path(path.relative_to(runs)).absolute(),)
    model = onnx.load(path)
    assert ([entry.version for entry in model.opset_import], model.ir_version) == ([opset], ir)
    onnx.checker.check_model(model, full_check=True)
    own = [{entry.key: entry.value for entry in one.metadata_props} for one in (model, plain)]
    assert own[0].pop("edistill.sha256") != own[1].pop("edistill.sha256")
    assert own[0] == own[1]
    for now, then in zip(said(path), before, strict=True):
        assert_allclose(now, then, rtol=0, atol=1e-6)
    record = inspect(path)
    assert (record["opset"], record["ir_version"]) == ({"": opset}, ir)


def test_an_opset_that_lacks_an_operator_is_refused_and_another_is_named(runs: Path) -> None:
    with refused_and_kept(runs / RUN, "opset 17", "operator Reduce", "--opset 18"):
        export(settings(runs), "hydra-s0", onnx=True, opset=17, card=False)


def test_a_format_older_than_its_operators_is_refused(runs: Path) -> None:
    if opset_of(onnx.load(runs / RUN / "export/model.onnx")) == 20:  # an older torch writes 18
        with refused_and_kept(runs / RUN, "8", "20", "--opset 18", "--ir-version 9"):
            export(settings(runs), "hydra-s0", onnx=True, ir_version=8, card=False)
    with refused("9", "21", "--opset 20", "--ir-version 10"):
        Versions(21, 9)


@pytest.mark.parametrize(("flag", "versions"), [("--opset", (99, None)), ("--ir-version", (None, 99))])
def test_versions_that_nobody_knows_are_refused(flag: str, versions: tuple[int | None, int | None]) -> None:
    with refused(flag, "99", onnx.__version__):
        Versions(*versions)


@pytest.mark.parametrize("asked", [{"opset": 18}, {"ir_version": 9}])
def test_versions_of_no_onnx_file_are_refused(runs: Path, asked: dict[str, int]) -> None:
    flag = "--" + next(iter(asked)).replace("_", "-")
    with refused_and_kept(runs / RUN, flag, "--onnx"):
        export(settings(runs), "hydra-s0", safetensors=True, **asked)


def test_what_onnxruntime_does_not_read_is_refused(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"Unsupported model IR version: {onnx.IR_VERSION}, max supported IR version: 8")

    monkeypatch.setattr(onnxruntime, "InferenceSession", unread)
    with refused(f"IR version {onnx.IR_VERSION}", "max supported IR version: 8", "--ir-version"):
        brought_to(onnx.load(runs / RUN / "export/model.onnx"), Versions(ir=onnx.IR_VERSION))


@pytest.mark.thorough
def test_the_ensemble_is_written_as_asked(runs: Path) -> None:
    (path,) = export(settings(runs), ensemble=True, onnx=True, opset=18, ir_version=8).files
    model = onnx.load(path)
    assert (model.opset_import[0].version, model.ir_version) == (18, 8)
    assert Path(path.parent, "README.md").is_file()
