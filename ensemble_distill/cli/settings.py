"""The command `edistill settings`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import tomli_w
import typer

from ensemble_distill.cli import render
from ensemble_distill.cli.command import command
from ensemble_distill.cli.flags import Json

COLUMN = 30  # column of the comments


def register(app: typer.Typer) -> None:
    @command(app, "settings", settings=False, long=False)
    def settings(json: Json = False) -> None:
        """List every key of edistill.toml with its default.

        The output is a valid edistill.toml that changes nothing; keys without a default are commented out.

        Example: edistill settings --json
        """
        from ensemble_distill.settings.keys import settings_keys

        keys = settings_keys()
        if json:
            render.document([asdict(key) for key in keys])
            return
        section = ""
        for key in keys:
            here, _, name = key.key.partition(".")
            if name and here != section:
                render.text(f"\n[{here}]\n")
                section = here
            render.text(f"{_line(name or here, key.default, top=not name):<{COLUMN}} # {key.what}\n")


def _line(name: str, default: Any, top: bool) -> str:
    """The line of a key; keys inside a nested table are comments, since setting one would define the whole table."""
    if default == {} and "." not in name:
        return f"\n[{name}]" if top else f"{name} = {{}}"
    value = "" if default is None else tomli_w.dumps({"": default}).partition("=")[2].strip()
    return f"# {name} = {value}".rstrip() if default is None or "." in name else f"{name} = {value}"
