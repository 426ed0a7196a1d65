"""`edistill methods`: what there is to train with."""

from __future__ import annotations

from ensemble_distill.methods import method_names, open_method


def methods() -> list[dict[str, str]]:
    """Name, title, paper, needs, outputs and options of every built-in method."""
    listed = []
    for name in method_names():
        method = open_method(name)
        listed.append(
            {
                "name": name,
                "what": method.title,
                "paper": method.paper,
                "needs": ", ".join(sorted(method.needs)),
                "outputs": method.outputs,
                "options": ", ".join(
                    f"{name.replace('_', '-')} = {field.default}" for name, field in method.Options.model_fields.items()
                ),
            }
        )
    return listed
