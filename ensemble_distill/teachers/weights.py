"""State dicts out of checkpoint files, without running what a pickle would run, and their digest."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.teachers.names import first_few

AVERAGED = ("state_dict_ema", "model_ema", "ema")
PLAIN = ("state_dict", "model", "model_state_dict")
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel's and torch.compile's

_SAVE_STATE = "safetensors.torch.save_file(model.state_dict(), 'member.safetensors')"


@dataclass(frozen=True)
class Weights:
    """A state dict on the CPU, wrappers' prefixes removed.

    Attributes:
        state: parameters and buffers by name.
        ema: whether they are the checkpoint's moving average rather than its last step.
    """

    state: Mapping[str, Tensor]
    ema: bool = False


def read_weights(path: Path, trust: bool = False) -> Weights:
    """Read one checkpoint: the averaged weights if it holds both, since those are what was evaluated.

    Pickles are read by torch's restricted loader, which builds tensors and containers only; timm's own
    checkpoints also hold an `argparse.Namespace`, the one class allowed besides.

    Args:
        path: a `.safetensors` file, or one written by `torch.save`.
        trust: where the restricted loader refuses, load anyway. That can run any code the file names.

    Raises:
        EdistillError: the file is missing or corrupt, names another global, or holds no state dict.
    """
    _refuse_pointer(path)
    if path.name.lower().endswith(".safetensors"):
        return Weights(_dense(path, _unwrapped(_read_safetensors(path))))
    content = _read_pickle(path, trust)
    state, averaged = _choose(path, content)
    return Weights(_dense(path, _unwrapped(state)), averaged)


def digest(state: Mapping[str, Tensor]) -> str:
    """sha256 hex of a state dict: names in sorted order, each with its dtype, shape and bytes."""
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        # dtype and shape fix the number of bytes that follow, so no two state dicts read the same
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


# --- reading ------------------------------------------------------------------------------------------------


def _refuse_pointer(path: Path) -> None:
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
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise _corrupt(path, error) from None
    if not state:
        raise EdistillError(f"{path} holds no tensors. Save the trained weights: {_SAVE_STATE}.")
    return state


def _read_pickle(path: Path, trust: bool) -> object:
    if _is_torchscript(path):
        raise _whole_module(path, "a TorchScript archive")
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


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _refused(path: Path, reason: str) -> EdistillError:
    """Torch's message is a page; what a reader needs of it is the global."""
    named = re.search(r"GLOBAL (\S+)", reason)
    if named is None:
        detail = reason.strip().splitlines()[-1] if "Unsupported operand" not in reason else "its pickle protocol"
        return EdistillError(
            f"{path} is refused: it is damaged, or uses what torch's restricted loader does not read "
            f"({detail}). Save the weights again, best without pickle: {_SAVE_STATE}. If you trust where the "
            f"file comes from, --trust-checkpoints loads it as it is."
        )
    return EdistillError(
        f"{path} is refused: its pickle names {named[1]}, and loading that can run any code. If the file is "
        f"a whole pickled model, save its weights instead: {_SAVE_STATE}. --trust-checkpoints is the only "
        f"way in, for files whose origin you trust."
    )


def _corrupt(path: Path, error: Exception) -> EdistillError:
    if path.is_file() and tarfile.is_tarfile(path):
        return EdistillError(
            f"{path} is a tar archive, not a file of torch.save. Unpack it and give the checkpoint in it."
        )
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return EdistillError(
        f"{path} is not a checkpoint that can be read: {first}. Copy it again if it was cut short, or save "
        f"the weights anew: {_SAVE_STATE}."
    )


def _whole_module(path: Path, what: str) -> EdistillError:
    return EdistillError(
        f"{path} holds {what}, not a state dict: its classes would have to be imported as they were that "
        f"day. Save its weights, {_SAVE_STATE}, and say what builds the module with teachers.model."
    )


# --- choosing -----------------------------------------------------------------------------------------------


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _choose(path: Path, content: object) -> tuple[Mapping[str, Tensor], bool]:
    if isinstance(content, nn.Module):
        raise _whole_module(path, f"a whole {type(content).__name__} module")
    if not isinstance(content, Mapping):
        raise EdistillError(
            f"{path} holds a {type(content).__name__}, not a state dict. Save the weights: {_SAVE_STATE}."
        )
    for key in (*AVERAGED, *PLAIN):
        if _is_state(content.get(key)):
            return content[key], key in AVERAGED
    if _is_state(content):
        return content, False
    for key in PLAIN:
        if isinstance(content.get(key), nn.Module):
            raise _whole_module(path, f"a whole {type(content[key]).__name__} module under {key!r}")
    raise EdistillError(
        f"{path} holds no state dict: its keys are {first_few([str(key) for key in content], 6) or 'none'}. "
        f"Weights are looked for under {', '.join((*AVERAGED, *PLAIN))}, or as the whole file. "
        f"Save them so: {_SAVE_STATE}."
    )


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove wrappers' prefixes, nested in any order, as long as every key has the same one."""
    names = dict(state)
    # torch's AveragedModel counts its updates beside the module it wraps
    if "n_averaged" in names and all(name.startswith("module.") for name in names if name != "n_averaged"):
        del names["n_averaged"]
    while prefix := next((p for p in WRAPPERS if names and all(name.startswith(p) for name in names)), None):
        names = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
    return names


def _dense(path: Path, state: dict[str, Any]) -> dict[str, Tensor]:
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_meta:
            kind = "without data" if tensor.is_meta else "sparse"
            raise EdistillError(
                f"{path}: {name} is {kind}; only dense tensors are read. Save the dense floating-point "
                f"weights the model was trained with."
            )
    return state
