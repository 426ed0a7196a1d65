"""`args.toml`: the settings of a run or a chain, and how they differ from the current ones."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.folder import ARGS
from ensemble_distill.runtime.files import DOCUMENT, read_whole, write_whole
from ensemble_distill.runtime.seals import check_comment, sealed_comment
from ensemble_distill.settings import Settings, load_settings, settings_toml
from ensemble_distill.settings.teachers import of_members

# settings that may change when a run is continued, since they do not change its result
FREE = {"train.device", "train.workers", "train.checkpoint-minutes", "train.peer-timeout"}


def settings_content(settings: Settings, folder: Path) -> bytes:
    """The bytes of a settings file that replays from `folder`."""
    return sealed_comment(settings_toml(settings, folder))


def write_args(folder: Path, settings: Settings) -> None:
    """Write the settings of a run or a chain to its folder, as a file that replays from there."""
    write_whole(folder / ARGS, settings_content(settings, folder))


def read_args(folder: Path) -> Settings:
    """The settings that made a run or a chain; raises EdistillError if their file is damaged."""
    path = folder / ARGS
    try:
        check_comment(read_whole(path, DOCUMENT))
        return load_settings(path)
    except (ValueError, EdistillError) as error:
        told = str(error).removeprefix(f"{path} ").rstrip(".")
        raise EdistillError(f"{path} is damaged ({told}). Restore it, or run edistill train --overwrite.") from None


def limit_of(folder: Path) -> int | None:
    """The row limit per split of a trial run or chain; None if it has no limit or no settings file.

    Raises:
        EdistillError: its settings are damaged.
    """
    return read_args(folder).limit if (folder / ARGS).is_file() else None


def refuse_other_settings(folder: Path, settings: Settings, free: Collection[str] = ()) -> None:
    """Raise EdistillError naming the first setting of a run that differs from the current settings.

    Keys in `free`, and those in `FREE` of how a run is computed, may differ.
    """
    if not (folder / ARGS).is_file():
        return
    for key, before, now in differing(read_args(folder), settings, free):
        raise EdistillError(
            f"{folder} was made with {key} = {_told(before)}, but now it is {_told(now)}. "
            "Choose another --name, set it back, or pass --overwrite."
        )


def differing(one: Settings, other: Settings, free: Collection[str] = ()) -> list[tuple[str, Any, Any]]:
    """The settings that differ between two runs: the dotted key and both values.

    Keys in `free`, and those in `FREE` of how a run is computed, are left out.
    """
    before, now = settings_of_run(one), settings_of_run(other)
    keys = sorted(before.keys() | now.keys())
    return [(key, before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key) and key not in free]


def _told(value: Any) -> str:
    return "(default)" if value is None else repr(value)


def settings_of_run(settings: Settings) -> dict[str, Any]:
    """The settings that determine a run's result, by dotted key."""
    values = settings.model_dump(mode="json", by_alias=True)
    flat = {"task": values["task"], "data.train": values["data"]["train"], "data.transfer": values["data"]["transfer"]}
    flat |= {"limit": values["limit"]}
    flat |= {f"data.{key}": values["data"][key] for key in ("all", "split", "columns")}
    for table in ("views", "student", "train", "method"):
        flat |= {f"{table}.{key}": value for key, value in values[table].items()}
    flat |= {f"teachers.{key}": values["teachers"][key] for key in ("average", "weights")}
    flat |= {f"{of_members(p)}.weight": table["weight"] for p, table in values["teachers"]["members"].items()}
    return {key: value for key, value in flat.items() if key not in FREE}
