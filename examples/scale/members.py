"""Cache an ensemble whose members together exceed the memory of a process, and report the memory that this took.

python examples/scale/members.py FOLDER [MEMBERS [MEGABYTES [ROOM]]], with all sizes in megabytes.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

CODE = """
from torch import nn


def make_teacher(width):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
"""
SETTINGS = """
teachers.path = "teachers"
teachers.model = "model.py:make_teacher"
teachers.model-kwargs = {{ width = {width} }}
data.train = "train.npz"
views.transform = "noise"
views.count = 2
train.device = "cpu"
train.workers = 0
"""
# limits the memory that a process can gain after its start
LIMITED = """
import resource, sys
import ensemble_distill.workflows.cache_logits
from ensemble_distill.cli.app import app
if room := int(sys.argv.pop()):
    used = 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
app()
"""


def make(folder: Path, members: int, size: int) -> None:
    """Write members of about `size` bytes each, and 512 rows."""
    width = int((size / 4) ** 0.5)
    (folder / "teachers").mkdir(parents=True)
    (folder / "model.py").write_text(CODE)
    (folder / "edistill.toml").write_text(SETTINGS.format(width=width))
    torch.manual_seed(0)
    shapes = {"0": (width, 64), "2": (width, width), "4": (10, width)}
    for index in range(members):
        state = {f"{at}.weight": torch.randn(shape) / shape[1] ** 0.5 for at, shape in shapes.items()}
        state |= {f"{at}.bias": torch.zeros(shape[0]) for at, shape in shapes.items()}
        save_file(state, folder / "teachers" / f"member-{index}.safetensors")
    rng = np.random.default_rng(0)
    np.savez(folder / "train.npz", x=rng.normal(size=(512, 64)).astype(np.float32), y=np.arange(512) % 10)


def cached(folder: Path, name: str, room: int) -> None:
    """Cache the ensemble in a process that can gain `room` bytes after its start; 0 for no limit."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, time.monotonic()
    command = [sys.executable, "-c", LIMITED, "cache-logits", "--set", f"output.cache={name}", str(room)]
    status = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL).returncode
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    told = f"{peak / 1e6:.2f} GB" if peak > before else f"no more than {before / 1e6:.2f} GB"
    print(f"{name}: status {status}, peak memory {told}, {time.monotonic() - begun:.0f} s", flush=True)


def main() -> None:
    folder, *numbers = sys.argv[1:]
    members, megabytes, room = [*map(int, numbers), *(12, 200, 1400)[len(numbers) :]]
    here = Path(folder)
    if not here.exists():
        make(here, members, megabytes * 10**6)
    cached(here, "in-groups", room * 10**6)
    cached(here, "all-at-once", 0)
    files = list((here / "in-groups" / "records").rglob("*.npy"))
    same = bool(files) and all(
        file.read_bytes() == (here / "all-at-once" / file.relative_to(here / "in-groups")).read_bytes()
        for file in files
    )
    print(f"records are {'the same' if same else 'not the same'}")


if __name__ == "__main__":
    main()
