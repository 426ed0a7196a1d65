"""Read state dicts from checkpoint files without running the code in a pickle."""

from __future__ import annotations

import argparse
import pickle
import re
import tarfile
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from ensemble_distill.errors import EdistillError, first_line
from ensemble_distill.runtime import memory
from ensemble_distill.runtime.words import bytes_told
from ensemble_distill.teachers.choosing import SAVE_STATE, Weights, choose, whole_module
from ensemble_distill.teachers.states import refuse_unreadable, unwrapped

OF_FOLDERS = ("model.safetensors", "pytorch_model.bin")  # names of the weights file in a Hugging Face folder


def read_weights(path: Path, trust: bool = False) -> Weights:
    """Read one checkpoint, preferring averaged weights to the last step: the average was evaluated.

    Pickles are read by torch's restricted loader, which only builds tensors and containers. timm's checkpoints also
    hold an `argparse.Namespace`, the only other class allowed.

    Args:
        path: a `.safetensors` file, or one written by `torch.save`.
        trust: load what the restricted loader refuses as well. That can run any code the file names.

    Raises:
        EdistillError: the file is missing or corrupt, names another global, or holds no state dict.
    """
    refuse_pointer(path)
    if path.name.lower().endswith(".safetensors"):
        state = unwrapped(_read_safetensors(path))
        refuse_unreadable(path, state)
        return Weights(state)
    return choose(path, _read_pickle(path, trust))


# --- reading ------------------------------------------------------------------------------------------------


def refuse_pointer(path: Path) -> None:
    """Raise EdistillError for a file that cannot be read, or that is a Git LFS pointer."""
    try:
        with path.open("rb") as file:
            start = file.read(40)
    except OSError as error:
        raise EdistillError(f"{path} cannot be read: {error.strerror}. Check the file and its rights.") from None
    if start.startswith(b"version https://git-lfs"):
        raise EdistillError(f"{path} is a Git LFS pointer, not the weights. Run git lfs pull where it came from.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import safetensors
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, MemoryError, RuntimeError) as error:
        raise _corrupt(path, error) from None
    if not state:
        raise EdistillError(f"{path} holds no tensors. Save the trained weights: {SAVE_STATE}.")
    return state


def _read_pickle(path: Path, trust: bool) -> object:
    if is_torchscript(path):
        raise whole_module(path, "a TorchScript archive")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not trust:
            raise _refused(path, str(error)) from None
    # damaged bytes fail inside the unpickler as almost any exception: index, key, type, struct, runtime
    except Exception as error:
        if not trust:
            raise _corrupt(path, error) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise _corrupt(path, error) from error


def is_torchscript(path: Path) -> bool:
    """Whether `torch.jit.save` wrote a file; no weights are read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False  # not an archive, or not one that torch can read


def _refused(path: Path, reason: str) -> EdistillError:
    """The error for a refused pickle; of torch's page-long message it quotes the global alone."""
    named = re.search(r"GLOBAL (\S+)", reason)
    if named is None:
        detail = reason.strip().splitlines()[-1] if "Unsupported operand" not in reason else "its pickle protocol"
        return EdistillError(
            f"{path} is refused: it is damaged, or uses what torch's restricted loader does not read "
            f"({detail}). Save the weights again, best without pickle: {SAVE_STATE}. If you trust where the "
            f"file comes from, --trust-checkpoints loads it as it is."
        )
    return EdistillError(
        f"{path} is refused: its pickle names {named[1]}, and loading that can run any code. If the file is "
        f"a whole pickled model, save its weights instead: {SAVE_STATE}. --trust-checkpoints is the only "
        f"way in, for files whose origin you trust."
    )


def _corrupt(path: Path, error: Exception) -> EdistillError:
    if path.is_file() and tarfile.is_tarfile(path):
        return EdistillError(
            f"{path} is a tar archive, not a file of torch.save. Unpack it and give the checkpoint in it."
        )
    size, left = path.stat().st_size if path.is_file() else 0, memory.on_machine()
    if 2 * size > left and isinstance(error, MemoryError | RuntimeError):  # torch's message varies
        return EdistillError(
            f"{path} has {bytes_told(size)}, twice as much is needed while it is read, and {bytes_told(left)} of "
            "memory are left (or it is damaged). Close other programs, or raise the limit of this process (ulimit -v) "
            "or of its container."
        )
    return EdistillError(
        f"{path} is not a checkpoint that can be read: {first_line(error)}. Copy it again if it was cut short, or save "
        f"the weights again: {SAVE_STATE}."
    )
