"""Several processes as torchrun starts them, in little of its time: they are forked from one that has imported all."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from ensemble_distill.runtime import job

IMPORTED = [
    *("ranks_helpers", "tiny", "timm.optim", "timm.scheduler", "timm.utils", "torch._dynamo"),
    *("ensemble_distill.workflows.train", "ensemble_distill.workflows.cache_logits", "ensemble_distill.cli.train"),
]
WITHIN = 60.0  # seconds until processes are hung
BEAT = 0.1

_stores: deque[Any] = deque(maxlen=4)  # which live as long as somebody holds them
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(IMPORTED)


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: of its exit, negative for a signal.
        result: what it returned; None of one that did not.
        error: the text of what it raised, after the name of its class.
    """

    status: int
    result: Any = None
    error: str = ""


@dataclass(frozen=True)
class Started:
    """A process that calls a function."""

    process: Any
    ours: Connection

    def ended(self) -> Ended:
        """How it ends; it is killed where it hangs."""
        try:
            found = self.ours.recv() if self.ours.poll(WITHIN) else {"error": "it hangs"}
        except EOFError:
            found = {}
        self.process.join(WITHIN)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            return Ended(0, error="it hangs")
        return Ended(self.process.exitcode, **found)


def in_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[Ended]:
    """Call a function of a module in `world` processes, and say how each ended. None of them may hang."""
    return [one.ended() for one in start_ranks(world, function, *arguments)]


def start_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[Started]:
    """The processes of `in_ranks`, which have only begun."""
    distributed: Any = torch.distributed
    store = distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    _stores.append(store)
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    of_one_host = {"LOCAL_WORLD_SIZE": str(world)}
    return _started([address | of_one_host | {"LOCAL_RANK": str(i)} for i in range(world)], function, arguments)


def _started(
    environments: Sequence[Mapping[str, str]], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> list[Started]:
    started, world = [], len(environments)
    for index, environment in enumerate(environments):
        ours, theirs = _context.Pipe(duplex=False)
        own = {**environment, "RANK": str(index), "WORLD_SIZE": str(world)}
        process = _context.Process(target=_one, args=(own, theirs, function, arguments))
        process.start()
        theirs.close()
        started.append(Started(process, ours))
    return started


def _one(environment: dict[str, str], theirs: Connection, function: Callable[..., Any], arguments: Any) -> None:
    os.environ.update(environment)
    if "NAMESPACE" in environment:
        _enter(environment["NAMESPACE"])
    torch.set_num_threads(1)
    job.BEAT = BEAT
    try:
        found = {"result": function(*arguments)}
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    theirs.send(found)
    theirs.close()


def _enter(namespace: str) -> None:
    """Be in another network from now on."""
    with (Path("/var/run/netns") / namespace).open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0x40000000) != 0:  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), f"no network {namespace}")


# --- commands ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What a command in a process wrote, and what was wrong with the process itself."""

    status: int
    out: str
    err: str
    error: str = ""


def commands(world: int, folder: Path, *command: str, before: Callable[[], None] | None = None) -> list[Said]:
    """`edistill` in `world` processes, in a working folder.

    Args:
        before: is called in each of them first.
    """
    return [one.said() for one in start_commands(world, folder, *command, before=before)]


@dataclass(frozen=True)
class StartedCommand:
    """A command that a process runs."""

    started: Started
    written: Path
    index: int

    @property
    def pid(self) -> int:
        return int(self.started.process.pid)

    def said(self) -> Said:
        """What it wrote, when it has ended."""
        ended = self.started.ended()
        files = [self.written / f"{name}-{self.index}" for name in ("out", "err")]
        return Said(ended.status, *(file.read_text() if file.exists() else "" for file in files), ended.error)


def start_commands(
    world: int, folder: Path, *command: str, before: Callable[[], None] | None = None
) -> list[StartedCommand]:
    """The processes of `commands`, which have only begun."""
    written = _place_for_output(folder)
    started = start_ranks(world, _command, folder, written, command, before)
    return [StartedCommand(one, written, index) for index, one in enumerate(started)]


def commands_on_hosts(
    hosts: Sequence[Mapping[str, str]], folder: Path, *command: str, before: Callable[[], None] | None = None
) -> list[Said]:
    """The same with a process on each host, of which the first one keeps the store. A host is its environment, and in
    NAMESPACE its network."""
    written = _place_for_output(folder)
    started = _started(hosts, _command, (folder, written, command, before))
    return [StartedCommand(one, written, index).said() for index, one in enumerate(started)]


def _place_for_output(folder: Path) -> Path:
    written = folder.parent / "written"
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir()
    return written


def _command(folder: Path, written: Path, command: tuple[str, ...], before: Callable[[], None] | None) -> None:
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(written / f"{name}-{os.environ['RANK']}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # of a forked process they may be anything
    os.chdir(folder)
    if before is not None:
        before()
    from ensemble_distill.cli.app import app

    sys.argv = ["edistill", *command]
    try:
        app()
    except SystemExit as error:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code if isinstance(error.code, int) else 0)
