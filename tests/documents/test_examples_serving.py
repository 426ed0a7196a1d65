"""examples/serving: what it serves is what the graph says, whoever asks at the same time."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from scipy.special import softmax

HERE = Path(__file__).parents[2] / "examples" / "serving"
MODEL = "runs/hydra-s0/export/model.onnx"
NAMES = ("serve", "app", "triton_config", "precision")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """A file there by its name."""
    monkeypatch.syspath_prepend(HERE)
    yield importlib.import_module
    for name in NAMES:  # other examples have files of these names
        sys.modules.pop(name, None)


def said(folder: Path) -> dict[str, Any]:
    """What the graph says of the test rows."""
    x = np.load(folder / "data/test.npz")["x"][:, None].astype(np.float32) / 255
    session = onnxruntime.InferenceSession(folder / MODEL)
    names = ["logits", "total_uncertainty", "data_uncertainty", "model_uncertainty"]
    return dict(zip(names, session.run(names, {"pixel_values": (x - np.float32(0.5)) / np.float32(0.5)}), strict=True))


def assert_said(records: list[dict[str, Any]], wanted: dict[str, Any], rows: range) -> None:
    p = softmax(wanted["logits"].astype(np.float64), axis=1)
    for record, row in zip(records, rows, strict=True):
        assert record["class"] == str(p[row].argmax())
        assert record["probability"] == pytest.approx(p[row].max(), rel=1e-4)
        for name in ("total_uncertainty", "data_uncertainty", "model_uncertainty"):
            assert record[name] == pytest.approx(wanted[name][row], rel=1e-3, abs=1e-5)


@pytest.mark.thorough
def test_onnxruntime_and_numpy_are_enough(digits_session: Path, tmp_path: Path) -> None:
    for name in ("torch", "onnx", "ensemble_distill"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('there is no {name} here')")
    done = subprocess.run(
        [sys.executable, str(HERE / "serve.py"), str(digits_session / MODEL), str(digits_session / "data/test.npz")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert_said(records, said(digits_session), range(400))


@pytest.mark.thorough
def test_nobody_who_reads_on_is_no_error(digits_session: Path, tmp_path: Path) -> None:
    """Of more than a pipe holds the first line is read, as `head` does."""
    rows = tmp_path / "rows.npz"
    np.savez(rows, x=np.tile(np.load(digits_session / "data/test.npz")["x"], (8, 1, 1)))
    command = [sys.executable, str(HERE / "serve.py"), str(digits_session / MODEL), str(rows)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        assert json.loads(started.stdout.readline())["class"]
        started.stdout.close()
        told = started.stderr.read()
    assert (started.returncode, told) == (141, b"")


def test_pictures_in_color_and_rows_of_other_sizes(example: Any, digits_session: Path) -> None:
    student = example("serve").Student(str(digits_session / MODEL))
    gray = np.arange(2 * 64).reshape(2, 8, 8)
    assert student.ready(gray).shape == (2, 1, 8, 8)
    assert np.array_equal(student.ready(gray[..., None]), student.ready(gray))
    for other in (
        np.zeros((1, 8, 8, 3)),
        np.zeros((1, 9, 9)),
        np.zeros((1, 5)),
        np.zeros((1, 4, 16)),
        np.zeros((1, 64)),
    ):
        with pytest.raises(ValueError, match=r"\(1, 8, 8\)|8 × 8"):
            student.ready(other)


def test_levels_are_numbers_from_0_to_255(example: Any, digits_session: Path) -> None:
    student = example("serve").Student(str(digits_session / MODEL))
    for level, told in ((-1, "-1"), (256, "256"), (float("nan"), "nan"), (1e39, "inf"), ("7", "<U1"), (True, "bool")):
        with pytest.raises(ValueError, match=told):
            student.ready([[[level] * 8] * 8])
    assert student.ready([[[255] * 8] * 8]).max() == 1


@pytest.mark.thorough
def test_files_of_less_precision_are_timed_beside_the_whole_one(example: Any, tmp_path: Path) -> None:
    timed = example("precision")
    files = timed.exported(tmp_path, "test_resnet", 32)
    assert [file.name for file in files] == ["model.onnx", "model-fp16.onnx", "model-int8.onnx"]
    for rows in timed.BATCHES:
        found = timed.medians(files, rows, 32, 0.2)
        assert len(found) == 3
        assert min(found) > 0


# --- the service --------------------------------------------------------------------------------------------------


class Service:
    """The application without a network, and what its student is asked."""

    def __init__(self, module: ModuleType, file: Path, **limits: Any) -> None:
        self.app, self.batches = module.make_app(str(file), **limits), list[int]()
        self.broken, self.held = False, threading.Event()
        self.held.set()
        serve = sys.modules["serve"]
        self._ask = serve.Student.__call__

        def asked(student: Any, x: Any) -> Any:
            self.held.wait(timeout=30)
            self.batches.append(len(x))
            if self.broken:
                raise RuntimeError("the graph fails")
            return self._ask(student, x)

        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(serve.Student, "__call__", asked)

    def run(self, talk: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        import httpx

        async def all_of_it() -> Any:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with (
                self.app.router.lifespan_context(self.app),
                httpx.AsyncClient(transport=transport, base_url="http://here") as client,
            ):
                return await talk(client)

        try:
            return asyncio.run(all_of_it())
        finally:
            self.patch.undo()


@pytest.fixture
def serve(example: Any, digits_session: Path) -> Callable[..., Service]:
    for name in ("fastapi", "httpx"):
        pytest.importorskip(name, reason=f"the service of examples/serving needs {name}: the extra serving")
    module = example("app")
    return lambda **limits: Service(module, digits_session / MODEL, **limits)


def rows_of(folder: Path) -> list[Any]:
    rows: list[Any] = np.load(folder / "data/test.npz")["x"].tolist()
    return rows


def test_requests_at_the_same_time_are_one_batch_and_get_their_own_answers(serve: Any, digits_session: Path) -> None:
    rows, service = rows_of(digits_session)[:50], serve(most=16, wait=0.05)

    async def talk(client: Any) -> Any:
        return await asyncio.gather(*(client.post("/predict", json={"x": row}) for row in rows))

    answers = service.run(talk)
    assert {answer.status_code for answer in answers} == {200}
    assert_said([answer.json() for answer in answers], said(digits_session), range(50))
    assert sum(service.batches) == 50
    assert max(service.batches) <= 16
    assert len(service.batches) < 25, "most were answered with others"


def test_a_bad_row_is_refused_alone(serve: Any, digits_session: Path) -> None:
    good = {"x": rows_of(digits_session)[0]}
    bad: list[Any] = [{"x": [1, 2]}, {"x": [[1], [2, "a"]]}, {"x": "7"}, {}, {"x": []}, {"x": [[None] * 8] * 8}]
    bad += [{"x": [[level] * 8] * 8} for level in (-1, 300, "7", True, 1e39)] + [{"x": [[0] * 16] * 4}]

    async def talk(client: Any) -> Any:
        return await asyncio.gather(*(client.post("/predict", json=one) for one in [good, *bad, good]))

    first, *others, last = serve(wait=0.05).run(talk)
    assert [answer.status_code for answer in others] == [422] * len(bad)
    for answer in (first, last):
        assert_said([answer.json()], said(digits_session), range(1))


def test_a_batch_that_fails_is_told_to_its_own_and_the_next_is_answered(serve: Any, digits_session: Path) -> None:
    good, service = {"x": rows_of(digits_session)[0]}, serve()
    service.broken = True

    async def talk(client: Any) -> Any:
        failed = await client.post("/predict", json=good)
        service.broken = False
        return failed, await client.post("/predict", json=good), await client.get("/health")

    failed, after, health = service.run(talk)
    assert failed.status_code == 500
    assert_said([after.json()], said(digits_session), range(1))
    assert health.json()["shape"] == [1, 8, 8]
    assert health.json()["classes"] == [str(digit) for digit in range(10)]


def test_more_than_may_wait_are_sent_away_and_none_is_lost(serve: Any, digits_session: Path) -> None:
    good, service = {"x": rows_of(digits_session)[0]}, serve(most=2, wait=0.0, waiting=3)

    async def talk(client: Any) -> Any:
        service.held.clear()
        asked = [asyncio.create_task(client.post("/predict", json=good)) for _ in range(12)]
        while sum(task.done() for task in asked) < 3:  # who is sent away is told at once
            await asyncio.sleep(0.01)
        service.held.set()
        return await asyncio.gather(*asked)

    codes = [answer.status_code for answer in service.run(talk)]
    assert set(codes) == {200, 503}
    assert codes.count(200) == sum(service.batches) >= 3


def test_a_request_that_is_too_long_is_read_no_further(serve: Any, digits_session: Path) -> None:
    good, service = json.dumps({"x": rows_of(digits_session)[0]}).encode(), serve()
    most, sent = 1024 + 64 * 64, [0]

    async def endless() -> Any:
        while True:
            sent[0] += 1
            yield b" " * 1000

    async def talk(client: Any) -> Any:
        return [
            await client.post("/predict", content=content, headers={"Content-Type": "application/json"})
            for content in (good.ljust(most), good.ljust(most + 1), endless(), good)
        ]

    answers = service.run(talk)
    assert [answer.status_code for answer in answers] == [200, 413, 413, 200]
    assert f"{most:,}" in answers[1].json()["detail"]
    assert sent[0] <= most // 1000 + 2
    assert service.batches == [1, 1]


# --- Triton -------------------------------------------------------------------------------------------------------


def test_the_configuration_of_triton_is_that_of_the_graph(example: Any, digits_session: Path, tmp_path: Path) -> None:
    folder = example("triton_config").write(digits_session / MODEL, tmp_path, "digits")
    assert (folder / "1/model.onnx").read_bytes() == (digits_session / MODEL).read_bytes()
    text = (folder / "config.pbtxt").read_text()
    assert text.startswith('name: "digits"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 64\n')
    ends = re.findall(r'name: "(\w+)"\s+data_type: (\w+)\s+dims: \[ ([\d, -]+) \](\s+reshape: { shape: \[ \] })?', text)
    session = onnxruntime.InferenceSession(digits_session / MODEL)
    wanted = [*session.get_inputs(), *session.get_outputs()]
    assert [name for name, *_ in ends] == [end.name for end in wanted]
    assert {kind for _, kind, *_ in ends} == {"TYPE_FP32"}
    for (_, _, dims, reshape), end in zip(ends, wanted, strict=True):
        sizes = [int(size) for size in dims.split(",")]
        assert ([] if reshape else sizes) == end.shape[1:]
        assert not reshape or sizes == [1]
    assert text.count("{") == text.count("}")
    assert text.count("[") == text.count("]")
