"""What a user can do if a member returns something else than its task needs."""

from __future__ import annotations

from ensemble_distill.facts import Member

FILES = (".onnx", ".pt2", ".skops", ".joblib")  # files of members without a Python module to hook into


def remedy(member: Member, expression: str, otherwise: str = "") -> str:
    """How to make a member return an expression of its present output, `out`, without renaming its weights.

    Args:
        member: the member.
        expression: Python code in terms of `out`.
        otherwise: another expression, and when to use it.
    """
    if member.model == "ready-made outputs" or member.model.endswith(FILES):
        return f"Write it again, so that it holds {expression}{f' (or {otherwise})' if otherwise else ''}."
    factory = member.model if ":" in member.model else "a factory of your own (teachers.model)"
    return (
        f"Say it in {factory}, on a line before it returns the module"
        f"{f' (or with {otherwise})' if otherwise else ''}: "
        f"module.register_forward_hook(lambda module, inputs, out: {expression})"
    )
