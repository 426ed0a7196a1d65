"""Choosing a device and the number of loader processes."""

from __future__ import annotations

import os

import torch

from ensemble_distill.errors import EdistillError, first_line


def resolve(name: str) -> torch.device:
    """The torch device of that name; "auto" is the first CUDA device, else Apple's, else the CPU.

    Raises:
        EdistillError: the name is unknown to torch or the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EdistillError(f"Device {name!r} cannot be used: {first_line(error)}. Try --device cpu or auto.") from None
    return device


def loader_workers(asked: int | None, device: torch.device) -> int:
    """Loader processes: what was asked; by default none on a CPU, whose cores the model needs itself."""
    if asked is not None:
        return asked
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
