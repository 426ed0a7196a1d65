"""One digits ensemble, its cache, a run and an export for the whole session; tests that write get a copy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks here are tiny: a second thread only waits for the first

from ensemble_distill.settings import Settings, load_settings

SHARED = Path(__file__).parents[1].parent / "shared"
QUICK = {"train.epochs": 8, "views.count": 2, "train.device": "cpu", "train.workers": 0}


@pytest.fixture(scope="session")
def digits_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quickstart folder with everything made: teachers, cache, runs/hydra-s0 and its exports. Do not write to it."""
    from ensemble_distill.workflows.cache_logits import cache_logits
    from ensemble_distill.workflows.export import export
    from ensemble_distill.workflows.quickstart import prepare
    from ensemble_distill.workflows.train import train

    folder = tmp_path_factory.mktemp("digits") / "digits"
    prepare(folder)
    settings = load_settings(folder / "edistill.toml", QUICK)
    cache_logits(settings)
    train(settings)
    export(settings, onnx=True, safetensors=True)
    return folder


@pytest.fixture
def digits(digits_session: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(digits_session, tmp_path / "digits"))


@pytest.fixture(scope="session")
def runs_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make_runs` makes. Do not write to it."""
    from runs_helpers import make_runs

    return make_runs(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def runs(runs_session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to break, which is also where the command runs."""
    copy = Path(shutil.copytree(runs_session, tmp_path / "tiny"))
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def settings_of() -> Callable[..., Settings]:
    """Settings of a folder, quick ones, with dotted overrides: settings_of(digits, {"train.seed": 1})."""

    def load(folder: Path, overrides: dict[str, Any] | None = None) -> Settings:
        return load_settings(folder / "edistill.toml", {**QUICK, **(overrides or {})})

    return load


@pytest.fixture
def shared() -> Path:
    """The folder of shared data and teachers; a stranger's clone has none."""
    if not SHARED.is_dir():
        pytest.skip("needs the shared data folder beside the checkout")
    return SHARED


@pytest.fixture
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crashes are raised, and nothing here survives a power cut: syncing for real would only take time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
