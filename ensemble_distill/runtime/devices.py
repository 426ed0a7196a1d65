"""Choosing a device and the number of loader processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ensemble_distill.errors import EdistillError, first_line
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.cores import cores_here
from ensemble_distill.runtime.ranks import Rank


def resolve(name: str) -> torch.device:
    """The torch device with this name; "auto" is the first CUDA device, else Apple's, else the CPU.

    Each of several processes on one machine gets a CUDA device of its own.

    Raises:
        EdistillError: torch does not know the name, the device is not available, or processes would have to share it.
    """
    if (local := ranks.local()).world > 1 or ranks.current().world > 1:
        return _own(name, local)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    return _named(name)


def _own(name: str, local: Rank) -> torch.device:
    """The device of one of several processes; a CUDA device becomes torch's current one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = _named(name)
    if device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise EdistillError(
            f"train.device is {name!r}, and each process of torchrun has a device of its own: cuda means one each. Use "
            "--device cuda, cpu or auto."
        )
    if local.world > (count := torch.cuda.device_count()):
        raise EdistillError(
            f"torchrun started {local.world} processes on this machine, which has {count} CUDA devices. Start with "
            f"--nproc-per-node {count}, or use --device cpu."
        )
    own = torch.device("cuda", local.index)
    torch.cuda.set_device(own)
    return own


def _named(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EdistillError(f"Device {name!r} cannot be used: {first_line(error)}. Try --device cpu or auto.") from None
    return device


def loader_workers(asked: int | None, device: torch.device) -> int:
    """The number of loader processes: `asked` if given, else a default for the device.

    The default is 0 on a CPU, whose cores the model needs itself; the caching pass and training then try whether more
    are faster (`runtime/workers.py`).
    """
    if asked is not None:
        return asked
    return 0 if device.type == "cpu" else min(8, cores_here())


@contextmanager
def whole_float32() -> Iterator[None]:
    """Full float32 precision in the block, whatever the model's code has set; the old settings are restored afterwards.

    It disables TF32 on CUDA, which cuDNN uses for convolutions by default, and bfloat16 on a CPU.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.benchmark,
            deterministic=torch.backends.cudnn.deterministic,
            allow_tf32=False,
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
