"""The memory that is left: of the machine, of control groups of both versions, and of a limit of the process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ensemble_distill.runtime import files, memory

GB = 10**9


def system(folder: Path, groups: str = "", limits: dict[str, dict[str, object]] | None = None) -> tuple[Path, Path]:
    """A machine with 8 GB left, a process of these control groups, and what files in their folders say."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/meminfo").write_text(
        f"MemTotal: 16000000 kB\nMemAvailable: {8 * GB // 1024} kB\nHugePages_Free: 0\n"
    )
    (folder / "proc/self/status").write_text("Name:\tpython\nVmSize:\t  1000000 kB\n")
    (folder / "proc/self/cgroup").write_text(groups)
    for place, found in (limits or {}).items():
        (folder / "groups" / place).mkdir(parents=True, exist_ok=True)
        for name, said in found.items():
            (folder / "groups" / place / name).write_text(f"{said}\n")
    return folder / "proc", folder / "groups"


def left(folder: Path, groups: str = "", limits: dict[str, dict[str, object]] | None = None) -> float:
    return memory.on_machine(*system(folder, groups, limits)) / GB


def test_without_control_groups_it_is_what_the_machine_has_left(tmp_path: Path) -> None:
    assert left(tmp_path) == pytest.approx(8, abs=1e-6)


def test_where_the_machine_does_not_say_it_is_all_it_has(tmp_path: Path) -> None:
    assert memory.on_machine(tmp_path, tmp_path) == files.memory()


@pytest.mark.parametrize("limit", ["memory.max", "memory.high"])
def test_a_control_group_or_one_above_it_leaves_less(tmp_path: Path, limit: str) -> None:
    own = {"memory.max": "max", "memory.high": "max", "memory.current": GB}
    above = {**own, limit: 3 * GB, "memory.current": 2 * GB, "memory.stat": f"anon 5\ninactive_file {GB // 2}"}
    limits = {"jobs/mine": own, "jobs": above}
    assert left(tmp_path, "0::/jobs/mine\n", limits) == pytest.approx(1.5), "with what can be taken back of it"


def test_in_a_container_the_folder_is_the_root(tmp_path: Path) -> None:
    limits = {".": {"memory.max": 2 * GB, "memory.current": GB}}
    assert left(tmp_path, "0::/\n", limits) == pytest.approx(1)


def test_control_groups_of_the_first_version(tmp_path: Path) -> None:
    of_mine = {"memory.limit_in_bytes": 4 * GB, "memory.usage_in_bytes": 3 * GB}
    endless = {"memory.limit_in_bytes": 2**63 - 4096, "memory.usage_in_bytes": 9 * GB}
    limits = {"memory/docker/abc": {**of_mine, "memory.stat": f"total_inactive_file {GB}"}, "memory": endless}
    groups = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n"
    assert left(tmp_path, groups, limits) == pytest.approx(2)


def test_a_group_that_is_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    assert left(tmp_path, "0::/\n", {".": {"memory.max": GB, "memory.current": 2 * GB}}) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of processes there")
def test_a_limit_of_the_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda what: (3 * GB, 3 * GB))
    assert left(tmp_path) == pytest.approx(3 - 1.024)


def test_here_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    found = memory.available(torch.device("cpu"))
    assert 0 < found <= files.memory()
