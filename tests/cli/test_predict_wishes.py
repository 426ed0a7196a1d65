"""What `predict` says besides: each head, who abstains, and in which form."""

from __future__ import annotations

import csv
import io
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from scipy.special import softmax
from typer.testing import CliRunner, Result

from ensemble_distill.cli.app import app

MODEL = "runs/hydra-s0/export/model.onnx"
ROWS = 12


def predict(line: str) -> Result:
    return CliRunner().invoke(app, shlex.split(f"predict {line}"))


@pytest.fixture
def here(digits_session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an exported student and an `.npz`."""
    (tmp_path / MODEL).parent.mkdir(parents=True)
    shutil.copy(digits_session / MODEL, tmp_path / MODEL)
    np.savez(tmp_path / "some.npz", x=np.load(digits_session / "data/test.npz")["x"][:ROWS])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def said(folder: Path) -> dict[str, np.ndarray]:
    """What the graph itself says, by its names."""
    x = np.load(folder / "some.npz")["x"][:, None].astype(np.float32) / 255
    session = onnxruntime.InferenceSession(folder / MODEL)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"pixel_values": (x - np.float32(0.5)) / np.float32(0.5)}), strict=True))


def test_heads_say_what_the_graph_says(here: Path) -> None:
    rows = rows_of(predict(f"some.npz -m {MODEL} --heads").stdout)
    p = softmax(said(here)["head_logits"].astype(np.float64), axis=-1)
    assert len(rows) == ROWS
    for at, row in enumerate(rows):
        for head in range(p.shape[1]):
            assert int(row[f"head {head} class"]) == p[at, head].argmax()
            assert float(row[f"head {head} probability"]) == pytest.approx(p[at, head].max(), rel=1e-4)


@pytest.mark.parametrize("by", ["total_uncertainty", "model_uncertainty"])
def test_the_more_uncertain_rows_abstain(here: Path, by: str) -> None:
    values = said(here)[by]
    threshold = float(np.median(values))
    rows = rows_of(predict(f"some.npz -m {MODEL} --abstain-above {threshold!r} --abstain-by {by}").stdout)
    assert [row["abstains"] for row in rows] == [str(bool(value > threshold)).lower() for value in values]
    assert {row["abstains"] for row in rows} == {"true", "false"}


def test_a_row_at_the_threshold_does_not_abstain(here: Path) -> None:
    """Also if the threshold, in the digits that tell a float32, is a little below it."""
    values = said(here)["total_uncertainty"]
    at, text = next((at, str(value)) for at, value in enumerate(values) if float(value) > float(str(value)))
    rows = rows_of(predict(f"some.npz -m {MODEL} --abstain-above {text}").stdout)
    assert rows[at]["abstains"] == "false"


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl", "a.ndjson", "a.parquet", "a.txt"])
def test_a_file_is_written_as_it_is_named_and_again(here: Path, name: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    wanted = json.loads(predict(f"some.npz -m {MODEL} --json").stdout)
    for _ in range(2):  # what predict wrote it may write again, wishes or none
        assert predict(f"some.npz -m {MODEL} -o {name} --heads --abstain-above 0.1").exit_code == 0
        done = predict(f"some.npz -m {MODEL} -o {name}")
        assert done.exit_code == 0, done.stderr
    content = (here / name).read_bytes()
    if name.endswith("parquet"):
        import pyarrow.parquet

        found = pyarrow.parquet.read_table(here / name).to_pylist()
    elif name.endswith(".json"):
        found = json.loads(content)
    elif name.endswith("jsonl") or name.endswith("ndjson"):
        found = [json.loads(line) for line in content.splitlines()]
    else:
        assert [row["class"] for row in rows_of(content.decode())] == [row["class"] for row in wanted]
        return
    assert found == wanted


def test_a_format_that_is_asked_for_goes_before_the_name(here: Path) -> None:
    assert predict(f"some.npz -m {MODEL} -o a.json --format csv").exit_code == 0
    assert (here / "a.json").read_text().startswith("row,class")


@pytest.mark.parametrize("threshold", ["nan", "inf", "-0.5"])
def test_a_threshold_that_marks_nothing_in_silence_is_refused(here: Path, threshold: str) -> None:
    done = predict(f"some.npz -m {MODEL} --abstain-above {threshold}")
    assert done.exit_code == 2
    assert threshold in done.stderr
    assert "--abstain-above" in done.stderr


def test_parquet_is_not_printed(here: Path) -> None:
    done = predict(f"some.npz -m {MODEL} --format parquet")
    assert done.exit_code == 2
    assert "-o predictions.parquet" in done.stderr


def test_a_parquet_of_others_is_kept(here: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.table({"row": [1]}), here / "a.parquet")
    before = (here / "a.parquet").read_bytes()
    assert predict(f"some.npz -m {MODEL} -o a.parquet").exit_code == 2
    assert (here / "a.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--coverage 1.5", "--coverage is 1.5"),
        ("--coverage nan", "--coverage is nan"),
        ("--alpha 0", "--alpha is 0.0"),
        ("--abstain-above -1", "--abstain-above is -1.0"),
        ("--abstain-by model_uncertainty", "--abstain-by model_uncertainty"),
        ("--json --format csv", "--format csv"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_with_a_hint(here: Path, flags: str, told: str) -> None:
    result = predict(f"some.npz -m {MODEL} -o out.csv {flags}")
    assert (result.exit_code, result.stdout) == (2, "")
    wrong, hint = result.stderr.split("\n\nhint: ")
    assert told in " ".join(wrong.split())
    assert hint.strip()
    assert not Path("out.csv").exists()


def test_the_folder_of_an_export_is_its_file(here: Path) -> None:
    by_file = predict(f"some.npz -m {MODEL}").stdout
    assert by_file
    assert predict(f"some.npz -m {Path(MODEL).parent}").stdout == by_file
    Path(MODEL).parent.rename("moved")
    assert predict("some.npz -m moved").stdout == by_file
    Path("empty").mkdir()
    refused = predict("some.npz -m empty")
    assert refused.exit_code == 2
    assert "empty holds no export/model.onnx" in refused.stderr
