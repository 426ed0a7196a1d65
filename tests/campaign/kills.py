"""Every command, ended at random moments, then run again: the result is that of one that was never ended."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from commands import Outcome, Running, run
from report import Report
from tiny import contents, make_folder

QUIET = "--set train.device=cpu"
ROAD = (
    "cache-logits",
    "train",
    "calibrate",
    "evaluate --json",
    "export --onnx --safetensors",
    "predict data/test.npz -o predictions.csv",
    "train --method ban --generations 2 --name chain",
    "compare hydra-s0 chain/generation-1 --json",
    "cache-logits --overwrite",
    "train --overwrite",
)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def campaign(scratch: Path, trials: int, seed: int) -> Report:
    """End commands of the road at random moments, once to three times, and compare what is there after a last run."""
    rng, report = random.Random(seed), Report("kills")
    before, after, seconds = _references(scratch, report)
    for trial in range(trials):
        command = rng.choice(ROAD)
        folder = scratch / "folder"  # one place: settings and runs hold no other paths
        _restore(before[command], folder)
        ends: list[str] = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            running = Running(folder, command)
            time.sleep(rng.uniform(0, 1.05 * seconds[command]))
            number = rng.choice(SIGNALS)
            running.signal(number)
            outcome = running.wait()
            if outcome.fault is not None:
                report.wrong(f"trial {trial}: {command} after {number.name}: {outcome.fault}: {outcome.err[-600:]!r}")
            ends.append(f"{number.name} at {outcome.seconds:.2f} s")
            report.count(number.name)
        last = run(folder, command)
        if last.status != 0:
            report.wrong(f"trial {trial}: {command} does not go on after {ends}: {last.err[-600:]!r}")
            continue
        different = _different(state(folder) | said(last), after[command])
        if different:
            report.wrong(f"trial {trial}: {command} after {ends} differs in {', '.join(different)}")
        report.trial()
    return report


def _references(scratch: Path, report: Report) -> tuple[dict[str, Path], dict[str, dict[str, Any]], dict[str, float]]:
    """The folder before each command, what is in it afterwards, and how long that took."""
    folder = make_folder(scratch / "folder", rows={"train": 40, "validation": 24, "test": 10, "ood/noise": 7})
    before, after, seconds = {}, {}, {}
    for number, command in enumerate(ROAD):
        before[command] = scratch / f"before-{number}"
        shutil.copytree(folder, before[command])
        outcome = run(folder, command)
        if outcome.status != 0:
            report.wrong(f"{command} fails: {outcome.err!r}")
        after[command], seconds[command] = state(folder) | said(outcome), outcome.seconds
    return before, after, seconds


def _restore(snapshot: Path, folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(snapshot, folder)


def state(folder: Path) -> dict[str, Any]:
    """Every file that is a result, but for what tells how long something took."""
    state: dict[str, Any] = {}
    for name, content in contents(folder).items():
        # what a killed predict leaves beside its output is no one's: only folders of ours are swept, under their lock
        if "__pycache__" in name or name.endswith(("checkpoint.safetensors", ".part")):
            continue
        if name.endswith(".json") and "/evaluations/" in name:
            state[name] = _without_time(json.loads(content))
        elif name.endswith("summary.csv"):
            rows = [line.split(",") for line in content.decode().splitlines()]
            timed = [at for at, title in enumerate(rows[0]) if "second" in title]
            state[name] = [[cell for at, cell in enumerate(row) if at not in timed] for row in rows]
        else:
            state[name] = content
    return state


def said(outcome: Outcome) -> dict[str, Any]:
    """What a command printed, where that is its result."""
    if outcome.status != 0 or "--json" not in outcome.command:
        return {}
    return {"what it says": _without_time(json.loads(outcome.out))}


def _without_time(value: Any) -> Any:
    """A document without latencies, nor the digest that covers them."""
    if isinstance(value, dict):
        left = {key: item for key, item in value.items() if "latency" not in key and key != "sha256"}
        return {key: _without_time(item) for key, item in left.items()}
    return [_without_time(item) for item in value] if isinstance(value, list) else value


def _different(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
