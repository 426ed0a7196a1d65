"""README.md keeps its word: its Python runs, its settings parse, its commands exist, and those marked so are run."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ensemble_distill.cli.app import SUMMARIES, app, load
from ensemble_distill.settings import load_settings, settings_from
from ensemble_distill.settings.assignments import parse_assignment

README = Path(__file__).parents[2] / "README.md"

# what a shell block may call besides edistill
SHELL = {"python", "python3", "pip", "pytest", "git", "cd", "."}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the HTML comment directly above it."""

    language: str
    text: str
    mark: str
    line: int

    @property
    def commands(self) -> Iterator[str]:
        """The commands of a console block; with prompts, what has none is output."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if any(line.startswith("$ ") for line in lines):
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in lines:
            yield from (part.strip() for part in line.partition(" #")[0].split("&&") if part.strip())


def blocks() -> list[Block]:
    text = README.read_text(encoding="utf-8")
    found = re.finditer(r"(?:^<!-- (\w+) -->\n)?^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [Block(m[2], m[3], m[1] or "", text[: m.start(2)].count("\n") + 1) for m in found]


def of(language: str, mark: str | None = None) -> list[Block]:
    return [block for block in blocks() if block.language == language and mark in (None, block.mark)]


def named(block: Block) -> str:
    return f"line {block.line}"


@pytest.fixture
def folder(digits: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared folder to work in, its settings quick."""
    text = (digits / "edistill.toml").read_text()
    for key, value in {"count": "2", "epochs": '8\ndevice = "cpu"'}.items():
        text, found = re.subn(rf"(?m)^{key} = \d+", f"{key} = {value}", text)
        assert found == 1
    (digits / "edistill.toml").write_text(text)
    monkeypatch.chdir(digits)
    return digits


def check(line: str, folder: Path) -> None:
    """Parse a line as the command would, without running it; its settings must be known keys."""
    program, *words = shlex.split(line)
    assert program == "edistill"
    if words[0].startswith("-"):
        assert CliRunner().invoke(app, words).exit_code == 0
        return
    name, *arguments = words
    assert name in SUMMARIES, f"there is no command {name}"
    try:
        context = load(name).make_context(name, arguments)
    except typer.Exit:  # --help
        return
    load_settings(folder, dict(parse_assignment(text) for text in context.params.get("assignments") or ()))


# --- what there is ----------------------------------------------------------------------------------------------


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    assert {block.language for block in blocks()} <= {"console", "python", "toml", "text"}, "text is output"
    assert {block.mark for block in blocks()} <= {"", "runs", "tests"}
    assert all(block.language == "console" for block in blocks() if block.mark)
    fences = re.findall(r"(?m)^\s*```", README.read_text(encoding="utf-8"))
    assert len(fences) == 2 * len(blocks()), "one is not found"
    assert of("python")
    assert of("toml")
    assert of("console", "runs")


def test_the_command_that_ci_takes_from_here_runs_the_tests() -> None:
    (block,) = of("console", "tests")
    assert list(block.commands)[-1] == "pytest"


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README.read_text(encoding="utf-8"))
    assert [link for link in links if not (README.parent / link).exists()] == []


# --- commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", of("console"), ids=named)
def test_commands_exist_with_their_flags(block: Block, folder: Path) -> None:
    commands = list(block.commands)
    assert commands
    for command in commands:
        if shlex.split(command)[0] == "edistill":
            check(command, folder)
        else:
            assert shlex.split(command)[0] in SHELL, f"{command} is not checked"


def test_commands_in_the_text_exist_with_their_flags(folder: Path) -> None:
    prose = re.sub(r"(?ms)^```.*?^```$", "", README.read_text(encoding="utf-8"))
    spans = [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose)]
    commands = [span for span in spans if span.startswith("edistill ")]
    assert commands
    for command in commands:
        check(command, folder)
    for span in spans:
        if span.startswith("--set "):
            load_settings(folder, dict([parse_assignment(span.removeprefix("--set "))]))


def test_what_is_marked_runs(folder: Path) -> None:
    for block in of("console", "runs"):
        for command in block.commands:
            program, *words = shlex.split(command)
            assert program == "edistill"
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, f"{command}: {result.stderr}"


# --- Python and settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", of("python"), ids=named)
def test_python_runs(block: Block, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block.text, f"README.md, {named(block)}", "exec"), {"__name__": "readme"})
    if "print(" in block.text:
        assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("block", of("toml"), ids=named)
def test_settings_parse(block: Block, tmp_path: Path) -> None:
    settings_from(tomllib.loads(block.text), root=tmp_path, named=f"README.md, {named(block)}")
