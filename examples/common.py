"""Shared by the examples: unpacking the data, and running commands as a user types them."""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits


def arguments(description: str, here: Path, **choices: Iterable[str]) -> argparse.Namespace:
    """Parse `shared` (a folder with data/ and teachers/) and `--work` (the folder for all output).

    `sets=("a", "b")` adds `--sets` to choose some of these; the default is all.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("shared", type=Path, help="folder that holds data/ and teachers/")
    parser.add_argument("--work", type=Path, default=here / "output", help="where data, cache and runs go")
    for name, values in choices.items():
        known = tuple(values)
        parser.add_argument(f"--{name}", nargs="+", choices=known, default=known, help="some of these; default all")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    return given


def unpack_cifar10(shared: Path, work: Path) -> Path:
    """Unpack `data/cifar10/{train,test}/<class>/*.jpg` under `work`, unless it exists."""
    done = work / "data" / ".unpacked"
    if not done.exists():
        with zipfile.ZipFile(shared / "data" / "cifar10.zip") as archive:
            archive.extractall(work / "data")
        done.touch()
    return work / "data" / "cifar10"


def gray_cifar10(shared: Path, count: int) -> NDArray[np.uint8]:
    """Test pictures of CIFAR-10 in gray, (count, 28, 28), which look like no digit."""
    with zipfile.ZipFile(shared / "data" / "cifar10.zip") as archive:
        names = sorted(name for name in archive.namelist() if "/test/" in name and name.endswith(".jpg"))
        step = len(names) // count
        pictures = [Image.open(io.BytesIO(archive.read(name))) for name in names[::step][:count]]
    return np.stack([np.asarray(picture.convert("L").resize((28, 28))) for picture in pictures])


def copy_teachers(source: Path, work: Path) -> None:
    if not (work / "teachers").exists():
        shutil.copytree(source, work / "teachers")


def write_digits(work: Path) -> None:
    """Write `digits.npz`: 1,797 handwritten digits as gray 32×32 pictures, which look like nothing in CIFAR-10."""
    pictures = (load_digits().images * (255 / 16)).round().astype(np.uint8)
    enlarged = [np.asarray(Image.fromarray(p).resize((32, 32), Image.Resampling.BILINEAR)) for p in pictures]
    np.savez_compressed(work / "digits.npz", x=np.repeat(np.stack(enlarged)[..., None], 3, axis=-1))


def edistill(work: Path, *commands: str, into: Path | None = None) -> None:
    """Run `edistill COMMAND` in `work` for each command, printing the command and its time.

    `into` is a file that receives their output instead of the screen.
    """
    for command in commands:
        print(f"\n$ edistill {command}{f' > {into.name}' if into else ''}", flush=True)
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "ensemble_distill", *command.split()],
            cwd=work,
            check=True,
            stdout=subprocess.PIPE if into else None,
        )
        if into is not None:
            into.write_bytes(done.stdout)
        print(f"({time.monotonic() - started:.0f} s)", flush=True)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def lines_of(table: Path) -> list[dict[str, str]]:
    """The lines of a CSV file; empty if it does not exist."""
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def add_line(table: Path, line: dict[str, Any]) -> None:
    """Append a line to a CSV file, with floats to six digits."""
    told = {key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in line.items()}
    part = table.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(told), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*lines_of(table), told])
    part.replace(table)


def worth_of(document: dict[str, Any]) -> dict[str, float | None]:
    """The student's worth and cost in members, from `edistill evaluate --json`."""
    worth = document["worth"]["student"]
    told = {f"worth_{key}": worth[key] for key in ("prediction", "uncertainty", "uncertainty_control")}
    return told | {f"cost_{key}": worth["cost"][key] for key in ("latency", "macs", "parameters")}
