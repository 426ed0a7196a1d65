"""How many cores a process has: what its control groups say, of either version, and the machine's without them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ensemble_distill.runtime import cores
from ensemble_distill.runtime.cores import THREADS, cores_here, keep_to_limit, limit

Files = dict[str, str]  # below /proc and /sys/fs/cgroup


def system(folder: Path, files: Files) -> tuple[Path, Path]:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder / "proc", folder / "groups"


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "groups/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "groups/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "groups/cpu.max": "20000 100000\n"}, 1),  # a fifth of a core
        (
            {
                "proc/self/cgroup": "0::/pods/one\n",
                "groups/pods/one/cpu.max": "max 100000\n",
                "groups/pods/cpu.max": "350000 100000\n",  # what is above limits it, too
                "groups/cpu.max": "800000 100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/job\n4:cpu,cpuacct:/job\n",
                "groups/cpu/job/cpu.cfs_quota_us": "600000\n",
                "groups/cpu/job/cpu.cfs_period_us": "200000\n",
                "groups/memory/job/cpu.max": "100000 100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "groups/cpu/cpu.cfs_quota_us": "-1\n",
                "groups/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/\n", "groups/cpu.max": "nonsense\n"}, None),
        ({"proc/self/cgroup": "nonsense\n", "groups/cpu.max": "100000 100000\n"}, None),
    ],
)
def test_a_limit_is_what_control_groups_leave(tmp_path: Path, files: Files, wanted: int | None) -> None:
    assert limit(*system(tmp_path, files)) == wanted


def test_torch_starts_as_many_threads_unless_its_user_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    own, none = {THREADS: "7"}, dict[str, str]()
    keep_to_limit(none)
    assert none == {} or limit() is not None  # the machine of the test may have a limit itself
    monkeypatch.setattr(cores, "limit", lambda: 1)
    assert cores_here() == 1
    keep_to_limit(own)
    keep_to_limit(none)
    assert (own, none) == ({THREADS: "7"}, {THREADS: "1"})
    monkeypatch.setattr(cores, "limit", lambda: 10_000)
    assert 1 <= cores_here() <= (os.cpu_count() or 1)


@pytest.mark.thorough
def test_the_command_keeps_to_it_before_torch_is_there() -> None:
    code = """
import sys
from ensemble_distill.runtime import cores
cores.limit = lambda: 1
from ensemble_distill import __main__
sys.argv = ["edistill", "methods"]
try:
    __main__.main()
finally:
    import torch
    print(torch.get_num_threads())
"""
    environment = {key: value for key, value in os.environ.items() if key != THREADS}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.splitlines()[-1] == "1"
