"""The whole state of a training in one safetensors file, so that it resumes to the same bytes. No pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ensemble_distill.errors import EdistillError, quoted
from ensemble_distill.runs.folder import CHECKPOINT, train_again
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.files import read_whole, write_whole
from ensemble_distill.runtime.jsons import parse_json
from ensemble_distill.runtime.seals import checked_metadata, seal_safetensors, sealed_metadata

_MARK = "tensor:"


@dataclass
class RunPlace:
    """The folder of a run in training.

    Attributes:
        claim: takes over the folder for this training; called once, before the first file is written there.
        replacing: whether the folder holds another run, which stays until the first checkpoint of this one.
    """

    folder: Path
    claim: Callable[[], None] = lambda: None
    replacing: bool = False
    _own: bool = field(default=False, init=False)

    def own(self) -> None:
        """Take over the folder for this training, once; with several processes, the first one does."""
        if not self._own and ranks.is_first():
            self.claim()
        self._own = True

    def load(self) -> dict[str, Any] | None:
        """The checkpoint to resume from; None if there is none. Raises EdistillError if it is damaged."""
        return None if self.replacing else load_state(self.folder)

    def save(self, state: Mapping[str, Any]) -> None:
        self.own()
        if ranks.is_first():
            save_state(self.folder, state)

    @property
    def begun(self) -> bool:
        """Whether the folder holds a checkpoint to resume from."""
        return not self.replacing and (self.folder / CHECKPOINT).is_file()

    @property
    def kept(self) -> bool:
        """Whether the folder holds a checkpoint of this training."""
        return self._own and (self.folder / CHECKPOINT).is_file()


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint: nested dicts, lists and tuples with tensors, dtypes or JSON values as leaves."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_split(state, "", tensors))
    write_whole(folder / CHECKPOINT, seal_safetensors(save(tensors, metadata={"state": text, **sealed_metadata()})))


def load_state(folder: Path) -> dict[str, Any] | None:
    """Read what `save_state` wrote, onto the CPU; None if there is no checkpoint.

    Raises:
        EdistillError: the file is damaged.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    try:
        content = read_whole(path)
        metadata = checked_metadata(content)
        state = _join(parse_json(metadata["state"]), load(content))
        if not isinstance(state, dict):
            raise ValueError("its state is not a table")
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise damaged(folder, error) from None
    return state


def damaged(folder: Path, error: Exception) -> EdistillError:
    """The error for a checkpoint that `save_state` cannot have written."""
    return EdistillError(f"{folder / CHECKPOINT} is damaged ({quoted(error)}). Run {train_again(folder)}.")


def _split(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The structure with each tensor replaced by its name. Dicts become lists of pairs, since keys may be ints."""
    if isinstance(value, Tensor):
        # a copy on the CPU: safetensors refuses tensors that share memory, as tied weights do
        tensors[name] = value.detach().cpu().clone().contiguous()
        return _MARK + name
    if isinstance(value, Mapping):
        return {"dict": [[key, _split(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_split(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    return value


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, str) and value.startswith(_MARK):
        return tensors[value.removeprefix(_MARK)]
    if isinstance(value, dict):
        if "dict" in value:
            return {key: _join(item, tensors) for key, item in value["dict"]}
        if "dtype" in value:
            return getattr(torch, value["dtype"])
        kind = list if "list" in value else tuple
        return kind(_join(item, tensors) for item in value[kind.__name__])
    return value


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that dropout draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
