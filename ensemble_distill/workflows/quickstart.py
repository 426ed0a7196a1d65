"""`edistill quickstart`: a working folder to edit, made from scikit-learn's 8×8 digits.

The members are trained here because a fresh machine has no ensemble; everything after that is what a user runs.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ensemble_distill.errors import EdistillError
from ensemble_distill.quickstart.digits import make_ensemble
from ensemble_distill.runtime.files import write_text
from ensemble_distill.runtime.progress import Progress, Silent

COMMANDS = ("cache-logits", "train --method hydra", "evaluate", "export --onnx --safetensors")


def prepare(folder: Path, *, progress: Progress | None = None) -> None:
    """Fill an empty folder with `edistill.toml`, `model.py`, data and an ensemble of 8 small networks.

    Raises:
        EdistillError: the folder is not empty.
    """
    progress = progress or Silent()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EdistillError(f"{folder} exists and is not empty. Give quickstart a new folder: edistill quickstart DIR.")
    progress.note(f"Making {folder}/: edistill.toml, model.py, data, and an ensemble trained on 8×8 digits.")
    for source in files("ensemble_distill.quickstart").joinpath("template").iterdir():
        if source.name in ("edistill.toml", "model.py"):
            write_text(folder / source.name, source.read_text(encoding="utf-8"))
    make_ensemble(folder, progress)
