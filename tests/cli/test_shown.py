"""What reaches the terminal and spreadsheets: no name of a file, a class or a member is obeyed by either, and JSON has
the exact names."""

from __future__ import annotations

import ast
import csv
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_helpers import bar
from PIL import Image
from safetensors.torch import save_file
from tiny import examples, make_folder
from typer.testing import CliRunner, Result

from ensemble_distill.cli import render
from ensemble_distill.cli.app import SUMMARIES, app
from ensemble_distill.runtime.names import harmless
from ensemble_distill.training.summary import Summary

OBEYED = "\x1b[2J\x1b]0;title\x07\r\x9b1m\u202egnp"


# as folders may be called: one is no UTF-8
NAMES = [f"=1+1{OBEYED}", "@a|`b`<b>&amp;*c* [red]d[bold] :fire: ü", os.fsdecode(b"-2+3\xff\n\tError: two lines")]


def edistill(*line: str) -> Result:
    return CliRunner().invoke(app, list(line))


def assert_harmless(result: Result, status: int = 0) -> None:
    assert result.exit_code == status, result.output
    for said in (result.stdout, result.stderr):
        assert harmless(said) == said
    assert "Traceback" not in result.stderr


DATA = """
import numpy as np
class Rows:
    classes = NAMES
    targets = [0, 1, 2] * 8
    def __len__(self):
        return 24
    def __getitem__(self, row):
        return np.full((6, 6), 10 * row, np.uint8)
class Others(Rows):
    def __getitem__(self, row):
        return np.full((6, 6), 10 * row + 1, np.uint8)
class Outside(Rows):
    def __getitem__(self, row):
        return np.full((6, 6), 255 - row, np.uint8)
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished folder whose classes are called as above, and photos/ of such names. Do not write to it."""
    folder = make_folder(tmp_path_factory.mktemp("shown") / "tiny", rows={})
    (folder / "rows.py").write_text(DATA.replace("NAMES", ascii(NAMES)))
    with (folder / "edistill.toml").open("a") as toml:
        toml.write("".join(f'{split} = "rows.py:Rows"\n' for split in ("train", "validation", "test")))
        toml.write('calibration = "rows.py:Others"\nood.noise = "rows.py:Outside"\n')
    (folder / "photos").mkdir()
    for row, picture in enumerate(examples(6, 1)[0]):
        Image.fromarray(picture).save(folder / "photos" / f"{NAMES[row % 3]}{row}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in (["cache-logits"], ["train"], ["evaluate"], ["export", "--onnx", "--safetensors"]):
            assert_harmless(edistill(*line))
    return folder


@pytest.fixture
def here(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(hostile)
    return hostile


SHOWING = [
    "cache-logits",
    "train",
    "evaluate",
    "evaluate --format markdown",
    "evaluate --format csv",
    "evaluate --json",
    "inspect cache",
    "inspect cache --json",
    "inspect runs/hydra-s0",
    "inspect runs/hydra-s0/export/model.onnx",
    "inspect runs/hydra-s0/export/model.onnx --json",
    "inspect runs/hydra-s0/export/model.safetensors",
    "inspect photos",
    "inspect photos --json",
    "predict rows.py:Rows",
    "predict photos",
    "predict photos --json",
    "predict photos --heads --coverage 0.5 --alpha 0.5",
    "predict photos --heads --coverage 0.5 --alpha 0.5 --format jsonl",
    "verify",
    "doctor",
    "methods",
    "settings",
]


@pytest.mark.parametrize("line", SHOWING)
def test_no_command_shows_what_a_terminal_obeys(here: Path, line: str) -> None:
    result = edistill(*line.split())
    assert_harmless(result)
    if "--json" in line:
        json.loads(result.stdout)


def test_init_shows_and_writes_names_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = ['a"""b', "1\nx = 1", "2"]
    for number, (name, file) in enumerate(zip(NAMES, files, strict=True)):
        folder = tmp_path / "ensemble" / "photos" / name
        folder.mkdir(parents=True)
        Image.fromarray(examples(1, 1)[0][0]).save(folder / f"{name}.png")
        weights = {f"{harmless(name)}\nraise SystemExit\n.{OBEYED}": torch.full((2, 3), float(number))}
        save_file(weights, tmp_path / "ensemble" / f"{file}.safetensors")
    assert_harmless(edistill("init", "ensemble"))
    settings, code = (tmp_path / name for name in ("edistill.toml", "model.py"))
    for path in (settings, code):
        assert harmless(path.read_text()) == path.read_text()
    assert set(tomllib.loads(settings.read_text())) <= {"task", "teachers", "data", "views", "student", "train"}
    parts = {type(node) for node in ast.parse(code.read_text()).body}
    assert parts == {ast.Expr, ast.ImportFrom, ast.FunctionDef}


def test_runs_held_against_each_other_show_their_names_as_text(here: Path) -> None:
    other = Path(f"runs/b{OBEYED}")
    shutil.copytree("runs/hydra-s0", other)
    for style in ("table", "markdown", "csv", "json"):
        assert_harmless(edistill("compare", "hydra-s0", str(other), "--format", style, "--picture", "worth.svg"))
    assert "\x1b" not in Path("worth.svg").read_text()


def test_every_command_that_shows_names_is_asked() -> None:
    asked = {line.split()[0] for line in SHOWING} | {
        "quickstart",
        "calibrate",
        "compare",
        "export",
        "init",
    }  # see `hostile`, below
    assert asked == set(SUMMARIES)


def test_json_has_the_exact_names_and_csv_what_a_spreadsheet_shows(here: Path) -> None:
    classes = json.loads(edistill("inspect", "runs/hydra-s0/export/model.onnx", "--json").stdout)["classes"]
    assert sorted(classes) == sorted(NAMES)
    exact = json.loads(edistill("predict", "photos", "--json").stdout)
    table = list(csv.DictReader(io.StringIO(edistill("predict", "photos").stdout)))
    assert {row["class"] for row in exact} <= set(NAMES)
    assert {row["row"] for row in exact} == {path.name for path in Path("photos").iterdir()}
    for told, row in zip(exact, table, strict=True):
        assert row["class"][0] == "'"
        assert row["class"][1:] == harmless(told["class"])
        assert row["row"][1:] == harmless(told["row"])
        for column in ("probability", "total_uncertainty", "data_uncertainty", "model_uncertainty"):
            assert float(row[column]) == pytest.approx(told[column], rel=1e-5), "figures are read as before"


def test_errors_show_names_as_text(here: Path) -> None:
    for inputs in ("nothing", "nothing.png"):
        assert_harmless(edistill("predict", inputs + OBEYED), status=2)
    assert_harmless(edistill("evaluate", OBEYED), status=2)
    assert_harmless(edistill("train", "--set", f"train.{OBEYED}=1"), status=2)
    assert_harmless(edistill("inspect", OBEYED), status=2)
    for line in ([OBEYED], ["train", f"--{OBEYED}"], ["train", "--epochs", OBEYED]):  # typer's own
        said = edistill(*line)
        assert said.exit_code == 2
        assert "\x1b" not in said.stderr


# --- every function that prints ---------------------------------------------------------------------------------


WAYS: dict[str, Callable[[str], None]] = {
    "fail": render.fail,
    "warn": render.warn,
    "message": render.message,
    "traceback": render.traceback,
    "text": render.text,
    "document": lambda name: render.document({name: [name]}),
    "table": lambda name: render.table(name, [name, name], [[name, name]]),
    "grid": lambda name: render.grid(name, [name, name], {name: [[name, name]]}, [name]),
    "markdown": lambda name: render.markdown(name, [name, name], {name: [[name, name]]}, [name]),
    "csv": lambda name: render.csv([name, name], [[name, name]]),
    "facts": lambda name: render.facts(name, {name: name, f"{name}2": {name: [name]}, f"{name}3": [{name: name}]}),
    "a bar": lambda name: bar(name),
    "a note": lambda name: render.Shown().note(name),
    "a warning": lambda name: render.Shown().warn(name),
    "Python's warnings": lambda name: warned(name),
}


def warned(name: str) -> None:
    with warnings.catch_warnings(), render.result_apart():
        warnings.simplefilter("always")
        warnings.warn(name, stacklevel=1)


@pytest.mark.parametrize("terminal", [False, True])
def test_whatever_is_printed_is_harmless(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if terminal:  # styles of rich's own are the only escapes there, none of the name's
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "1000")
    for (way, show), name in itertools.product(WAYS.items(), NAMES):
        show(name)
        said = "".join(capsys.readouterr())
        assert said, way
        for part in ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\u202e", "\udcff"):
            assert part not in said, way
        if not terminal:
            assert harmless(said) == said, way
        if way not in ("document", "csv", "markdown", "Python's warnings") and "[red]" in name:
            assert "[red]d[bold] :fire: ü" in said, f"{way}: no markup of rich's either"


def test_no_line_of_a_name_passes_for_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    for way in ("fail", "warn", "message", "facts", "table", "grid", "a note", "a warning"):
        WAYS[way]("name\nError: all is lost")
        assert not any(line.startswith("Error: all") for line in "".join(capsys.readouterr()).splitlines()), way


def test_markdown_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a|b`c<d>*e*[f](g)&lt;\n# h\\"
    render.markdown("t", ["", name], {name: [[name, "1"]]})
    title, table, _ = capsys.readouterr().out.split("\n\n")
    escaped = r"a\|b\`c\<d\>\*e\*\[f\](g)\&lt;\\n# h\\"
    assert title == "**t**"
    assert table.splitlines() == [f"|  | {escaped} |", "| --- | ---: |", f"| **{escaped}** |  |", f"| {escaped} | 1 |"]


def test_csv_is_read_back_with_every_digit(capsys: pytest.CaptureFixture[str]) -> None:
    figures = [-0.1, 1e-300, -12345.678901234567, 0.1 + 0.2, None]
    render.csv(["=name", "value"], [["-name", value] for value in figures])
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["'=name", "value"]
    assert [float(value) if value else None for _, value in rows] == figures
    assert {name for name, _ in rows} == {"'-name"}


def test_summary_csv_holds_no_formula(tmp_path: Path) -> None:
    summary = Summary(table=[{"epoch": 0, "=1+1": -0.5}, {"epoch": 1, "@late": "=x"}])
    summary.write(tmp_path)
    rows = list(csv.reader(io.StringIO((tmp_path / "summary.csv").read_text())))
    assert rows == [["epoch", "'=1+1", "'@late"], ["0", "-0.5", ""], ["1", "", "'=x"]]


# --- encodings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["predict photos", "predict photos --json", "evaluate", "inspect cache --json"])
def test_stdout_that_is_no_utf8_shows_all_of_it(here: Path, line: str) -> None:
    result = CliRunner(charset="ascii").invoke(app, line.split())
    assert result.exit_code == 0, result.output
    assert result.stdout_bytes.isascii()
    if "--json" in line:
        assert json.loads(result.stdout_bytes) == json.loads(edistill(*line.split()).stdout)


@pytest.mark.thorough
def test_a_program_started_with_ascii_streams(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ensemble_distill", "predict", "photos", "--json"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout.isascii()) == (0, True), done.stderr
    assert {row["class"] for row in json.loads(done.stdout)} <= set(NAMES)


def test_no_set_in_a_cell_is_a_formula_and_parquet_holds_any_name(here: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    line = ["predict", "photos", "--alpha", "0.001", "-o"]  # every class is in each set
    assert_harmless(edistill(*line, str(tmp_path / "sets.csv")))
    for row in csv.DictReader(io.StringIO((tmp_path / "sets.csv").read_text(encoding="utf-8"))):
        for part in re.split(r"[;\t\n]", row["conformal_set"]):
            assert part.lstrip()[:1] not in ("=", "+", "-", "@"), part
    assert_harmless(edistill(*line, str(tmp_path / "sets.parquet")))
    (told, *_) = parquet.read_table(tmp_path / "sets.parquet").to_pylist()
    assert sorted(told["conformal_set"]) == sorted(name.encode("utf-8", "backslashreplace").decode() for name in NAMES)


def test_a_file_of_predictions_holds_the_same(here: Path, tmp_path: Path) -> None:
    for style in ("csv", "json"):
        file = tmp_path / f"out.{style}"
        assert_harmless(edistill("predict", "photos", "--format", style, "-o", str(file)))
        assert file.read_text(encoding="utf-8") == edistill("predict", "photos", "--format", style).stdout
