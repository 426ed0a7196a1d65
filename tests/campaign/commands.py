"""Running a command in a process of its own that starts at once: a fork of this one, which has everything loaded."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 60.0  # seconds after which a command counts as hanging
MEMORY = 4 << 30  # bytes of a process that holds a tiny folder


def statuses(number: int | None) -> set[int]:
    """What a command may end with: done, or a user's mistake; of one that a signal was sent to, done before it came,
    ended before it could be answered, or the status that shells have for it.

    Args:
        number: of the signal; None where none was sent.
    """
    if number is None:
        return {0, 2}
    return {0, -number} if number == signal.SIGKILL else {0, -number, 128 + number}


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: its exit status; −9 killed by SIGKILL; None where it was still running after `PATIENCE`.
        out, err: what it printed, as bytes.
        memory: the most it held, in bytes.
        signal: that was sent to it, by number; None for none.
    """

    command: str
    status: int | None
    out: bytes
    err: bytes
    seconds: float
    memory: int
    signal: int | None = None

    @property
    def fault(self) -> str | None:
        """What no command may do, whatever it is given; None where it did nothing of it."""
        shown = self.out + self.err
        if self.status is None:
            return "hangs"
        if self.status not in statuses(self.signal):
            return f"ends with status {self.status}"
        if b"Traceback (most recent call last)" in shown:
            return "prints a traceback"
        messages = sum(line.startswith(b"Error:") for line in self.err.splitlines())
        if self.status == 2 and messages != 1:
            return f"gives {messages} messages"
        if any(byte < 32 and byte not in b"\t\n" for byte in shown):
            return "prints control characters"
        if self.memory > MEMORY:
            return f"takes {self.memory >> 20} MiB"
        return None


def load_everything() -> None:
    """Import what the commands import, so that forks need not."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import onnxruntime  # noqa: F401
    import torch
    import torch.onnx._internal.exporter._core

    from ensemble_distill.chains import generations  # noqa: F401
    from ensemble_distill.cli.app import SUMMARIES, load
    from ensemble_distill.workflows import (  # noqa: F401
        cache_logits,
        calibrate,
        evaluate,
        export,
        inspect,
        predict,
        train,
        verify,
    )

    torch.set_num_threads(1)
    for name in SUMMARIES:
        load(name)


class Running:
    """A command that was started in a folder."""

    def __init__(self, folder: Path, command: str) -> None:
        self.command, self.started = command, time.monotonic()
        self.sent: int | None = None
        self._scratch = Path(tempfile.mkdtemp(prefix="campaign-"))
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(folder, command.split(" "))

    def _become(self, folder: Path, arguments: Sequence[str]) -> None:
        status = 1
        try:
            os.setsid()
            os.chdir(folder)
            for descriptor, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(self._scratch / name, os.O_WRONLY | os.O_CREAT), descriptor)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.argv = ["edistill", *arguments]
            from ensemble_distill.__main__ import main

            main()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def signal(self, number: int) -> None:
        self.sent = number
        os.kill(self.pid, number)

    def wait(self, patience: float = PATIENCE) -> Outcome:
        """How it ends; after `patience` seconds it is killed."""
        status: int | None = None
        while True:
            pid, code, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                status = os.waitstatus_to_exitcode(code)
                break
            if time.monotonic() - self.started > patience:
                os.killpg(self.pid, signal.SIGKILL)
                _, _, usage = os.wait4(self.pid, 0)
                break
            time.sleep(0.002)
        shown = [
            (self._scratch / name).read_bytes() if (self._scratch / name).exists() else b"" for name in ("out", "err")
        ]
        shutil.rmtree(self._scratch)
        took = time.monotonic() - self.started
        return Outcome(self.command, status, *shown, took, usage.ru_maxrss << 10, self.sent)


def run(folder: Path, command: str) -> Outcome:
    """Run one command to its end."""
    return Running(folder, command).wait()


def memory_now() -> int:
    """What this process holds, which every fork begins with."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
