"""State dicts: what counts as one, the prefixes of its names, and its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensemble_distill.errors import EdistillError

WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel's and torch.compile's
COUNTER = "num_batches_tracked"  # BatchNorm's, which some tools write as a plain int
STATISTICS = ("running_mean", "running_var", COUNTER)

MOST_SPREAD = 2**30  # bytes that tensors may claim beyond their file's size, as views of shared numbers

State = dict[str, Tensor]


def as_state(value: object) -> State | None:
    """The tensors of a state dict; None if `value` is not a state dict.

    A counter of BatchNorm may be an int. Numbers, texts and None under names without a dot, such as `epoch`, may be
    among the tensors if the tensors are the majority.
    """
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return None
    state = {name: tensor for name, entry in value.items() if (tensor := _tensor(name, entry)) is not None}
    beside = len(value) - len(state)
    return state if len(state) > beside and not odd_entries(value) else None


def _tensor(name: str, entry: object) -> Tensor | None:
    if isinstance(entry, Tensor):
        return entry
    counts = name.rpartition(".")[2] == COUNTER and type(entry) is int and abs(entry) < 2**63
    return torch.tensor(entry) if counts else None


def odd_entries(value: Mapping[Any, Any]) -> list[str]:
    """The entries that no state dict has, each described as "head.scale is a float"."""
    return [
        f"{name} is a {type(entry).__name__}"
        for name, entry in value.items()
        if _tensor(str(name), entry) is None
        and not ("." not in str(name) and isinstance(entry, int | float | str | None))
    ]


def is_weights(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict holds more than scalars, such as counters and rates."""
    return any(tensor.dim() > 0 for tensor in state.values())


def unwrapped(state: Mapping[str, Tensor]) -> State:
    """Remove the prefixes of wrappers, nested in any order, as long as all keys have them."""
    names = dict(state)
    # torch's AveragedModel counts its updates beside the module it wraps
    if "n_averaged" in names and all(name.startswith("module.") for name in names if name != "n_averaged"):
        del names["n_averaged"]
    while prefix := next((p for p in WRAPPERS if names and all(name.startswith(p) for name in names)), None):
        names = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
    return names


def prefixes(names: Collection[str]) -> list[str]:
    """The common prefixes of all names that end with a dot, shortest first: "", "model.", "model.net."."""
    found, first = [""], next(iter(names), "")
    for at, character in enumerate(first):
        if character == "." and all(name.startswith(first[: at + 1]) for name in names):
            found.append(first[: at + 1])
    return found


def renamings(names: Collection[str], wanted: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield every renaming of all `names` to some of `wanted` that exchanges one common prefix for another.

    If the names fit as they are, the renaming that changes nothing comes first.
    """
    if not names:
        return
    there, seen = set(wanted), set()
    for off in prefixes(names):
        first = next(iter(names))[len(off) :]
        ends = sorted((name for name in there if name == first or name.endswith(f".{first}")), key=len)
        for on in ("", *(name[: len(name) - len(first)] for name in ends)):
            renaming = {name: on + name[len(off) :] for name in names}
            new = tuple(renaming.values())
            if new not in seen and there.issuperset(new):
                seen.add(new)
                yield renaming


def fits(state: Mapping[str, Tensor], into: Mapping[str, Tensor], renaming: Mapping[str, str]) -> bool:
    """Whether each tensor has the shape of the one it is renamed to."""
    return all(tensor.shape == into[renaming[name]].shape for name, tensor in state.items())


def refuse_unreadable(path: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse tensors without ordinary data before anything reads them.

    Raises:
        EdistillError: a tensor is sparse, quantized or without data, or all together claim far more bytes than the
            file holds.
    """
    for name, tensor in state.items():
        kind = (
            "without data"
            if tensor.is_meta
            else "sparse"
            if tensor.layout is not torch.strided
            else "quantized"
            if tensor.is_quantized
            else None
        )
        if kind is not None:
            raise EdistillError(
                f"{path}: {name} is {kind}; only dense tensors are read. Save the dense floating-point "
                "weights the model was trained with."
            )
    claimed, there = sum(tensor.numel() * tensor.element_size() for tensor in state.values()), path.stat().st_size
    if claimed > there + MOST_SPREAD:
        raise EdistillError(
            f"{path} has {there:,} bytes, and its tensors claim {claimed:,}: the same numbers again and again. Save "
            "tensors of their own, each with .contiguous()."
        )


def digest(state: Mapping[str, Tensor]) -> str:
    """sha256 hex of a state dict: names in sorted order, each with its dtype, shape and bytes."""
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        # dtype and shape fix the number of bytes that follow, so different state dicts never hash the same stream
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
