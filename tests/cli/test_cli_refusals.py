"""The command line when something is wrong: the user's mistakes, interrupts and bugs, and the status of each."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from cli_helpers import message_of
from typer.testing import CliRunner, Result

from ensemble_distill.cli.app import SUMMARIES, app

TRAIN_QUICK = "train --epochs 8 --set views.count=2 --device cpu"


def edistill(line: str) -> Result:
    return CliRunner().invoke(app, shlex.split(line))


def refused(line: str) -> str:
    """The one message of a refusal."""
    result = edistill(line)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return message_of(result.stderr)


@pytest.fixture
def here(digits: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(digits)
    return digits


# --- the user's mistakes ----------------------------------------------------------------------------------------


def test_a_mistake_is_one_message_and_status_2(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "ensemble_distill", "evaluate"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "Error: There is no edistill.toml here.\n\n"
        "hint: Pass -c FILE, or run edistill quickstart for a folder with a working one to edit.\n"
    )


def test_every_command_asks_for_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in sorted(set(SUMMARIES) - {"quickstart", "methods", "settings", "inspect", "verify", "init", "doctor"}):
        monkeypatch.chdir(tmp_path)
        asked = "Pass -m FILE.onnx" if name == "predict" else "There is no edistill.toml here"
        assert asked in refused({"predict": "predict x.npz", "compare": "compare one two"}.get(name, name))
        assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_told_in_one_line(here: Path) -> None:
    for line, told in [
        ("train --epochs -1", r"Error: train\.epochs is -1: input should be greater than or equal to 0\."),
        ("train --sched step", r"train\.sched is 'step': input should be 'cosine', 'tanh'"),
        ("train --set train.epoch=3", r"unknown key train\.epoch\. Did you mean train\.epochs\?"),
        ("train --set epochs", r"--set epochs: write KEY=VALUE"),
        ("train --set data.train.rows=r.npy", r"--set data\.train\.rows: train is '.+train\.npz', not a table"),
        ("train --method hydrant", r"train\.method is 'hydrant', which is not a method\. Did you mean hydra\?"),
        ("train --set method.heat=2", r"method\.heat is not an option of hydra\. Its options are temperature, "),
        ("train --set method.temperature=0", r"method\.temperature is 0: "),
        ("cache-logits --device warp", r"Device 'warp' cannot be used: .+ Try --device cpu or auto"),
        ("cache-logits --dtype bfloat16", r"cache\.dtype is 'bfloat16'"),
        ("evaluate nothing", r"There is no run nothing\. .+: hydra-s0\)"),
        ("evaluate --split ood", r"data\.ood is not set \(there are: train, validation, test, calibration, ood/qu"),
        ("export", r"No format was requested\. Pass --onnx, --safetensors, or both\."),
        ("evaluate --json --format csv", r"--json and --format csv are two formats for one result\. Leave one"),
        ("train --log jsonll", r"output\.log has 'jsonll', which is not a log\. Did you mean jsonl\?"),
        ("export model.py --onnx", r"model\.py is a file, and no run\. .+: hydra-s0\)"),
        ("export --onnx --opset 99", r"--opset is 99, and onnx .+ writes 7 to \d+\. Give one"),
        ("export nothing --onnx", r"There is no run nothing\."),
        ("inspect nothing", r"There is no nothing\. Give a run, a cache, an \.onnx file"),
        ("inspect model.py", r"model\.py is not a run, cache or exported file\. As teachers: .+ As data: "),
        ("verify data", r"data holds no cache, no run and no chain\."),
        ("predict nothing.png", r"There is no nothing\.png\."),
        ("predict data/test.npz -m nothing.onnx", r"There is no nothing\.onnx\. Run edistill export --onnx"),
        ("quickstart .", r"\. exists and is not empty\. Give quickstart a new folder: edistill quickstart DIR\."),
    ]:
        assert re.search(told, refused(line))


def test_a_run_made_with_other_settings_is_named_by_key(here: Path) -> None:
    for line, key, there, now in [
        ("train --epochs 9", "train.epochs", "8", "9"),
        ("train --lr 0.125", "train.lr", r"[\d.]+", "0.125"),
        ("train --set method.temperature=3", "method.temperature", r"\(default\)", "3"),
        ("train --set student.kwargs.width=32", "student.kwargs", "{'width': 64}", "{'width': 32}"),
    ]:
        weights = (here / "runs/hydra-s0/student.safetensors").read_bytes()
        flag, *more = line.split()[1:]
        quick = TRAIN_QUICK if key != "train.epochs" else TRAIN_QUICK.replace("--epochs 8 ", "")
        told = refused(f"{quick} {flag} {' '.join(more)}")
        assert re.search(rf"hydra-s0 was made with {re.escape(key)} = {there}, but now it is {re.escape(now)}\.", told)
        assert told.endswith("Choose another --name, set it back, or pass --overwrite.")
        assert (here / "runs/hydra-s0/student.safetensors").read_bytes() == weights


def test_a_cache_made_with_other_settings_is_named_by_key(here: Path) -> None:
    for line, key in (
        ("cache-logits --dtype float32", "cache.dtype"),
        ("cache-logits --batch-size 100", "cache.batch-size"),
        ("cache-logits --set views.seed=1", "views.seed"),
        ("cache-logits --set views.transform=noise", "views.transform"),
        ("cache-logits --set data.test=data/train.npz", "data.test"),
    ):
        assert key in refused(line), line


def test_a_damaged_cache_keeps_stdout_a_document(here: Path) -> None:
    record = next((here / "cache/records/test").glob("*.npy"))
    record.write_bytes(record.read_bytes()[:-1] + b"?")
    result = edistill("verify --json")
    assert result.exit_code == 2
    assert record.name in json.loads(result.stdout)["problems"][0]
    told = r"Error: cache is damaged: .+ Delete those files and run edistill cache-logits"
    assert re.search(told, message_of(result.stderr))


# --- interrupts and bugs ----------------------------------------------------------------------------------------


def raising(error: BaseException) -> Any:
    def work(*_: Any, **__: Any) -> NoReturn:
        raise error

    return work


@pytest.mark.parametrize("name", ["cache-logits", "train", "evaluate"])
def test_an_interrupt_is_status_130(here: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module = name.replace("-", "_")
    monkeypatch.setattr(f"ensemble_distill.workflows.{module}.{module}", raising(KeyboardInterrupt()))
    result = edistill(name)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "Interrupted. What was finished is kept; run the same command to continue.\n"


def test_nan_never_leaves_as_json(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(to_json=lambda: {"nll": float("nan")})
    monkeypatch.setattr("ensemble_distill.workflows.evaluate.evaluate", lambda *_, **__: found)
    result = edistill("evaluate --json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "This is a bug in edistill" in result.stderr
    assert "ValueError: Out of range float values are not JSON compliant" in result.stderr
