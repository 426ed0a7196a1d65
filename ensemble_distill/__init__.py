"""edistill: distill an ensemble into one student that keeps every member's prediction.

The command line is `edistill`; the same steps from Python are `ensemble_distill.workflows`, and `load_student`
rebuilds a trained student from its run folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["__version__", "load_student"]

if TYPE_CHECKING:
    from ensemble_distill.runs.run import load_student


def __getattr__(name: str) -> Any:
    """`load_student`, imported when it is asked for: the command line starts without torch."""
    if name == "load_student":
        from ensemble_distill.runs.run import load_student

        return load_student
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
