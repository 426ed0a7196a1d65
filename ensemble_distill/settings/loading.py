"""Reading settings from `edistill.toml`, and writing them as a file that replays."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ensemble_distill.errors import EdistillError
from ensemble_distill.settings.assignments import place, read_toml
from ensemble_distill.settings.contradictions import contradiction
from ensemble_distill.settings.limit import limited
from ensemble_distill.settings.messages import explain, unusable
from ensemble_distill.settings.schema import kebab
from ensemble_distill.settings.sections import Settings

FILE_NAME = "edistill.toml"
ARGS, EXPORTS = "args.toml", "export"  # the copy of the settings in a run, and the folder of exports, which has one too


def load_settings(file: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read settings from a TOML file and apply overrides such as {"train.epochs": 3}, which flags use as well.

    An override of None removes a key, so that its default applies. Without `file`, the working folder's `edistill.toml`
    is read.

    Raises:
        EdistillError: there is no such file, it is not TOML, a key is unknown, or a value is invalid.
    """
    path = Path(file or FILE_NAME)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.exists():
        raise EdistillError(
            f"There is no {path} {'here' if file is None else ''}".rstrip() + ". Pass -c FILE, or run edistill "
            "quickstart for a folder with a working one to edit."
        )
    values = read_toml(path)
    for key, value in (overrides or {}).items():
        place(values, key, value, Settings)
    beside = path.parent if path.name == ARGS or path.absolute().parent.name == EXPORTS else None
    return settings_from(values, root=path.parent, named=str(path), overridden=overrides or (), beside=beside)


def settings_here(file: str | Path | None = None) -> Settings | None:
    """The settings of a file, or of the working folder; None if no file is given and the folder has none."""
    return load_settings(file) if file is not None or Path(FILE_NAME).is_file() else None


def settings_from(
    values: Mapping[str, Any],
    root: Path,
    named: str = "settings",
    overridden: Collection[str] = (),
    beside: Path | None = None,
) -> Settings:
    """Validate nested tables whose relative paths start at `root`.

    Args:
        named: the origin of the values, for messages.
        overridden: dotted keys that have another origin.
        beside: the folder of a settings file that a command wrote beside its output; see `limited`.

    Raises:
        EdistillError: a key is unknown, or a value is invalid.
    """
    values = dict(values)
    # validate these sections even if absent, so that their default paths are resolved against the root
    for name in ("teachers", "output"):
        values.setdefault(name, {})
    try:
        problem = unusable(values)
        if problem is None:
            settings = Settings.model_validate(values, context={"root": root})
            problem = contradiction(settings)
            if problem is None:
                return limited(settings, beside)
    except ValidationError as error:
        problem = explain(error, Settings)
    key, told = problem
    elsewhere = any(f"{kebab(key)}.".startswith(f"{kebab(given)}.") for given in overridden)
    raise EdistillError(told if elsewhere else f"{named}: {told}")


def settings_toml(settings: Settings, root: Path) -> str:
    """The resolved settings as TOML, with paths relative to `root`, so that the text replays from there."""
    import tomli_w

    values = settings.model_dump(mode="json", by_alias=True, exclude_none=True, context={"root": root.absolute()})
    return tomli_w.dumps({key: value for key, value in values.items() if value != {}})
