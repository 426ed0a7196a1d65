"""`inspect` of every file that a command writes: what it is, on one screen, against the file read another way."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import message_of
from safetensors import safe_open
from typer.testing import CliRunner, Result

from ensemble_distill.cli.app import app
from ensemble_distill.cli.inspected import ROWS

pytestmark = pytest.mark.thorough
QUICK = ["--set", "train.epochs=8", "--set", "views.count=2", "--set", "train.device=cpu"]
RUN = "runs/logged"


def edistill(*line: str) -> Result:
    return CliRunner().invoke(app, list(line))


def done(*line: str) -> None:
    result = edistill(*line)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def made_session(digits_session: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command has written what it can."""
    folder = Path(shutil.copytree(digits_session, tmp_path_factory.mktemp("parts") / "digits"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done("train", "--log", "jsonl", "--name", "logged", *QUICK)
        done("calibrate", "logged", *QUICK)
        done("export", "logged", "--onnx", "--safetensors", *QUICK)
        done("evaluate", "logged", "--report", "report.html", *QUICK)
        for ending in ("csv", "json", "jsonl"):
            done("predict", "data/test.npz", "-m", f"{RUN}/export/model.onnx", "-o", f"p.{ending}")
    return folder


@pytest.fixture
def made(made_session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to break."""
    copy = Path(shutil.copytree(made_session, tmp_path / "digits"))
    monkeypatch.chdir(copy)
    return copy


def told(path: str) -> dict[str, Any]:
    result = edistill("inspect", path, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_every_file_and_folder_is_known_and_fits_a_screen(made: Path) -> None:
    places = [RUN, "cache", "report.html", "report.json", "p.csv", "p.json", "p.jsonl", "edistill.toml"]
    below = [str(path.relative_to(made)) for folder in (RUN, "cache") for path in (made / folder).rglob("*")]
    some = [path for path in below if Path(path).name[0] != "." and ".v1." not in path and "/parts" not in path]
    assert len(some) > 40
    for path in [*places, *some]:
        result = edistill("inspect", path)
        assert result.exit_code == 0, (path, result.output)
        lines = result.stdout.splitlines()
        assert lines[0].startswith(f"{path}: ")
        assert len(lines) <= ROWS + 24, path
        assert result.stderr == ""


def test_predictions_are_told_in_any_format(made: Path) -> None:
    rows = list(csv.DictReader((made / "p.csv").read_text().splitlines()))
    likely = Counter(row["class"] for row in rows).most_common(1)[0]
    mean = np.mean([float(row["total_uncertainty"]) for row in rows])
    for ending in ("csv", "json", "jsonl"):
        found = told(f"p.{ending}")
        assert (found["kind"], found["what"], found["facts"]["rows"]) == ("part", "predictions", 400)
        assert found["facts"]["classes"].startswith(f"{likely[0]} ({likely[1]})")
        assert float(found["facts"]["mean total uncertainty"]) == pytest.approx(mean, rel=1e-3)
        assert [row[0] for row in found["rows"]] == ["row 0", "row 1", "row 2"]


def test_predictions_in_parquet_are_told(made: Path) -> None:
    pytest.importorskip("pyarrow")
    done("predict", "data/test.npz", "-m", f"{RUN}/export/model.onnx", "-o", "p.parquet")
    assert told("p.parquet")["facts"] == told("p.json")["facts"]


def test_a_log_is_told_by_its_first_and_last_figures(made: Path) -> None:
    lines = [json.loads(line) for line in (made / RUN / "logs/train.jsonl").read_text().splitlines()]
    found = told(f"{RUN}/logs/train.jsonl")
    assert found["facts"]["lines"] == len(lines)
    figures = {name: (first, last) for name, first, last in found["rows"]}
    assert figures["loss"] == (f"{lines[0]['loss']:.4g}", f"{lines[-1]['loss']:.4g}")


def test_a_checkpoint_says_where_it_is(made: Path) -> None:
    facts = told(f"{RUN}/checkpoint.safetensors")["facts"]
    with safe_open(made / RUN / "checkpoint.safetensors", "numpy") as file:
        state = dict(json.loads(file.metadata()["state"])["dict"])
    assert (facts["saved at step"], facts["epochs done"]) == (state["step"], 8)


def test_an_unfinished_run_says_how_to_go_on(made: Path) -> None:
    (made / RUN / "student.safetensors").unlink()
    found = told(RUN)
    assert "not finished" in found["what"]
    assert found["facts"]["saved at step"] > 0
    done(*found["next"].split()[1:])
    assert (made / RUN / "student.safetensors").is_file()


def test_a_summary_and_a_calibration_are_told(made: Path) -> None:
    rows = list(csv.reader((made / RUN / "summary.csv").read_text().splitlines()))
    found = told(f"{RUN}/summary.csv")
    assert (found["columns"], found["rows"][0], found["rows"][-1]) == (rows[0], rows[1], rows[-1])
    kept = json.loads((made / RUN / "calibration.json").read_text())
    assert told(f"{RUN}/calibration.json")["facts"]["temperature"] == kept["temperature"]


def test_an_evaluation_and_a_report_are_told(made: Path) -> None:
    kept = json.loads((made / RUN / "evaluations/test.json").read_text())
    found = told(f"{RUN}/evaluations/test.json")
    nll = next(row for row in found["rows"] if row[0] == "nll")
    assert float(nll[1 + list(kept["models"]).index("student")]) == pytest.approx(
        kept["models"]["student"]["nll"], rel=1e-3
    )
    assert found["next"] == f"edistill evaluate {RUN}"
    for name, command in (("generation-2", None), ("model.onnx", None), ("x", "edistill evaluate x")):
        (made / "said.json").write_text(json.dumps({**kept, "run": name}))
        assert told("said.json")["next"] == command
    worth = {"prediction": 4.0, "uncertainty": 0.0, "beyond": ["prediction"]}
    (made / "said.json").write_text(json.dumps({**kept, "worth": {"student": worth}}))
    facts = told("said.json")["facts"]
    assert (facts["worth in prediction"], facts["worth in uncertainty"]) == ("more than 4", "0.0")
    report = json.loads((made / "report.json").read_text())
    assert told("report.json")["facts"]["verdict"] == report["verdict"]["headline"]
    assert [name for name, _ in told("report.json")["rows"]] == list(report["figures"])
    assert told("report.html")["next"] == "edistill inspect report.json"


def test_a_record_of_a_cache_says_whether_it_is_whole(made: Path) -> None:
    path = "cache/records/test/member-03.v0.npy"
    facts = told(path)["facts"]
    assert (facts["of split"], facts["of member"], facts["view"], facts["rows"]) == ("test", "member-03", 0, 400)
    assert facts["whole"] == "yes"
    content = (made / path).read_bytes()
    (made / path).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert told(path)["facts"]["whole"].startswith("no: ")


def test_settings_are_told(made: Path) -> None:
    facts = told("edistill.toml")["facts"]
    assert (facts["task"], facts["method"], facts["cache"]) == ("classification", "hydra", "cache")


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (f"{RUN}/checkpoint.safetensors", b"{}"),
        (f"{RUN}/summary.csv", b"\xff\xfe"),
        (f"{RUN}/calibration.json", b"[]"),
        (f"{RUN}/evaluations/test.json", b'{"schema": 1, "run": "x", "split": "y", "rows": "z", "models": 3}'),
        (f"{RUN}/args.toml", b"no [ toml"),
        ("report.json", b'{"schema": 1, "run": 1, "split": 1, "rows": 1, "verdict": 1, "figures": 2}'),
        ("p.json", b'[{"row": "a", "class": "b"}, 3]'),
        ("cache/manifest.json", b"{"),
    ],
)
def test_what_is_damaged_is_one_message(made: Path, path: str, content: bytes) -> None:
    (made / path).write_bytes(content)
    result = edistill("inspect", path)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert path in message_of(result.stderr)


def test_a_table_of_somebodys_is_no_log(made: Path) -> None:
    (made / "mine.jsonl").write_text('{"step": 1, "text": "a"}\n')
    assert "mine.jsonl is a table" in message_of(edistill("inspect", "mine.jsonl").stderr)
