"""README.md and the guides keep their word: Python runs, settings parse, commands exist, links lead somewhere, and
blocks that are marked so are run."""

from __future__ import annotations

import re
import shlex
import shutil
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

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
README, INDEX = ROOT / "README.md", ROOT / "examples" / "README.md"
DOCUMENTS = [README, INDEX, *sorted(ROOT.glob("examples/*/*.md"))]

# what a shell block may call besides edistill
SHELL = {"torchrun", "python", "python3", "pip", "pytest", "git", "cd", "."}


@dataclass(frozen=True)
class Block:
    """A fenced block of a document: its language, its text, and the HTML comment directly above it."""

    document: Path
    language: str
    text: str
    mark: str
    line: int

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}, line {self.line}"

    @property
    def commands(self) -> Iterator[str]:
        """The commands of a console block; with prompts, what has none is output."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if any(line.startswith("$ ") for line in lines):
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in lines:
            yield from (part.strip() for part in line.partition(" #")[0].split("&&") if part.strip())


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def prose_of(document: Path) -> str:
    """A document without its blocks."""
    return re.sub(r"(?ms)^```.*?^```$", "", text_of(document))


def blocks_of(document: Path) -> list[Block]:
    text = text_of(document)
    found = re.finditer(r"(?:^<!-- (\w+) -->\n)?^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [Block(document, m[2], m[3], m[1] or "", text[: m.start(2)].count("\n") + 1) for m in found]


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]


def of(language: str, mark: str | None = None) -> list[Block]:
    return [block for block in BLOCKS if block.language == language and mark in (None, block.mark)]


def named(of: Block | Path) -> str:
    return str(of if isinstance(of, Block) else of.relative_to(ROOT))


@pytest.fixture(scope="module")
def prepared(digits_session: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the quickstart makes it, its settings quick."""
    digits = Path(shutil.copytree(digits_session, tmp_path_factory.mktemp("documents") / "digits"))
    text = (digits / "edistill.toml").read_text()
    for key, value in {"count": "2", "epochs": '8\ndevice = "cpu"'}.items():
        text, found = re.subn(rf"(?m)^{key} = \d+", f"{key} = {value}", text)
        assert found == 1
    (digits / "edistill.toml").write_text(text)
    return digits


@pytest.fixture
def folder(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, to work in."""
    monkeypatch.chdir(prepared)
    return prepared


def check(line: str, folder: Path) -> None:
    """Parse a line as the command would, without running it; its settings must be known keys."""
    program, *words = shlex.split(line)
    assert program == "edistill"
    if words[0] in ("--install-completion", "--show-completion"):  # the first would write to the shell's own files
        return
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_block_is_of_a_kind_that_is_checked(document: Path) -> None:
    blocks = blocks_of(document)
    assert {block.language for block in blocks} <= {"console", "python", "toml", "text"}, "text is output"
    assert {block.mark for block in blocks} <= {"", "runs", "tests"}
    assert all(block.language == "console" for block in blocks if block.mark)
    assert len(re.findall(r"(?m)^\s*```", text_of(document))) == 2 * len(blocks), "one is not found"


def test_the_command_that_ci_takes_from_here_runs_the_tests() -> None:
    (block,) = of("console", "tests")
    assert block.document == README
    assert list(block.commands)[-1] == "pytest"


def test_the_readme_is_a_page_and_leads_to_the_index() -> None:
    assert len(text_of(README).splitlines()) <= 170
    assert "](examples/README.md)" in text_of(README)


def test_the_index_has_every_guide_and_study() -> None:
    listed = {(INDEX.parent / link).resolve() for link in re.findall(r"\]\(([^)#]+)", text_of(INDEX))}
    assert [named(document) for document in DOCUMENTS[2:] if document not in listed] == []


# --- links ------------------------------------------------------------------------------------------------------


def anchors(document: Path) -> set[str]:
    """What `#…` may say of a document: its headings as GitHub spells them."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose_of(document))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_somewhere(document: Path) -> None:
    for path, anchor in re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", prose_of(document)):
        target = (document.parent / path) if path else document
        assert target.exists(), f"{path} does not exist"
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor}: it has {sorted(anchors(target))}"


# --- commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", of("console"), ids=named)
def test_commands_exist_with_their_flags(block: Block, folder: Path) -> None:
    commands = list(block.commands)
    assert commands
    for command in commands:
        program, *words = shlex.split(command)
        if program == "edistill":
            check(command, folder)
        else:
            assert program in SHELL, f"{command} is not checked"
            assert [word for word in words if word.endswith(".py") and not (ROOT / word).is_file()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_commands_in_the_text_exist_with_their_flags(document: Path, folder: Path) -> None:
    for span in re.findall(r"`([^`]+)`", prose_of(document)):
        words = re.sub(r"\s+", " ", span)
        if words.startswith("edistill "):
            check(words, folder)
        elif words.startswith("--set ") and words != "--set KEY=VALUE":  # the option itself, in the reference
            given = [word for word in shlex.split(words) if not word.startswith("--")]
            load_settings(folder, dict(parse_assignment(word) for word in given if "=" in word))


@pytest.mark.thorough
def test_what_is_marked_runs(folder: Path) -> None:
    blocks = of("console", "runs")
    assert blocks
    for block in blocks:
        for command in block.commands:
            program, *words = shlex.split(command)
            assert program == "edistill"
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, f"{block}: {command}: {result.stderr}"


# --- Python and settings ----------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("block", of("python"), ids=named)
def test_python_runs(block: Block, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block.text, str(block), "exec", dont_inherit=True), {"__name__": "readme"})
    if "print(" in block.text:
        assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("block", of("toml"), ids=named)
def test_settings_parse(block: Block, tmp_path: Path) -> None:
    settings_from(tomllib.loads(block.text), root=tmp_path, named=str(block))
