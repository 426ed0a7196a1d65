"""Choose among the sets of weights in a checkpoint: the average if there is one. Sets left unused are reported."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.teachers.averages import AVERAGED, average_under, averaged_by, in_callbacks, swapped
from ensemble_distill.teachers.states import (
    State,
    as_state,
    digest,
    fits,
    is_weights,
    odd_entries,
    refuse_unreadable,
    renamings,
    unwrapped,
)

PLAIN = ("state_dict", "model", "model_state_dict", "net", "params")
LAST = "current_model_state"  # Lightning's WeightAveraging keeps the last step here, and the average in state_dict
ASIDE = ("backup", "collected_params", "original_state_dict")  # where averages keep the last step for a while
DEPTH = 4  # levels of nested keys searched: callbacks, a callback, its state, …

SAVE_STATE = "safetensors.torch.save_file(model.state_dict(), 'member.safetensors')"


@dataclass(frozen=True)
class Weights:
    """A state dict on the CPU without the prefixes of wrappers.

    Attributes:
        state: parameters and buffers by name.
        ema: whether it is the checkpoint's moving average rather than its last step.
        key: its path in the file, such as "ema.shadow"; empty if it is the whole file.
        unused: paths of others that could have been meant: the same names and shapes, or an average.
    """

    state: Mapping[str, Tensor]
    ema: bool = False
    key: str = ""
    unused: tuple[str, ...] = ()


def choose(path: Path, content: object) -> Weights:
    """Choose the weights in a file's content, preferring an average to the last step: the average was evaluated.

    Raises:
        EdistillError: there is no state dict, its tensors cannot be read, or several averages differ.
    """
    if isinstance(content, nn.Module):
        raise whole_module(path, f"a whole {type(content).__name__} module")
    if not isinstance(content, Mapping):
        raise EdistillError(
            f"{path} holds a {type(content).__name__}, not a state dict. Save the weights: {SAVE_STATE}."
        )
    key, plain = _plain(content)
    already = swapped(content) or LAST in content  # the average stands where others keep the last step
    averages = {} if already else dict(_averages(content, plain))
    for average in averages.values():
        refuse_unreadable(path, average)
    if averages:
        _refuse_several(path, content, averages)
        key, state = next(iter(averages.items()))
        return Weights(state, True, key, _unused(path, content, state, {*averages, *PLAIN}))
    if plain is None:
        raise _no_state(path, content)
    refuse_unreadable(path, plain)
    is_average = already or averaged_by(content[key] if key else content)
    passed = {key, LAST, "ema_state_dict"} if already else {key}
    return Weights(unwrapped(plain), is_average, key, _unused(path, content, unwrapped(plain), passed))


def whole_module(path: Path, what: str) -> EdistillError:
    return EdistillError(
        f"{path} holds {what}, not a state dict: its classes would have to be imported as they were that "
        f"day. Save its weights, {SAVE_STATE}, and say what builds the module with teachers.model."
    )


def _plain(content: Mapping[Any, Any]) -> tuple[str, State | None]:
    for key in PLAIN:
        if (state := as_state(content.get(key))) is not None:
            return key, state
    return "", as_state(content)


def _averages(content: Mapping[Any, Any], plain: State | None) -> Iterator[tuple[str, State]]:
    for key, value in content.items():
        if isinstance(value, nn.Module) and plain is None:
            continue  # a file of whole modules
        known = key in AVERAGED
        if (known or (averaged_by(value) and key not in PLAIN)) and (found := average_under(value, plain)) is not None:
            yield f"{key}{found[0]}", found[1]
    yield from in_callbacks(content, plain)


def _refuse_several(path: Path, content: Mapping[Any, Any], averages: Mapping[str, State]) -> None:
    """Refuse averages that differ: nothing says which of them was evaluated."""
    first, *others = averages
    differing = [key for key in others if digest(averages[key]) != digest(averages[first])]
    if differing:
        removed = "; ".join(f"del c{_at(content, key)}" for key in differing)
        raise EdistillError(
            f"{path} holds several averages of its weights, {', '.join([first, *differing])}, and they differ. Leave "
            f"in it the one that was evaluated, for instance {first}: {_loading(content)}c = torch.load({path.name!r}, "
            f"weights_only=True); {removed}; torch.save(c, 'member.pth'). Put member.pth in its place."
        )


def _loading(content: Mapping[Any, Any]) -> str:
    """The statement that torch.load needs before it reads a timm checkpoint, or ""."""
    if any(isinstance(value, argparse.Namespace) for value in content.values()):
        return "torch.serialization.add_safe_globals([argparse.Namespace]); "
    return ""


def _at(content: Mapping[Any, Any], key: str) -> str:
    """The subscripts for a dotted key, such as `['callbacks']['EMA']`; names may contain dots themselves."""
    for name, value in content.items():
        if str(name) == key:
            return f"[{name!r}]"
        if isinstance(value, Mapping) and key.startswith(f"{name}.") and (rest := _at(value, key[len(f"{name}.") :])):
            return f"[{name!r}]{rest}"
    return ""


# --- what is not used -------------------------------------------------------------------------------------------


def _unused(path: Path, content: Mapping[Any, Any], state: State, passed: set[str]) -> tuple[str, ...]:
    """Paths of other weights that could have been meant."""
    return tuple(
        key
        for key, value in _within(content, passed)
        if _is_average_of_another_form(key, value) or _is_another(path, value, state)
    )


def _within(
    content: Mapping[Any, Any], passed: set[str], before: str = "", depth: int = DEPTH
) -> Iterator[tuple[str, Any]]:
    """Yield the path and value of every nested entry other than a tensor, skipping the keys in `passed` and `ASIDE`."""
    for name, value in content.items():
        key = f"{before}{name}"
        if key in passed or name in ASIDE or isinstance(value, Tensor):
            continue
        yield key, value
        if isinstance(value, Mapping) and depth > 1 and as_state(value) is None:
            yield from _within(value, passed, f"{key}.", depth - 1)


def _is_another(path: Path, value: object, state: State) -> bool:
    """Whether `value` has the names and shapes of `state`, up to a prefix, but other values."""
    other = as_state(value)
    if other is None or len(other := unwrapped(other)) != len(state):
        return False
    way = next((way for way in renamings(other, state) if fits(other, state, way)), None)
    if way is None:
        return False
    refuse_unreadable(path, other)
    return digest({way[name]: tensor for name, tensor in other.items()}) != digest(state)


def _is_average_of_another_form(key: str, value: object) -> bool:
    """Whether `value` is an average without names: a list of tensors, or a whole module."""
    if key.split(".")[0] not in AVERAGED and not key.startswith("callbacks."):
        return False
    if isinstance(value, list | tuple):
        last = key.rpartition(".")[2]
        averaged = last in AVERAGED or last == "shadow_params"
        return averaged and bool(value) and all(isinstance(tensor, Tensor) for tensor in value)
    return isinstance(value, nn.Module)


# --- what cannot be used ----------------------------------------------------------------------------------------


def _no_state(path: Path, content: Mapping[Any, Any]) -> EdistillError:
    for key in (*PLAIN, *AVERAGED):
        if isinstance(content.get(key), nn.Module):
            return whole_module(path, f"a whole {type(content[key]).__name__} module under {key!r}")
    for key in (*PLAIN, *AVERAGED, ""):
        almost = content.get(key) if key else content
        if isinstance(almost, Mapping) and any(isinstance(value, Tensor) for value in almost.values()):
            return _almost(path, content, key, almost)
    elsewhere = [key for key, value in _within(content, set()) if (s := as_state(value)) is not None and is_weights(s)]
    if elsewhere:
        return EdistillError(
            f"{path} holds state dicts under {first_few(elsewhere)}, and weights are looked for under "
            f"{', '.join(PLAIN)}, or as the whole file. Save the one that is the member by itself, for instance "
            f"{elsewhere[0]}: {_loading(content)}torch.save(torch.load({path.name!r}, weights_only=True)"
            f"{_at(content, elsewhere[0])}, 'member.pth'). Put member.pth in its place."
        )
    return EdistillError(
        f"{path} holds no state dict: its keys are {first_few([str(key) for key in content], 6) or 'none'}. "
        f"Save the weights: {SAVE_STATE}."
    )


def _almost(path: Path, content: Mapping[Any, Any], key: str, value: Mapping[Any, Any]) -> EdistillError:
    """The error for a mapping of tensors that contains something else."""
    beside = [f"{name!r} is not text" for name in value if not isinstance(name, str)] or odd_entries(value)
    beside = beside or [f"{name} is a {type(e).__name__}" for name, e in value.items() if not isinstance(e, Tensor)]
    at = f"[{key!r}]" if key else ""
    return EdistillError(
        f"{path} holds {f'under {key} ' if key else ''}tensors by name, and among them what is none: "
        f"{first_few(beside)}. Save the tensors alone: {_loading(content)}torch.save({{str(name): tensor for name, "
        f"tensor in torch.load({path.name!r}, weights_only=True){at}.items() if isinstance(tensor, torch.Tensor)}}, "
        f"'member.pth'). Put member.pth in its place."
    )
