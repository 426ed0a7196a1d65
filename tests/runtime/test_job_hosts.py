"""A job on two hosts, which are two networks of this machine: what crosses a network, and what happens without it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ranks_helpers import Said, commands_on_hosts
from tiny import contents, make_folder, settings

from ensemble_distill.cli import render
from ensemble_distill.runtime import job, ranks
from ensemble_distill.workflows.cache_logits import cache_logits

pytestmark = pytest.mark.thorough


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[dict[str, str]]]:
    """Two, with a cable between them."""
    names = [f"edistill-{os.getpid()}-{index}" for index in range(2)]
    cable = [f"ed{os.getpid()}{end}" for end in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("networks cannot be made here")
    try:
        ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for index, (name, end) in enumerate(zip(names, cable, strict=True)):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.79.0.{index + 1}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        address = {"MASTER_ADDR": "10.79.0.1", "MASTER_PORT": "29517"}
        yield [
            {**address, "NAMESPACE": name, "GLOO_SOCKET_IFNAME": end} for name, end in zip(names, cable, strict=True)
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "tiny", members=2, rows={"train": 40, "validation": 6})


CACHE, TRAIN = "cache-logits -b 4", "train --opt sgd --epochs 3"
SILENT = 5.0  # seconds without a sign until a process counts as lost
LONGER = 10.0  # seconds that the end of the job takes besides, which examples/scale/README.md says


def on(hosts: list[dict[str, str]], folder: Path, command: str, before: Callable[[], None] | None = None) -> list[Said]:
    """What is said; where nothing is to be lost, slow processes are given the time that they have by default."""
    patience = [] if before is None else ["--set", f"train.peer-timeout={SILENT}"]
    return commands_on_hosts(hosts, folder, *command.split(), *patience, before=before)


def cuts(host: int, steps: int) -> None:
    """In a process: its host loses its network after so many steps or batches, where it is that one."""
    from ensemble_distill.cache import writer

    writer.BLOCK_ROWS = 4  # so that both have several
    advance, done = render.Shown.advance, [0]

    def counted(self: Any, *told: Any) -> None:
        done[0] += 1
        if done[0] == steps and ranks.current().index == host:
            Path("cut").write_text(str(time.time()))
            ip("link", "set", os.environ["GLOO_SOCKET_IFNAME"], "down")
        advance(self, *told)

    render.Shown.advance = counted  # type: ignore[method-assign]  # in a process of its own


def timed(hosts: list[dict[str, str]], folder: Path, command: str, lost: int, steps: int) -> list[Said]:
    """What is said where one host loses its network, which both end of in time; afterwards it has it again."""
    said = on(hosts, folder, command, partial(cuts, lost, steps))
    took = time.time() - float((folder / "cut").read_text())
    (folder / "cut").unlink()
    ip("-n", hosts[lost]["NAMESPACE"], "link", "set", hosts[lost]["GLOO_SOCKET_IFNAME"], "up")
    assert took < SILENT + LONGER
    return said


@pytest.mark.parametrize("lost", [0, 1])
def test_two_hosts_end_when_they_lose_each_other_and_go_on_to_the_same_bytes(
    folder: Path, hosts: list[dict[str, str]], lost: int
) -> None:
    """Host 0 has the store in which all give their signs."""
    for command, made, steps in ((CACHE, "cache", 3), (TRAIN, "runs", 7)):
        name = f"--set output.{made}=whole-{made}"
        before = contents(folder)
        assert [(one.status, one.error) for one in on(hosts, folder, f"{command} {name}")] == [(0, "")] * 2
        whole = bytes_of(folder / f"whole-{made}")
        for one in timed(hosts, folder, command, lost, steps):
            assert (one.status, one.error) == (job.STATUS, ""), one
            assert sum(line.startswith("Error:") for line in one.err.splitlines()) == 1, one  # torch may add its own
            assert "Traceback" not in one.err
        assert bytes_of(folder / made) != whole
        assert contents(folder).items() >= before.items()
        assert [(one.status, one.error) for one in on(hosts, folder, command)] == [(0, "")] * 2
        assert bytes_of(folder / made) == whole


def bytes_of(made: Path) -> dict[str, bytes]:
    """Of what is in a folder, but for what tells how long something took, or where it stands."""
    return contents(made, ["args.toml", "summary.csv", "checkpoint.safetensors"])


def test_of_several_processes_on_each_of_two_hosts_one_tells(folder: Path, hosts: list[dict[str, str]]) -> None:
    four = [{**host, "LOCAL_RANK": str(index), "LOCAL_WORLD_SIZE": "2"} for host in hosts for index in range(2)]
    cache_logits(settings(folder, {"cache.batch-size": 4, "output.cache": "alone"}))
    said = on(four, folder, CACHE, partial(cuts, 2, 2))
    ip("-n", hosts[1]["NAMESPACE"], "link", "set", hosts[1]["GLOO_SOCKET_IFNAME"], "up")
    assert [(one.status, one.error) for one in said] == [(job.STATUS, "")] * 4
    for of_host in (said[:2], said[2:]):
        assert sum(one.err.count("Error:") for one in of_host) == 1, of_host
    assert [one.status for one in on(four, folder, CACHE)] == [0] * 4
    assert bytes_of(folder / "cache") == bytes_of(folder / "alone")
