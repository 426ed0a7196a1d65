"""The limit of open files, and what a split keeps mapped of it."""

import subprocess
import sys

import pytest

from ensemble_distill.runtime import open_files

resource = pytest.importorskip("resource", reason="no limits of open files there")
NONE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ((1024, 524_288), (65_536, 524_288)),
        ((1024, 4096), (4096, 4096)),
        ((256, NONE), (65_536, NONE)),
        ((4096, 4096), None),
        ((100_000, 500_000), None),
        ((NONE, NONE), None),
    ],
)
def test_the_soft_limit_rises_to_the_hard_one(
    limits: tuple[int, int], wanted: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda what, pair: given.append(pair))
    open_files.raise_limit()
    assert given == ([] if wanted is None else [wanted])


@pytest.mark.parametrize("error", [OSError, ValueError])
def test_a_system_that_refuses_keeps_its_limit(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(what: int, pair: tuple[int, int]) -> None:
        raise error

    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, NONE))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    open_files.raise_limit()
    assert open_files.most_maps() == 64


@pytest.mark.parametrize(("soft", "maps"), [(256, 64), (100, 64), (1024, 256), (65_536, 16_384), (NONE, 16_384)])
def test_a_split_keeps_a_quarter_mapped(soft: int, maps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (soft, soft))
    assert open_files.most_maps() == maps


def test_the_command_raises_it() -> None:
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "from ensemble_distill.cli import app\n"
        "sys.argv = ['edistill', '--version']\n"
        "try:\n    app.main()\nexcept SystemExit:\n    pass\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "print(soft == (65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True"
