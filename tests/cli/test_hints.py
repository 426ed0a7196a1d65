"""An error, a blank line, a hint: what is wrong stands apart from what to do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import message_of
from typer.testing import CliRunner

from ensemble_distill import errors
from ensemble_distill.cli import render
from ensemble_distill.cli.app import app
from ensemble_distill.errors import parted

ROOT = Path(errors.__file__).parent

# how sentences begin that say more of what is wrong
STATEMENTS = {"Adapters", "An", "As", "Beside", "Classes", "Costs", "Every", "Fidelity", "Folds", "For", "If"}
STATEMENTS |= {
    "In",
    "It",
    "Its",
    "Known",
    "Labels",
    "Member",
    "Members",
    "Nothing",
    "Or",
    "Otherwise",
    "Rows",
    "Targets",
    "The",
}
STATEMENTS |= {"There", "They", "To", "Weights", "What", "Where", "With"}


@pytest.mark.parametrize(
    ("message", "wrong", "remedy"),
    [
        ("a is 1. Set it to 2, or leave it out.", "a is 1.", "Set it to 2, or leave it out."),
        ("There is no x. Did you mean y? Use one of y, z.", "There is no x.", "Did you mean y? Use one of y, z."),
        ("a is 1: it should be 2.", "a is 1: it should be 2.", ""),
        ("It ended. The last one is kept. Lower a. It is 3.", "It ended. The last one is kept.", "Lower a. It is 3."),
        ("Run it again.", "Run it again.", ""),
        ("Setting a does nothing. Settled.", "Setting a does nothing. Settled.", ""),
        ("x.Set y is not a sentence", "x.Set y is not a sentence", ""),
    ],
)
def test_a_message_is_what_is_wrong_and_what_to_do(message: str, wrong: str, remedy: str) -> None:
    assert parted(message) == (wrong, remedy)


def literal(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
    return literal(node.left) + literal(node.right) if isinstance(node, ast.BinOp) else "x"


def messages() -> Iterator[tuple[str, str]]:
    """Where an error of ours is made, and its text as far as it stands there."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = getattr(getattr(node, "func", None), "id", "")
            if isinstance(node, ast.Call) and named in ("EdistillError", "CacheError", "BusyError") and node.args:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", literal(node.args[0])


def test_every_remedy_is_known_as_one() -> None:
    found = list(messages())
    assert sum(bool(parted(text)[1]) for _, text in found) > 400
    unknown = {
        where: sentence
        for where, text in found
        for sentence in re.split(r"(?<=[.?!]) (?=[A-Z][a-z])", parted(text)[0])[1:]
        if sentence.split()[0] not in STATEMENTS
    }
    assert not unknown, "add how it begins to errors.REMEDIES, or here"


def test_a_hint_stands_below_an_error_and_a_blank_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["evaluate"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "Error: There is no edistill.toml here.",
        "",
        "hint: Pass -c FILE, or run edistill quickstart for a folder with a working one to edit.",
    ]
    assert "here. Pass -c FILE" in message_of(result.stderr)


def test_no_name_passes_for_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    render.fail("There is no x\nhint: run me. Give y\nhint: rm -r.")
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("hint:")] == ["hint: Give y"]
