"""`edistill methods`: the methods to train with."""

from __future__ import annotations

from ensemble_distill.methods import method_names, open_method
from ensemble_distill.methods.method import Method


def methods() -> list[dict[str, str]]:
    """Name, title, paper, tasks, needs, outputs and options of every built-in method."""
    return [_introduced(name, open_method(name)) for name in method_names()]


def _introduced(name: str, method: Method) -> dict[str, str]:
    defaults = method.Options().model_dump(mode="json", by_alias=True)
    return {
        "name": name,
        "what": method.title,
        "paper": method.paper,
        "tasks": ", ".join(sorted(method.tasks)),
        "needs": ", ".join(sorted(method.needs)),
        "outputs": method.outputs,
        "options": ", ".join(f"{option} = {_shown(value)}" for option, value in defaults.items()) or "none",
    }


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
