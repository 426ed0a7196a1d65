"""Damaged and hostile files, read by two processes or by loader processes; and a file that one of two sees otherwise.

Every job ends within `LONGEST` seconds with one message, whoever read the file, and what was there is there still:
mended, the same command ends as if nothing had been. Or it has the result of the whole file.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import commands
from apart import can_see_apart, few_rows_and_little_patience, prepared
from damage import KINDS, Readers, read_by, readers_of, tensors
from hostile import attacks, pipe
from kills import state
from ranks_helpers import Said
from ranks_helpers import commands as by_ranks
from report import Report
from victim import Victim

LONGEST = 45.0  # seconds of a job, on a machine that has other things to do
SEEN_LATE = 1.5  # seconds after which a file is seen as it is
FRESH, HALFWAY = (f"cache-logits --set output.cache={name}" for name in ("fresh", "halfway"))
OTHER, HALF = "train --name other", "train --name half"
TOGETHER: Readers = {
    "data/train.npz": (FRESH, OTHER),
    "data/test.npz": (FRESH, "evaluate --json"),
    "data/": (FRESH,),
    "teachers/": (FRESH, "cache-logits", OTHER),
    "cache/manifest.json": (OTHER, "cache-logits", "evaluate --json"),
    "cache/records/train": (OTHER,),
    "cache/records/": ("evaluate --json", "verify cache --json"),
    "cache/replay/train": (OTHER,),
    "halfway/manifest.json": (HALFWAY,),
    "halfway/parts/": (HALFWAY,),
    "runs/hydra-s0/student.safetensors": ("train", "evaluate --json"),
    "runs/hydra-s0/config.json": ("train",),
    "runs/hydra-s0/args.toml": ("train",),
    "runs/half/checkpoint.safetensors": (HALF,),
    "runs/half/config.json": (HALF,),
    "runs/half/args.toml": (HALF,),
    "model.py": (FRESH, OTHER),
    "edistill.toml": (FRESH, OTHER),
}
OWN = ("edistill.toml", "model.py")  # of the user: a change that all see is what was asked for
WAYS = ("all", "one", "late", "workers")
SHARED = ("cache-logits", "cache-logits --overwrite", "train", "train --overwrite", "evaluate --json")


@dataclass(frozen=True)
class Job:
    """How all processes of a command ended.

    Attributes:
        fault: what no job may do; None where it did nothing of it.
    """

    status: int
    told: str
    fault: str | None


def campaign(scratch: Path, trials: int, seed: int) -> Report:
    """Three quarters of the trials are damages, and the rest hostile files."""
    rng, report = random.Random(seed), Report("together")
    few_rows_and_little_patience()
    folder = tensors(scratch / "folder")
    _interrupted_pass(folder)
    kept = scratch / "whole"
    shutil.copytree(folder, kept)
    _damages(folder, kept, 3 * trials // 4, rng, report)
    _hostile(folder, kept, trials - 3 * trials // 4, rng, report)
    return report


def _interrupted_pass(folder: Path) -> None:
    """Leave a cache in the middle: killed once its first block is kept."""
    os.environ["TINY_SLEEP"] = "0.1"
    running = commands.Running(folder, HALFWAY)
    while not list((folder / "halfway").glob("parts/**/*.safetensors")):
        time.sleep(0.01)
    running.signal(signal.SIGKILL)
    running.wait()
    os.environ["TINY_SLEEP"] = "0"
    assert list((folder / "halfway").glob("parts/**/*.safetensors"))


# --- damage -----------------------------------------------------------------------------------------------------


def _damages(folder: Path, kept: Path, trials: int, rng: random.Random, report: Report) -> None:
    wanted: dict[tuple[str, bool], Any] = {}
    names = read_by(folder, TOGETHER)
    ways = WAYS if can_see_apart(folder.parent) else ("all", "workers")
    for trial in range(trials):
        name, way = names[trial % len(names)], rng.choice(ways)
        choices = [one for one in readers_of(name, TOGETHER) if way == "all" or one.startswith(("cache", "train"))]
        if not choices:
            continue
        command, content = rng.choice(choices), (kept / name).read_bytes()
        if (command, way == "workers") not in wanted:
            _, job, wanted[command, way == "workers"] = _run(folder, kept, command, way == "workers")
            assert job.status == 0, job
        kind, at = rng.choice(sorted(KINDS)), rng.randrange(len(content))
        damaged = KINDS[kind](content, at, rng)
        if damaged == content:
            continue
        told = f"trial {trial}: {kind} at {at} of {len(content)} bytes of {name}, seen by {way}, {command}"
        before, job, after = _run(
            folder, kept, command, way == "workers", _Damage(name, damaged, way, rng.randrange(2))
        )
        _judge(report, told, job, (before, after, wanted[command, way == "workers"]), name, way)
        if job.status == 2:
            (folder / name).write_bytes(content)
            again = _job(folder, command, way == "workers", prepared)
            found = _without(state(folder), name) if again.status == 0 else {}
            if found != _without(wanted[command, way == "workers"], name):
                report.wrong(f"{told}: fixed, it does not end as ever: {again}")
        report.trial()


@dataclass(frozen=True)
class _Damage:
    """What is in the place of a file.

    Attributes:
        index: of the process that sees it alone.
    """

    name: str
    content: bytes
    way: str
    index: int


def _run(
    folder: Path, kept: Path, command: str, workers: bool, damage: _Damage | None = None
) -> tuple[dict[str, Any], Job, dict[str, Any]]:
    """A whole folder's state, how the command ends in it with that damage, and its state afterwards."""
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    before, hook = state(folder), prepared
    if damage is not None and damage.way in ("one", "late"):
        other = folder.parent / "other"
        other.write_bytes(damage.content)
        late = SEEN_LATE if damage.way == "late" else None
        hook = partial(prepared, other, folder / damage.name, damage.index, late)
    elif damage is not None:
        (folder / damage.name).write_bytes(damage.content)
    job = _job(folder, command, workers, hook)
    return before, job, state(folder)


def _job(folder: Path, command: str, workers: bool, before: Callable[[], None]) -> Job:
    started = time.monotonic()
    if workers:
        outcome = commands.run(folder, f"{command} -j 2")
        return Job(outcome.status or 0, outcome.err.decode(errors="replace"), outcome.fault)
    said = by_ranks(2, folder, *command.split(), before=before)
    fault = _fault(said, time.monotonic() - started)
    return Job(max(one.status for one in said), "\n".join(one.err[-900:] for one in said), fault)


def _fault(said: list[Said], seconds: float) -> str | None:
    """What no job may do."""
    statuses = [one.status for one in said]
    if any(one.error for one in said) or seconds > LONGEST:
        return f"takes {seconds:.0f} s: {[one.error for one in said]}"
    if len(set(statuses)) > 1 or statuses[0] not in (0, 2):
        return f"ends with statuses {statuses}"
    if any("Traceback" in one.err for one in said):
        return "prints a traceback"
    messages = sum(line.startswith("Error:") for one in said for line in one.err.splitlines())
    return None if messages == (statuses[0] == 2) else f"gives {messages} messages"


def _judge(report: Report, told: str, job: Job, states: tuple[dict[str, Any], ...], name: str, way: str) -> None:
    before, after, wanted = (_without(one, name) for one in states)
    if job.fault is not None:
        report.wrong(f"{told}: {job.fault}: {job.told}")
    elif job.status == 2:
        report.count(f"{way}: refused")
        lost = [one for one in before if after.get(one) != before[one]]
        if lost:
            report.wrong(f"{told}: refused, and {lost} are not what they were: {job.told}")
    elif after == wanted:
        report.count(f"{way}: without effect")
    elif name in OWN and way in ("all", "workers"):
        report.count(f"{way}: other settings")
    else:
        different = sorted(one for one in after.keys() | wanted.keys() if after.get(one) != wanted.get(one))
        report.wrong(f"{told}: another result without a word: {different}")


def _without(found: dict[str, Any], name: str) -> dict[str, Any]:
    return {one: value for one, value in found.items() if one != name}


# --- hostile files ----------------------------------------------------------------------------------------------


def _hostile(folder: Path, kept: Path, trials: int, rng: random.Random, report: Report) -> None:
    every = [(name, attack, command) for name, attack in attacks() for command in SHARED]
    blocks = [name for name in read_by(kept, TOGETHER) if name.startswith("halfway/parts/")]
    every += 5 * [(f"{name} is a pipe", pipe(name), HALFWAY) for name in blocks]
    for name, attack, command in rng.sample(every, min(trials, len(every))):
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        victim = Victim(folder.parent / "victim")
        attack(folder, victim.folder)
        workers = rng.random() < 0.3 and not command.startswith("evaluate")
        job = _job(folder, command, workers, prepared)
        told = f"{name}, {command} by {'loaders' if workers else 'two'}"
        if job.fault is not None:
            report.wrong(f"{told}: {job.fault}: {job.told}")
        for what in victim.harm():
            report.wrong(f"{told}: {what}")
        report.count(f"hostile: {'refused' if job.status == 2 else 'passed'}")
        report.trial()
