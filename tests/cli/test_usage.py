"""What typer refuses, told as all other mistakes are: an error with the value, a blank line, a hint; status 2."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import message_of
from typer.testing import CliRunner

from ensemble_distill.cli.app import SUMMARIES, app

WHOLE, NUMBER = "whole number|integer", "number|float"  # older versions of typer have words of their own

ROOT = Path(__file__).parents[2]


def refused(line: str) -> tuple[str, str]:
    """What is wrong, and the hint; both are asked for."""
    result = CliRunner().invoke(app, shlex.split(line))
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    message_of(result.stderr)
    wrong, hint = result.stderr.removesuffix("\n").split("\n\nhint: ")
    return wrong.removeprefix("Error: "), hint


@pytest.mark.parametrize(
    ("line", "wrong", "hint"),
    [
        ("trian", "There is no command trian.", "Did you mean train?"),
        ("help", "There is no command help.", "Run edistill --help for all of them."),
        ("''", "There is no command ''.", "Run edistill --help"),
        ("--", "Missing command.", "Run edistill --help"),
        ("train --epoch 3", "edistill train has no option --epoch.", "Did you mean --epochs?"),
        ("train --epoch=3", "edistill train has no option --epoch.", "Did you mean --epochs?"),
        ("train -epochs 3", "edistill train has no option -epochs.", "Did you mean --epochs?"),
        ("train -q=3", "edistill train has no option -q=3.", "Run edistill train --help"),
        ("predict x --epochs 3", "edistill predict has no option --epochs.", "Run edistill predict --help"),
        ("--vers", "edistill has no option --vers.", "Did you mean --version?"),
        ("--json train", "edistill has no option --json.", "edistill train --json"),
        ("predict", "edistill predict lacks INPUTS: image files,", "Give it, as in edistill predict data/test.npz"),
        ("compare", "edistill compare lacks RUN: runs of one ensemble,", "Give it, as in edistill compare kd-s0"),
        ("train extra", "edistill train takes no arguments, and is given extra", "Leave it out, or see"),
        ("train epochs 3", "takes no arguments, and is given epochs 3 besides.", "Did you mean --epochs?"),
        ("train ''", "takes no arguments, and is given '' besides.", "Leave it out"),
        ("quickstart a b", "edistill quickstart takes DIR alone, and is given b besides.", "Leave it out"),
        ("train --epochs", "--epochs is given no value.", "Write --epochs VALUE: Passes over the training rows"),
        ("predict x -o", "-o is given no value.", "Write -o VALUE: A file to write"),
        ("train --amp=3", "--amp takes no value.", "Write --amp or --no-amp alone."),
        ("train --overwrite=3", "--overwrite takes no value.", "Write --overwrite alone."),
        ("train --help=3", "--help takes no value.", "Write --help alone."),
        ("evaluate --format tabel", "--format is 'tabel', and not one of table, markdown, ", "Did you mean table?"),
        ("predict x --format xml", "--format is 'xml', and not one of csv, json, jsonl, parquet.", "Give one of"),
    ],
)  # fmt: skip
def test_what_no_command_is_is_told_with_a_remedy(line: str, wrong: str, hint: str) -> None:
    told, remedy = refused(line)
    assert wrong in told
    assert hint in remedy


@pytest.mark.parametrize(
    ("line", "key", "value", "hint"),
    [
        ("train --epochs three", "--epochs", "'three'", WHOLE),
        ("train --epochs=1.5", "--epochs", "'1.5'", WHOLE),
        ("train -b x", "--batch-size", "'x'", WHOLE),
        ("train --lr abc", "--lr", "'abc'", NUMBER),
        ("predict x --alpha much", "--alpha", "'much'", NUMBER),
        ("train --batch-size 0", "train.batch-size", "0", "1 or more"),
        ("cache-logits --batch-size 0", "cache.batch-size", "0", "1 or more"),
        ("train --workers 1000", "train.workers", "1000", "256 or less"),
        ("train --lr 0", "train.lr", "0", "above 0"),
        ("train --model-ema-decay 1", "train.model-ema-decay", "1", "below 1"),
        ("train --sched cosin", "train.sched", "'cosin'", "Did you mean cosine?"),
        ("train --sched zzz", "train.sched", "'zzz'", "one of these"),
        ("train --lr nan", "train.lr", "nan", "a number"),
        ("train --set method.temperature=0", "method.temperature", "0", "0.05 or more"),
    ],
)
def test_a_value_that_does_not_fit_is_told_with_its_domain(
    digits_session: Path, monkeypatch: pytest.MonkeyPatch, line: str, key: str, value: str, hint: str
) -> None:
    monkeypatch.chdir(digits_session)
    told, remedy = refused(line)
    assert key in told
    assert re.search(rf"(: | is ){re.escape(value)}", told)
    assert any(one in f"{told} {remedy}" for one in hint.split("|"))


@pytest.mark.parametrize("number", [0, -3])
def test_predict_takes_rows_from_one_on(digits_session: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.chdir(digits_session)
    told, remedy = refused(f"predict data/test.npz --batch-size {number}")
    assert told.startswith(f"--batch-size is {number}")
    assert "1 or more" in remedy


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_command_refuses_what_it_does_not_know(name: str) -> None:
    told, remedy = refused(f"{name} --no-such-option")
    assert told == f"edistill {name} has no option --no-such-option."
    assert f"edistill {name} --help" in remedy or "Did you mean --no-" in remedy


def test_what_a_terminal_would_obey_is_escaped() -> None:
    for line in ("$'x'", "train '--\x1b[31mred'", "train 'a\x1b[2J'", "'\x1b[2J'", "evaluate --format 'x\x1b[2J'"):
        result = CliRunner().invoke(app, shlex.split(line))
        assert result.exit_code == 2
        assert "\x1b" not in result.stderr


def test_of_several_processes_the_first_one_speaks() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2"}
    for rank, said in (("0", True), ("1", False)):
        done = subprocess.run(
            [sys.executable, "-m", "ensemble_distill", "train", "--epoch", "3"],
            env={**environment, "RANK": rank},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, bool(done.stderr)) == (2, "", said)


def test_help_and_completion_are_answered_as_before() -> None:
    for line, status in (("", 2), ("--help", 0), ("train -h", 0), ("--version", 0)):
        result = CliRunner().invoke(app, shlex.split(line))
        assert (result.exit_code, result.stderr) == (status, ""), line
        assert "Usage:" in result.stdout or "edistill 0" in result.stdout
    done = subprocess.run(
        [sys.executable, "-c", "from ensemble_distill.cli.app import app; app(prog_name='edistill')"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "_EDISTILL_COMPLETE": "complete_bash",
            "COMP_WORDS": "edistill trian --ep",
            "COMP_CWORD": "2",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")
