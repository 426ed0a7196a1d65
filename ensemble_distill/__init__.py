"""edistill: distill an ensemble into one student that keeps every member's prediction.

The command line is `edistill`. Most commands are also functions here, which take the settings that `load_settings`
reads and return typed results. `load_student` rebuilds a trained student, and a custom method is made of `Method` and
`Stage`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from ensemble_distill.chains.generations import train_chain
    from ensemble_distill.errors import EdistillError
    from ensemble_distill.methods.method import Method, Stage
    from ensemble_distill.runs.run import load_student
    from ensemble_distill.settings import Settings, load_settings
    from ensemble_distill.workflows.cache_logits import cache_logits
    from ensemble_distill.workflows.calibrate import calibrate
    from ensemble_distill.workflows.compare import compare
    from ensemble_distill.workflows.doctor import doctor
    from ensemble_distill.workflows.evaluate import evaluate, evaluate_together
    from ensemble_distill.workflows.export import export
    from ensemble_distill.workflows.init import init
    from ensemble_distill.workflows.predict import predict
    from ensemble_distill.workflows.train import train
    from ensemble_distill.workflows.views_of import views_of

__all__ = [
    "EdistillError",
    "Method",
    "Settings",
    "Stage",
    "__version__",
    "cache_logits",
    "calibrate",
    "compare",
    "doctor",
    "evaluate",
    "evaluate_together",
    "export",
    "init",
    "load_settings",
    "load_student",
    "predict",
    "train",
    "train_chain",
    "views_of",
]

_PLACES = {
    "EdistillError": "errors",
    "Method": "methods.method",
    "Settings": "settings",
    "Stage": "methods.method",
    "cache_logits": "workflows.cache_logits",
    "calibrate": "workflows.calibrate",
    "compare": "workflows.compare",
    "doctor": "workflows.doctor",
    "evaluate": "workflows.evaluate",
    "evaluate_together": "workflows.evaluate",
    "export": "workflows.export",
    "init": "workflows.init",
    "load_settings": "settings",
    "load_student": "runs.run",
    "predict": "workflows.predict",
    "train": "workflows.train",
    "train_chain": "chains.generations",
    "views_of": "workflows.views_of",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that the command line starts without torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
