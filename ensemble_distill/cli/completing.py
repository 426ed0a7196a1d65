"""Shell completion of values: methods, runs, splits, settings and others.

Nothing slow is imported, and errors complete nothing, since a shell has no place for a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble_distill.runtime.names import harmless
from ensemble_distill.runtime.registry import Registry

if TYPE_CHECKING:
    from ensemble_distill.settings import Settings

Completer = Callable[[str], list[tuple[str, str]]]


def _completer(ask: Callable[[], Iterable[tuple[str, str]]]) -> Completer:
    def complete(incomplete: str) -> list[tuple[str, str]]:
        try:
            found = list(ask())
        except Exception:  # at a Tab no error can be shown, and a broken settings file completes to nothing
            return []
        return [(name, what) for name, what in found if name.startswith(incomplete) and harmless(name) == name]

    return complete


def _settings() -> Settings:
    from ensemble_distill.settings import load_settings

    return load_settings()


def _named(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, "") for name in names]


def _runs() -> Iterable[tuple[str, str]]:
    """Finished runs and chains of the settings here, the latest first."""
    from ensemble_distill.runs.folder import WEIGHTS, below

    runs = Path(_settings().output.runs)
    finished = sorted(below(runs, WEIGHTS), key=lambda path: path.stat().st_mtime, reverse=True)
    return _named(dict.fromkeys(path.relative_to(runs).parts[0] for path in finished))


def _keys() -> Iterable[tuple[str, str]]:
    from ensemble_distill.settings.keys import settings_keys

    return [(f"{key.key}=", key.what) for key in settings_keys()]


def _splits() -> Iterable[tuple[str, str]]:
    return _named(_settings().splits())


def _members() -> Iterable[tuple[str, str]]:
    from ensemble_distill.cache.manifest import Manifest

    return _named(Manifest.load(Path(_settings().output.cache)).names)


def _words(key: str) -> Completer:
    """Completes the values of a setting whose type lists them."""
    from typing import get_args

    from ensemble_distill.settings import Settings

    table, _, name = key.partition(".")
    section = Settings.model_fields[table].annotation
    return _completer(lambda: _named(get_args(section.model_fields[name.replace("-", "_")].annotation)))  # type: ignore[union-attr]


runs = _completer(_runs)
splits = _completer(_splits)
keys = _completer(_keys)

OF_KEYS: dict[str, Callable[[], Completer]] = {
    "train.method": lambda: _completer(lambda: _named(Registry("ensemble_distill.methods", "METHOD").listed)),
    "output.log": lambda: _completer(lambda: _named(Registry("ensemble_distill.logs", "LOG").listed)),
    "train.teacher": lambda: _completer(_members),
    "train.device": lambda: _completer(lambda: _named(("auto", "cpu", "cuda", "mps"))),
    "train.opt": lambda: _completer(lambda: _named(("adamw", "adam", "sgd", "lamb", "lion"))),
    **{key: lambda key=key: _words(key) for key in ("train.sched", "train.effort", "train.amp-dtype")},  # type: ignore[misc]
}


def of_key(key: str) -> Completer | None:
    """The completer of a setting's flag; None if it has none."""
    made = OF_KEYS.get(key)
    return None if made is None else made()
