"""The machine as `doctor` reports it: versions, devices, memory and free disk space."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from ensemble_distill import __version__
from ensemble_distill.runtime.cores import cores_here
from ensemble_distill.runtime.disk import free_bytes
from ensemble_distill.runtime.files import memory

LIBRARIES = ("torch", "timm", "numpy", "onnx", "onnxruntime", "safetensors", "scikit-learn")
OPTIONAL = ("pyarrow", "transformers", "skops")


def machine_here(folder: Path) -> dict[str, Any]:
    """The facts of this machine; `folder` lies on the disk for results."""
    import torch

    devices = ["cpu", *(f"cuda:{at} ({torch.cuda.get_device_name(at)})" for at in range(torch.cuda.device_count()))]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return {
        "edistill": __version__,
        "python": platform.python_version(),
        "versions": {name: found for name in (*LIBRARIES, *OPTIONAL) if (found := _version(name)) is not None},
        "lacking": [name for name in LIBRARIES if _version(name) is None],
        "devices": devices,
        "cores": cores_here(),
        "threads": torch.get_num_threads(),
        "memory": memory(),
        "free_disk": free_bytes(folder),
    }


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None
