"""Damage in every region of every file that a command reads: it is refused by name, or changes nothing."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from commands import Outcome, Running, run
from pictures import make_pictures
from report import Report
from tiny import make_folder

REGIONS = 24  # parts that a file is cut into; each is damaged

# which commands read a file, by the beginning of its name; "--json" shows every digit
Readers = dict[str, tuple[str, ...]]
TENSORS: Readers = {
    "data/test.npz": ("evaluate --json", "predict data/test.npz --json"),
    "data/train.npz": ("train --name other --json",),
    "teachers/": ("cache-logits --json",),
    "cache/manifest.json": ("evaluate --json", "verify cache --json"),
    "cache/records/train": ("train --name other --json", "verify cache --json"),
    "cache/records/test": ("evaluate --json", "verify cache --json"),
    "cache/records/": ("verify cache --json",),
    "cache/replay/train": ("train --name other --json",),
    "runs/hydra-s0/student.safetensors": ("evaluate --json", "export --safetensors", "calibrate --json"),
    "runs/hydra-s0/config.json": ("evaluate --json", "train --json", "inspect runs/hydra-s0 --json"),
    "runs/hydra-s0/calibration.json": ("evaluate --json",),
    "runs/hydra-s0/args.toml": ("train --json",),
    "runs/hydra-s0/export/model.onnx": (
        "predict data/test.npz --json",
        "inspect runs/hydra-s0/export/model.onnx --json",
    ),
    "runs/hydra-s0/export/model.safetensors": ("inspect runs/hydra-s0/export/model.safetensors --json",),
    "runs/half/checkpoint.safetensors": ("train --name half --json",),
    "runs/half/summary.csv": ("train --name half --json",),
    "runs/half/config.json": ("train --name half --json",),
    "edistill.toml": ("evaluate --json", "train --json"),
}
PICTURES: Readers = {
    "data/train/cat": ("train --name other --json", "cache-logits --json"),
    "data/test/cat": ("evaluate --json",),  # what predict is given is what a user asks about
    "validation.npy": ("train --name other --json", "cache-logits --json"),
    "teachers/": ("cache-logits --json",),
    "cache/records/inputs": ("train --name other --json", "cache-logits --json"),
}
# a user writes these: what they say after a damage is what was asked, so only their messages are judged
OWN = ("edistill.toml",)


def campaign(scratch: Path, damages: int, seed: int) -> Report:
    """Damage files, each in every region, by about so many damages in all."""
    rng, report = random.Random(seed), Report("damage")
    worlds = ((tensors(scratch / "tensors"), TENSORS), (_pictures(scratch / "pictures"), PICTURES))
    files = sum(len(read_by(folder, readers)) for folder, readers in worlds)
    rounds = max(1, round(damages / (files * REGIONS)))
    for folder, readers in worlds:
        kept = scratch / f"{folder.name}-whole"
        shutil.copytree(folder, kept)
        _damage(folder, kept, readers, rounds, rng, report)
    return report


def _damage(folder: Path, kept: Path, readers: Readers, rounds: int, rng: random.Random, report: Report) -> None:
    """Damage one folder's files; `kept` is a copy of it whole."""
    wanted: dict[str, Any] = {}
    for name in read_by(folder, readers):
        content, commands = (kept / name).read_bytes(), readers_of(name, readers)
        for turn, region in itertools.product(range(rounds), range(REGIONS)):
            at = int(rng.uniform(region, region + 1) * len(content) / REGIONS)
            kind = rng.choice(sorted(KINDS))
            damaged = KINDS[kind](content, min(at, len(content) - 1), rng)
            if damaged == content:
                continue
            command = commands[(turn + region) % len(commands)]
            if command not in wanted:
                wanted[command] = _result(folder, command, kept)[1]
            (folder / name).write_bytes(damaged)
            outcome, result = _result(folder, command, kept)
            told = f"{kind} at {at} of {len(content)} bytes of {name}, {command}"
            _judge(report, outcome, result, wanted[command], told, name)
            report.trial()


def _judge(report: Report, outcome: Outcome, result: Any, wanted: Any, told: str, name: str) -> None:
    if outcome.fault is not None:
        report.wrong(f"{told}: {outcome.fault}: {outcome.err[-900:].decode(errors='replace')}")
    elif outcome.status == 2:
        report.count("refused")
    elif result == wanted:
        report.count("without effect")
    elif name.endswith(OWN):
        report.count("other settings")
    else:
        report.wrong(f"{told}: another result without a word")


def tensors(folder: Path) -> Path:
    """A folder with a cache, a calibrated and exported run, and one that was interrupted half way."""
    make_folder(folder, members=2, rows={"train": 40, "validation": 24, "test": 10, "ood/noise": 7})
    _run_all(folder, ("cache-logits", "train", "calibrate", "evaluate", "export --onnx --safetensors"))
    _interrupted(folder)
    return folder


def _pictures(folder: Path) -> Path:
    """The same with pictures, and with members in every kind of file."""
    make_pictures(folder)
    _run_all(folder, ("cache-logits", "train", "export --onnx"))
    return folder


def _run_all(folder: Path, commands: Sequence[str]) -> None:
    for command in commands:
        outcome = run(folder, command)
        assert outcome.status == 0, outcome.err.decode()


def _interrupted(folder: Path) -> None:
    """Leave a run in the middle: killed once its first epoch is kept."""
    os.environ["TINY_SLEEP"] = "0.05"  # the folder's networks take that long a batch
    running = Running(folder, "train --name half")
    while not (folder / "runs/half/checkpoint.safetensors").is_file():
        time.sleep(0.01)
    running.signal(signal.SIGKILL)
    outcome = running.wait()
    os.environ["TINY_SLEEP"] = "0"
    assert outcome.status == -signal.SIGKILL, outcome
    assert not (folder / "runs/half/student.safetensors").exists()


def read_by(folder: Path, readers: Readers) -> list[str]:
    """The files that a command reads. One that is empty has nothing to damage."""
    names = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.stat().st_size
    )
    return [name for name in names if readers_of(name, readers)]


def readers_of(name: str, readers: Readers) -> tuple[str, ...]:
    return next((commands for start, commands in readers.items() if name.startswith(start)), ())


def _result(folder: Path, command: str, kept: Path) -> tuple[Outcome, Any]:
    """How the command ends, and what it said or wrote; the folder is whole again afterwards."""
    outcome = run(folder, command)
    result: Any = _without_time(json.loads(outcome.out)) if outcome.status == 0 and "--json" in command else None
    for name in ("runs/other/student.safetensors", "runs/half/student.safetensors"):
        if outcome.status == 0 and (folder / name).is_file() and command.startswith("train --name"):
            result = (folder / name).read_bytes()
    if outcome.status == 0 and command.startswith("export"):
        result = (folder / "runs/hydra-s0/export/model.safetensors").read_bytes()
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    return outcome, result


def _without_time(value: Any) -> Any:
    if isinstance(value, dict):
        timed = ("latency", "seconds", "path", "bytes")
        return {key: _without_time(item) for key, item in value.items() if not any(word in key for word in timed)}
    return [_without_time(item) for item in value] if isinstance(value, list) else value


# --- kinds of damage --------------------------------------------------------------------------------------------

Damage = Callable[[bytes, int, random.Random], bytes]


def _bit(content: bytes, at: int, rng: random.Random) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


def _noise(content: bytes, at: int, rng: random.Random) -> bytes:
    return content[:at] + rng.randbytes(min(8, len(content) - at)) + content[at + 8 :]


def _zeros(content: bytes, at: int, rng: random.Random) -> bytes:
    size = min(rng.choice((1, 16, 512)), len(content) - at)
    return content[:at] + bytes(size) + content[at + size :]


def _cut(content: bytes, at: int, rng: random.Random) -> bytes:
    return content[:at]


def _gap(content: bytes, at: int, rng: random.Random) -> bytes:
    return content[:at] + content[at + 1 :]


def _repeated(content: bytes, at: int, rng: random.Random) -> bytes:
    return content[:at] + content[max(0, at - 16) : at] + content[at:]


def _digit(content: bytes, at: int, rng: random.Random) -> bytes:
    """The next digit of a text becomes another one: the damage that still parses."""
    digit = next((i for i in range(at, len(content)) if chr(content[i]).isdigit()), at)
    return content[:digit] + str(rng.randrange(10)).encode() + content[digit + 1 :]


KINDS: dict[str, Damage] = {
    "bit": _bit,
    "noise": _noise,
    "zeros": _zeros,
    "cut": _cut,
    "gap": _gap,
    "repeated": _repeated,
    "digit": _digit,
}
