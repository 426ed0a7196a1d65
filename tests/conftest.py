"""One digits ensemble, its cache, a run and an export for the whole session; tests that write get a copy."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from filelock import FileLock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks here are tiny: a second thread only waits for the first

from ensemble_distill.settings import Settings, load_settings

# a suite in the background of a shell ignores Ctrl-C, and the commands it starts and interrupts would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

# the same examples each time; how fast they are drawn, and how many are of use, is no fault of what is tested
checks = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.filter_too_much]
hypothesis.settings.register_profile(
    "quick", max_examples=30, deadline=None, derandomize=True, suppress_health_check=checks
)
hypothesis.settings.load_profile("quick")

SHARED = Path(__file__).parents[1].parent / "shared"
QUICK = {"train.epochs": 8, "views.count": 2, "train.device": "cpu", "train.workers": 0}


@pytest.fixture(scope="session", autouse=True)
def traced_once() -> Iterator[None]:
    """torch's exporter takes seconds: a student of the same code and the same weights is traced once in a session."""
    import onnx

    from ensemble_distill.exporting import onnx as exporter

    trace, made = exporter.graph_of, {}

    def once(module: Any, example: Any, *rest: Any) -> onnx.ModelProto:
        told: list[Any] = [str(module), example.shape, rest]
        for part in module.modules():
            code = type(part).forward.__code__
            fields = {name: value for name, value in vars(part).items() if name[0] != "_"}
            told.append((code.co_code, code.co_names, str(code.co_consts), fields))
        for name, values in (*module.named_parameters(), *module.named_buffers()):
            told.append((name, values.detach().numpy().tobytes()))
        key = hashlib.sha256(repr(told).encode()).digest()
        if key not in made:
            made[key] = trace(module, example, *rest).SerializeToString()
        return onnx.ModelProto.FromString(made[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "graph_of", once)
        yield


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills, once for all processes of a test run."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, done = root / name / name, root / name / "done"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def digits_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quickstart folder with everything made: teachers, cache, runs/hydra-s0 and its exports. Do not write to it."""
    return made_once(tmp_path_factory, "digits", make_digits)


def make_digits(folder: Path) -> None:
    from ensemble_distill.workflows.cache_logits import cache_logits
    from ensemble_distill.workflows.export import export
    from ensemble_distill.workflows.quickstart import prepare
    from ensemble_distill.workflows.train import train

    prepare(folder)
    settings = load_settings(folder / "edistill.toml", QUICK)
    cache_logits(settings)
    train(settings)
    export(settings, onnx=True, safetensors=True)


@pytest.fixture
def digits(digits_session: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(digits_session, tmp_path / "digits"))


@pytest.fixture(scope="session")
def cached_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny folder with its cache. Do not write to it."""
    from tiny import make_folder, with_cache

    return made_once(tmp_path_factory, "cached", lambda folder: with_cache(make_folder(folder)))


@pytest.fixture
def cached(cached_session: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(cached_session, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def finished_session(cached_session: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a finished run. Do not write to it."""
    from tiny import settings

    from ensemble_distill.workflows.train import train

    def make(folder: Path) -> None:
        shutil.copytree(cached_session, folder)
        train(settings(folder))

    return made_once(tmp_path_factory, "finished", make)


@pytest.fixture
def finished(finished_session: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(finished_session, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def pictures_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures with a cache that holds none of them decoded. Do not write to it."""
    from decoded_helpers import photos
    from decoding_helpers import ROWS
    from tiny import with_cache

    return made_once(tmp_path_factory, "pictures", lambda folder: with_cache(photos(folder, rows=ROWS)))


@pytest.fixture
def pictures(pictures_session: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(pictures_session, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def runs_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make_runs` makes. Do not write to it."""
    from runs_helpers import make_runs

    return made_once(tmp_path_factory, "tiny", make_runs)


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
