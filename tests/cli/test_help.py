"""Help as a product: groups of options, examples that run, a reference that says the same, and what Tab completes."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ensemble_distill.cli import completing
from ensemble_distill.cli.app import SUMMARIES, app, load
from ensemble_distill.cli.panels import DANGEROUS, PANELS
from ensemble_distill.logs import log_names
from ensemble_distill.methods import method_names
from ensemble_distill.runtime.registry import Registry

ROOT = Path(__file__).parents[2]


def edistill(line: str) -> Result:
    return CliRunner().invoke(app, shlex.split(line))


def shown(name: str) -> str:
    return edistill(f"{name} --help").stdout


# --- groups -----------------------------------------------------------------------------------------------------


def test_what_is_dangerous_stands_by_itself_and_last() -> None:
    for name in SUMMARIES:
        groups = re.findall(r"^╭─ (.+?) ─+╮$", shown(name), re.M)
        assert set(groups) <= {*PANELS, "Arguments"}, name
        text = shown(name)
        for flag in ("--overwrite", "--trust-checkpoints", "--changed"):
            if re.search(rf"^│ {flag}\b", text, re.M):
                assert groups[-1] == DANGEROUS
                assert text.index(f"│ {flag} ") > text.index(f"─ {DANGEROUS} ─"), (name, flag)


def test_training_has_its_groups() -> None:
    groups = re.findall(r"^╭─ (.+?) ─+╮$", shown("train"), re.M)
    assert groups == ["Options", "What it is for", "Training", "Machine", "Files", "Dangerous"]


def test_no_flag_is_cut_at_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in SUMMARIES:
        assert not re.search(r"--[a-z-]+…", shown(name)), name


# --- examples ---------------------------------------------------------------------------------------------------

# in the order in which somebody would give them, since some need what others make
ORDER = ("quickstart", "init", "doctor", "cache-logits", "train", "evaluate", "compare", "calibrate", "export")
ORDER += ("predict", "inspect", "verify", "methods", "settings")


def examples(name: str) -> list[str]:
    return re.findall(r"(?m)^Example: (.+)$", load(name).help)


@pytest.mark.thorough
def test_every_example_runs(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(ORDER) == sorted(SUMMARIES)
    monkeypatch.setattr("ensemble_distill.workflows.quickstart.COMMANDS", ())  # which are examples themselves
    monkeypatch.chdir(digits)
    text = (digits / "edistill.toml").read_text()
    quick = re.sub(r"(?m)^count = \d+", "count = 2", re.sub(r"(?m)^epochs = \d+", 'epochs = 8\ndevice = "cpu"', text))
    (digits / "edistill.toml").write_text(quick)
    for name in ORDER:
        assert examples(name)
        for line in examples(name):
            result = edistill(line.removeprefix("edistill "))
            assert result.exit_code == 0, f"{line}: {result.stderr}"
    assert (digits / "runs/hydra-s1/logs/train.jsonl").is_file()
    assert (digits / "worth.svg").is_file()


# --- the reference ----------------------------------------------------------------------------------------------


def test_the_reference_is_what_help_says() -> None:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "examples/reference/make.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.PLACE.read_text(encoding="utf-8") == made.reference(), "run python examples/reference/make.py"


def test_the_reference_has_every_option_that_help_has() -> None:
    text = (ROOT / "examples/reference/README.md").read_text()
    sections = dict(re.findall(r"(?ms)^## edistill (\S+)$(.*?)(?=^## |\Z)", text))
    assert list(sections) == list(SUMMARIES)
    for name, section in sections.items():
        flags = set(re.findall(r"(?m)^│ +(?:-\w +)?(--[a-z][a-z-]+)", shown(name)))
        listed = set(re.findall(r"`(--[a-z][a-z-]+)", section))
        assert flags, name
        assert flags - {"--help"} <= listed, name
        assert listed <= set(re.findall(r"--[a-z][a-z-]+", shown(name))), name


# --- Tab --------------------------------------------------------------------------------------------------------


def completed(line: str) -> list[str]:
    """What bash is offered for the last word of a line, in a process of its own as Tab starts one."""
    words = line.split(" ")
    environment = {**os.environ, "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", "from ensemble_distill.cli.app import app; app(prog_name='edistill')"],
        env={**environment, "_EDISTILL_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.thorough
def test_tab_completes(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(digits)
    assert completed("edistill ev") == ["evaluate"]
    assert completed("edistill train --method ") == list(method_names())
    assert completed("edistill train --log ") == list(log_names())
    assert completed("edistill evaluate hy") == ["hydra-s0"]
    assert completed("edistill train --teacher member-0") == [f"member-0{index}" for index in range(8)]
    assert "train.epochs=" in completed("edistill train --set train.e")
    assert completed("edistill evaluate --split te") == ["test"]
    assert completed("edistill train --sched pl") == ["plateau"]
    assert "--abstain-above" in completed("edistill predict --ab")


@pytest.mark.thorough
def test_a_shell_is_told_what_to_add() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from ensemble_distill.cli.app import app; app(prog_name='edistill')",
            "--show-completion",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "--show-completion" in edistill("--help").stdout
    assert done.returncode in (0, 2), done.stderr


def test_completion_says_nothing_where_nothing_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert completing.runs("") == completing.splits("") == []
    (tmp_path / "edistill.toml").write_text("no [ toml")
    assert completing.runs("") == completing.splits("") == []
    folder = tmp_path / "runs" / "a\x1b[2J"
    folder.mkdir(parents=True)
    (folder / "student.safetensors").write_text("")
    (tmp_path / "edistill.toml").write_text("")
    assert completing.runs("") == [], "what a terminal would obey is not offered"


@pytest.mark.parametrize(
    ("package", "name"),
    [("methods", "METHOD"), ("logs", "LOG")],
)
def test_names_are_known_without_importing_them(package: str, name: str) -> None:
    registry = Registry(f"ensemble_distill.{package}", name)
    assert registry.listed == registry.keys


def test_completing_imports_nothing_that_takes_time(digits_session: Path) -> None:
    source = (
        "import sys; from ensemble_distill.cli import completing; completing.runs(''); completing.keys('');"
        "[make()('') for make in completing.OF_KEYS.values()];"
        "print([name for name in ('torch', 'timm', 'onnxruntime', 'matplotlib') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=digits_session, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n", done.stderr


# --- near misses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("evalute", "evaluate"),
        ("train --epoch 3", "--epochs"),
        ("train --method hydar", "hydra"),
        ("train --set trian.epochs=3", "train"),
        ("train --set method.temprature=3", "temperature"),
        ("train --log tensorbord --name new", "tensorboard"),
        ("train --teacher membre-03 --name new", "member-03"),
        ("train --set student.init=membre-03 --set views.count=2 --name new", "member-03"),
        ("evaluate hydra-so", "hydra-s0"),
        ("evaluate --split tset", "test"),
        ("cache-logits --set views.transform=afine", "affine"),
    ],
)
def test_a_near_miss_is_answered_with_what_was_meant(
    digits: Path, monkeypatch: pytest.MonkeyPatch, line: str, near: str
) -> None:
    monkeypatch.chdir(digits)
    result = edistill(line)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.search(rf"^hint: Did you mean \S*{near}", result.stderr, re.M), result.stderr
