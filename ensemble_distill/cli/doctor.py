"""The command `edistill doctor`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import typer

from ensemble_distill.cli import render
from ensemble_distill.cli.command import command
from ensemble_distill.cli.flags import Assignments, Config, Json, Trust
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.words import bytes_told, counted, duration


def register(app: typer.Typer) -> None:
    @command(app, "doctor", settings=False)
    def doctor(
        config_file: Config = None,
        assignments: Assignments = None,
        trust: Trust = False,
        json: Json = False,
    ) -> None:
        """Report what is wrong with edistill.toml and how long each command will take.

        Versions, devices and free disk; every path, split, label and member; time and bytes. Members and body are
        built and shown a few rows; nothing is trained and nothing is written. Status 2 where something is wrong.

        Example: edistill doctor
        """
        from ensemble_distill.settings import load_settings
        from ensemble_distill.settings.assignments import parse_assignment
        from ensemble_distill.workflows.doctor import doctor

        overrides = dict(parse_assignment(text) for text in assignments or ())
        with render.Shown() as progress:
            report = doctor(partial(load_settings, config_file, overrides), trust=trust, progress=progress)
        if json:
            render.document(asdict(report))
        else:
            _show(
                report.machine, report.checks, report.forecast, report.next + (" --trust-checkpoints" if trust else "")
            )
        if report.problems:
            raise EdistillError(f"{counted(len(report.problems), 'problem')}. The first to fix: {report.problems[0]}")


def _show(machine: dict[str, Any], checks: list[dict[str, Any]], forecast: list[dict[str, Any]], after: str) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    cores = f"{counted(machine['cores'], 'core')}, {counted(machine['threads'], 'thread')}"
    render.facts(
        f"edistill {machine['edistill']} on Python {machine['python']}",
        {
            "versions": versions,
            **({"lacking": machine["lacking"]} if machine["lacking"] else {}),
            "devices": f"{', '.join(machine['devices'])}; {cores}",
            "memory": bytes_told(machine["memory"]),
            "free disk": bytes_told(machine["free_disk"]),
        },
    )
    rows = [["PROBLEM" if one["problem"] else "ok", one["what"], render.near(one["told"])] for one in checks]
    render.table("edistill.toml", ["", "what", "found"], rows)
    if forecast:
        rows = [[one["command"], duration(one["seconds"]), bytes_told(one["bytes"])] for one in forecast]
        render.table("estimated time on this machine, under its current load", ["edistill", "time", "fills"], rows)
    if not any(one["problem"] for one in checks):
        render.text(f"Nothing is wrong. next: edistill {after} (--limit 64 tries the whole road on 64 rows)\n")
