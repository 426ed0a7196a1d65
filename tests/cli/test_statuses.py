"""How commands end: each error has one message and its status, an interrupt one line, and a bug says that it is one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import typer
from cli_helpers import INTERRUPTED, message_of
from typer.testing import CliRunner, Result

from ensemble_distill.cli import interrupts
from ensemble_distill.cli.app import SUMMARIES, app
from ensemble_distill.cli.statuses import SWITCH, exit_statuses
from ensemble_distill.errors import EdistillError

pytestmark = pytest.mark.thorough

# the workflow behind each command, and a line that reaches it
WORKFLOWS = {
    "quickstart": ("workflows.quickstart.prepare", "quickstart new"),
    "cache-logits": ("workflows.cache_logits.cache_logits", "cache-logits"),
    "train": ("workflows.train.train", "train"),
    "evaluate": ("workflows.evaluate.evaluate", "evaluate"),
    "compare": ("workflows.compare.compare", "compare x y"),
    "calibrate": ("workflows.calibrate.calibrate", "calibrate"),
    "export": ("workflows.export.export", "export --onnx"),
    "predict": ("workflows.predict.predict", "predict x.npz -m x.onnx"),
    "inspect": ("workflows.inspect.inspect", "inspect x"),
    "verify": ("workflows.verify.verify", "verify"),
    "methods": ("workflows.methods.methods", "methods"),
    "settings": ("settings.keys.settings_keys", "settings"),
    "init": ("workflows.init.init", "init x"),
    "doctor": ("workflows.doctor.doctor", "doctor"),
}


def allocated() -> NoReturn:
    torch.empty(2**50)
    raise AssertionError


def deep() -> NoReturn:
    deep()


def warned() -> NoReturn:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    raise AssertionError


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def work() -> NoReturn:
        raise error

    return work


MISTAKES: dict[str, tuple[Callable[[], NoReturn], str]] = {
    "a mistake": (raising(EdistillError("Two are not three. Fix it.")), "Two are not three. Fix it."),
    "no memory": (raising(MemoryError()), "Out of memory: MemoryError. .* smaller cache.batch-size"),
    "no memory for numpy": (
        raising(MemoryError("Unable to allocate 8 GiB")),
        "Out of memory: Unable to allocate 8 GiB",
    ),
    "no memory on a CPU": (allocated, r"Out of memory: \[enforce fail .* fewer train\.workers"),
    "no memory on a GPU": (raising(torch.OutOfMemoryError("CUDA out of memory")), "Out of memory: CUDA out of memory"),
    "a full disk": (
        raising(OSError(28, "No space left on device", "runs/x")),
        r"runs/x: No space left on device\.",
    ),
    "two files": (raising(OSError(18, "Invalid cross-device link", "a", None, "b")), "a and b: Invalid cross-device"),
    "an OSError with a text alone": (raising(OSError("cannot identify image file")), "system: cannot identify image"),
    "a name too long": (lambda: Path("x" * 5000).write_text(""), "x: File name too long"),
    "no UTF-8": (lambda: b"\xff".decode(), "can't decode byte 0xff in position 0"),
    "a name that is not UTF-8": (lambda: "\udcff".encode(), "surrogates not allowed"),
    "depth": (deep, "nested too deeply"),
    "an exit": (raising(SystemExit(0)), r"A module of your own ended the process \(sys\.exit\(0\)\)"),
    "an exit with a text": (raising(SystemExit("b\x1bye")), r"sys\.exit\(b\\x1bye\)"),
    "a warning": (warned, "raise warnings as errors, .* DeprecationWarning: old. Unset PYTHONWARNINGS"),
}


@pytest.fixture
def here(digits_session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "edistill.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], NoReturn]], Result]:
    """A command whose workflow does that instead."""

    def invoke(name: str, work: Callable[[], NoReturn]) -> Result:
        function, line = WORKFLOWS[name]
        monkeypatch.setattr(f"ensemble_distill.{function}", lambda *_, **__: work())
        return CliRunner().invoke(app, line.split())

    return invoke


Run = Callable[[str, Callable[[], NoReturn]], Result]


def test_every_command_is_asked() -> None:
    assert set(WORKFLOWS) == set(SUMMARIES)


def test_every_mistake_is_one_message_from_every_command(run: Run) -> None:
    for name in WORKFLOWS:
        for what, (work, told) in MISTAKES.items():
            result = run(name, work)
            assert (result.exit_code, result.stdout) == (2, ""), what
            message = message_of(result.stderr)
            assert re.match(rf"Error: .*{told}", message), (what, message)


def test_an_interrupt_is_one_line_from_every_command(run: Run) -> None:
    for name in WORKFLOWS:
        result = run(name, raising(KeyboardInterrupt()))
        assert (result.exit_code, result.output) == (130, f"{INTERRUPTED}\n")


def test_a_bug_says_so_below_its_traceback(run: Run) -> None:
    def work() -> NoReturn:
        try:
            raise KeyError("the \x1b[2J cause")
        except KeyError as error:
            raise ZeroDivisionError("a bug\nand more") from error

    for name in WORKFLOWS:
        result = run(name, work)
        assert (result.exit_code, result.stdout) == (1, "")
        *trace, error, blank, hint = result.stderr.splitlines()
        message = message_of("\n".join((error, blank, hint)))
        assert re.match(
            r"Error: This is a bug in edistill .*: ZeroDivisionError: a bug\. .* the traceback above", message
        )
        assert trace[0] == "Traceback (most recent call last):"
        assert any("KeyError: 'the" in line for line in trace), "the cause is inside"
        assert "\x1b" not in result.stderr


def test_a_cause_is_shown_on_request(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> NoReturn:
        try:
            raise KeyError("the cause")
        except KeyError as error:
            raise EdistillError("Fix it.") from error

    assert run("verify", work).stderr == "Error: Fix it.\n"
    monkeypatch.setenv(SWITCH, "1")
    shown = run("verify", work)
    assert shown.exit_code == 2
    assert "KeyError: 'the cause'" in shown.stderr
    assert shown.stderr.endswith("\nError: Fix it.\n")


def test_a_command_that_cannot_be_imported_is_no_page(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble_distill.cli.app.load", lambda name: raising(KeyboardInterrupt())())
    result = CliRunner().invoke(app, ["verify"])
    assert (result.exit_code, result.output) == (130, f"{INTERRUPTED}\n")


def test_a_reader_that_has_gone_is_no_error(here: Path) -> None:
    """`edistill settings | head -1`."""
    for line in ("settings", "settings --json", "methods"):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, "-m", "ensemble_distill", *line.split()], stdout=write, stderr=subprocess.PIPE, check=False
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (141, b""), line


def test_streams_may_be_closed(here: Path) -> None:
    plain, drawn = (f"{sys.executable} -m ensemble_distill {name}" for name in ("settings", "methods"))
    for line, status in ((f"{drawn} >&-", 0), (f"{plain} >&- 2>&-", 0), (f"{plain} --no 2>&-", 2)):
        done = subprocess.run(["sh", "-c", line], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (status, b""), line
    full = subprocess.run(["sh", "-c", f"{plain} >/dev/full"], capture_output=True, text=True, check=False)
    assert full.returncode == 2
    wrong, hint = full.stderr.split("\n\nhint: ")
    assert wrong == "Error: The system: No space left on device. What was finished before is kept."
    assert hint.startswith("Make room")


# --- Ctrl-C in a process of its own -----------------------------------------------------------------------------

IMPORTS = """
import os, signal, sys, types
import ensemble_distill.__main__ as edistill
class Finder:  # Ctrl-C at the import of a module
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
module, sys.argv = sys.argv[1], ["edistill", "methods"]
edistill.main()
"""


@pytest.mark.parametrize("module", ["typer", "ensemble_distill.workflows.methods"])
def test_an_interrupt_during_imports_is_one_line(here: Path, module: str) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS, module], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{INTERRUPTED[:-1]}: edistill methods\n")


PARSING = """
import os, signal, sys, time
import ensemble_distill.__main__ as edistill
from ensemble_distill.cli.app import Commands
def parse(*_):
    os.kill(os.getpid(), int(sys.argv.pop()))
    time.sleep(60)
Commands.parse_args = parse
sys.argv = ["edistill", "methods", sys.argv[1]]
edistill.main()
"""


@pytest.mark.parametrize(("number", "told"), [(signal.SIGINT, "Interrupted"), (signal.SIGTERM, "Ended by SIGTERM")])
def test_a_signal_while_the_line_is_read_is_told(here: Path, number: signal.Signals, told: str) -> None:
    command = [sys.executable, "-c", PARSING, str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr.startswith(f"{told}. What was finished is kept; run the same command to continue: edistill")


TWICE = """
import os, signal, time
from ensemble_distill.__main__ import main
import ensemble_distill.workflows.methods as workflow
def methods():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    finally:  # while the first is handled
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
workflow.methods = methods
import sys
sys.argv = ["edistill", "methods"]
main()
"""


def test_a_second_interrupt_ends_at_once(here: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{INTERRUPTED[:-1]}: edistill methods\n")


@pytest.mark.parametrize(
    ("line", "after"),
    [("edistill train --epochs 3", "to continue"), ("edistill evaluate hydra-s0", "to start over")],
)
def test_it_says_whether_the_command_goes_on(monkeypatch: pytest.MonkeyPatch, line: str, after: str) -> None:
    monkeypatch.setattr(interrupts, "_line", line)
    assert interrupts.told().endswith(f"the same command {after}: {line}")


def test_what_ignores_interrupts_goes_on_doing_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_line", "")
    for number, before, after in (
        (signal.SIGINT, signal.SIG_IGN, signal.SIG_IGN),
        (signal.SIGINT, signal.default_int_handler, interrupts._first),
        (signal.SIGTERM, signal.SIG_IGN, signal.SIG_IGN),
        (signal.SIGTERM, signal.SIG_DFL, interrupts._first),
    ):
        kept: Any = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
        signal.signal(number, before)
        try:
            interrupts.install()
            assert signal.getsignal(number) is after
        finally:
            for one, handler in kept.items():
                signal.signal(one, handler)


def test_an_interrupt_is_left_to_the_child() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts.left_to_child():
        os.kill(os.getpid(), signal.SIGINT)
        child = "import signal; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
        assert subprocess.run([sys.executable, "-c", child], check=False).returncode == 0
    assert signal.getsignal(signal.SIGINT) is before
    entered: list[bool] = []
    thread = threading.Thread(target=lambda: entered.append(bool(interrupts.left_to_child().__enter__() is None)))
    thread.start()
    thread.join()
    assert entered == [True]


def interrupted_in_an_import() -> None:
    """Code that is interrupted may turn that into an error of its own, as imports do that were left half done."""
    with exit_statuses():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise AttributeError("partially initialized module") from None


def test_an_error_that_comes_of_an_interrupt_is_told_as_the_interrupt(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGINT, interrupts._first)
    try:
        with pytest.raises(typer.Exit) as ended:
            interrupted_in_an_import()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.exit_code == 130
    assert capfd.readouterr().err == f"{INTERRUPTED}\n"
