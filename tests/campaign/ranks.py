"""Several processes, of which one is lost or has no room left at a random moment; another number of them goes on.

A pass then has the bytes of one process. A training has its own bits where as many go on, else the same student to
rounding.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
from kills import state
from numpy.typing import NDArray
from ranks_helpers import Said, StartedCommand, commands, start_commands
from report import Report
from safetensors.numpy import load_file
from tiny import make_folder

CACHE, TRAIN = "cache-logits", "train --opt sgd --epochs 12 --set student.kwargs={dropout=0.0}"
SILENT = 10  # seconds without a sign until a process counts as lost
SETS = f"--device cpu -q --set train.peer-timeout={SILENT}"
WORLDS = (1, 2, 3)
ENDS = ("SIGKILL", "SIGSTOP", "ENOSPC")
LONGER = 30.0  # seconds, at most, that a job of which a process is lost takes longer than one that is done
WEIGHTS = "runs/hydra-s0/student.safetensors"
ROUNDING = 1e-3  # relative to the largest weight of a tensor


def campaign(scratch: Path, trials: int, seed: int) -> Report:
    """Lose a process, or its disk, at a random moment; then see how the others ended, and go on with another number."""
    rng, report = random.Random(seed), Report("ranks")
    folder = make_folder(scratch / "folder", rows={"train": 40, "validation": 24, "test": 10})
    wanted, seconds = {}, {}
    before = {CACHE: scratch / "before-cache", TRAIN: scratch / "before-train"}
    shutil.copytree(folder, before[CACHE])
    run(folder, 1, CACHE, report)
    shutil.copytree(folder, before[TRAIN])
    for command in (CACHE, TRAIN):
        for world in WORLDS:
            restore(before[command], folder)
            started = time.monotonic()
            run(folder, world, command, report)
            seconds[command, world] = time.monotonic() - started
            wanted[command, world] = state(folder)
            if command == TRAIN:
                shutil.copy(folder / WEIGHTS, scratch / f"weights-{world}.safetensors")
    for trial in range(trials):
        command, first, then = rng.choice((CACHE, TRAIN)), rng.choice(WORLDS[1:]), rng.choice(WORLDS)
        restore(before[command], folder)
        told = f"trial {trial}: {command} by {first}"
        told = lose(folder, command, first, rng, seconds[command, first], report, told)
        if not run(folder, then, command, report, told):
            continue
        if command == CACHE or first == then:
            found, right = state(folder), wanted[command, then]
            different = sorted(name for name in found.keys() | right.keys() if found.get(name) != right.get(name))
        else:
            apart = furthest(folder / WEIGHTS, scratch / f"weights-{then}.safetensors")
            different = [f"{WEIGHTS} by {apart:.2g}"] if apart > ROUNDING else []
        if different:
            report.wrong(f"{told}, then {then}, differs in {', '.join(different)}")
        report.trial()
    return report


def lose(folder: Path, command: str, world: int, rng: random.Random, seconds: float, report: Report, told: str) -> str:
    """Start a command, end one process of it, and wait for all. Returns what was done, after `told`."""
    victim, how = rng.randrange(world), rng.choice(ENDS)
    full = partial(fills, victim, rng.randrange(30)) if how == "ENOSPC" else None
    started = start_commands(world, folder, *command.split(), *SETS.split(), before=full)
    begun = time.monotonic()
    if full is None:
        time.sleep(rng.uniform(0.2, 1.0) * seconds)
        try:
            os.kill(started[victim].pid, getattr(signal, how))
        except ProcessLookupError:
            how = "nothing, since it was done"
    told += f" ({how} in {victim} after {time.monotonic() - begun:.1f} s)"
    report.count(how)
    said = ends(started, victim if how == "SIGSTOP" else None)
    if time.monotonic() - begun > seconds + LONGER:
        report.wrong(f"{told}: the job took {time.monotonic() - begun:.0f} s to end")
    for index, one in enumerate(said):
        if index == victim and how in ("SIGKILL", "SIGSTOP"):
            continue
        if one.error or one.status not in (0, 2) or "Traceback" in one.err:
            report.wrong(f"{told}: process {index} ends with {one.status} {one.error}: {one.err[-400:]!r}")
    errors = sum(line.startswith("Error:") for one in said for line in one.err.splitlines())
    if errors != (1 if any(one.status == 2 for one in said) else 0):
        report.wrong(f"{told}: {errors} messages: {[one.err[-200:] for one in said]}")
    return told


def ends(started: list[StartedCommand], stopped: int | None) -> list[Said]:
    """How each ends; one that was stopped is killed when the others have ended, as torchrun does."""
    said = {index: one.said() for index, one in enumerate(started) if index != stopped}
    if stopped is not None:
        os.kill(started[stopped].pid, signal.SIGKILL)
        said[stopped] = started[stopped].said()
    return [said[index] for index in range(len(started))]


def fills(victim: int, at: int) -> None:
    """From its `at`-th sync on, this process's disk is full."""
    if os.environ["RANK"] != str(victim):
        return
    fsync, left = os.fsync, [at]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    os.fsync = full


def run(folder: Path, world: int, command: str, report: Report, told: str = "") -> bool:
    """Run a command to its end, by so many processes; whether it is done."""
    said = commands(world, folder, *command.split(), *SETS.split())
    for one in said:
        if one.status != 0:
            report.wrong(f"{told}: {command} by {world} ends with {one.status} {one.error}: {one.err[-600:]!r}")
    return all(one.status == 0 for one in said)


def restore(snapshot: Path, folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(snapshot, folder)


def furthest(one: Path, other: Path) -> float:
    """The largest difference of two students' weights, relative to the largest of its tensor."""
    found, right = load_file(one), load_file(other)
    if found.keys() != right.keys():
        return float("inf")
    return max(apart(found[name], right[name]) for name in right)


def apart(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).max() / max(np.abs(other).max(), 1e-6))
