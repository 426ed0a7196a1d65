"""A job on two hosts, which are two networks of this machine: what crosses a network, and what happens without it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ranks_helpers import on_hosts
from tiny import contents, make_folder, settings

from ensemble_distill.runtime import job, ranks
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

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


def cached(folder: Path) -> None:
    cache_logits(settings(folder, {"cache.batch-size": 16}))


class CutsAt(Silent):
    """The second host loses its network after so many steps."""

    def advance(self, count: int = 1, facts: object = None) -> None:
        steps = getattr(self, "steps", 0) + 1
        self.steps = steps
        if steps == 5 and ranks.current().index == 1:
            ip("link", "set", os.environ["GLOO_SOCKET_IFNAME"], "down")


def cut(folder: Path, sets: dict[str, Any]) -> None:
    train(settings(folder, sets), progress=CutsAt())


def test_two_hosts_make_what_one_does_and_end_when_they_lose_each_other(
    folder: Path, hosts: list[dict[str, str]]
) -> None:
    assert [one.error for one in on_hosts(hosts, cached, folder)] == ["", ""]
    cache_logits(settings(folder, {"cache.batch-size": 16, "output.cache": "alone"}))
    assert contents(folder / "cache", ["args.toml"]) == contents(folder / "alone", ["args.toml"])
    ended = on_hosts(hosts, cut, folder, {"cache.batch-size": 16, "train.peer-timeout": 1.5})
    assert [one.status for one in ended] == [job.STATUS, job.STATUS], ended
