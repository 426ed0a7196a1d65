"""Moving averages of weights in the file formats of the tools that write them.

The formats are those of timm (`state_dict_ema`), torch's `AveragedModel` (`n_averaged` and `module.`), torchvision and
DeiT (`model_ema`), BasicSR (`params_ema`), torch_ema and diffusers (`shadow_params`, a list in parameter order),
ema_pytorch (`ema_model.` beside `online_model.`), mmengine, and Lightning's callbacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ensemble_distill.teachers.states import (
    STATISTICS,
    State,
    as_state,
    fits,
    is_weights,
    renamings,
    unwrapped,
)

AVERAGED = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "ema_state_dict",
    "ema_model",
    "model_ema_state_dict",
    "ema_model_state_dict",
    "model_state_dict_ema",
    "ema_weights",
    "ema_params",
    "params_ema",
    "net_ema",
    "ema_net",
    "swa_model",
    "swa_state_dict",
    "swa_model_state_dict",
    "averaged_model",
    "average_model_state",  # Lightning's StochasticWeightAveraging
    "average_model_state_dict",
)
# where an average lies below a key of AVERAGED. Other entries are something else: `backup` and `collected_params`
# beside a shadow are the last step, stored away for a while
INSIDE = ("shadow", "shadow_params", "module", "model", "state_dict", "params", "weights", *AVERAGED)
DEPTH = 2


def average_under(value: object, plain: State | None, depth: int = DEPTH) -> tuple[str, State] | None:
    """Find the average in the value of a key of `AVERAGED`.

    Args:
        plain: the last step's weights from the same file. Entries that the average lacks were not averaged and are
            taken from here, as the tools themselves do.

    Returns:
        Its path within `value` (".shadow", or "" for the value itself) and the average; None if there is none.
    """
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if plain is not None and never_averaged(value):
        return None
    if isinstance(value, list | tuple):
        listed = _by_order(value, plain)
        return None if listed is None else ("", listed)
    if not isinstance(value, Mapping):
        return None
    state = as_state(value)
    if state is not None and is_weights(state):
        return "", _completed(_inner(state), plain, every=False)
    for key in INSIDE if depth else ():
        if key in value and (found := average_under(value[key], plain, depth - 1)) is not None:
            at, average = found
            return f".{key}{at}", _completed(average, plain, every=key == "shadow")
    return None


def averaged_by(value: object) -> bool:
    """Whether `value` is the state dict of a torch `AveragedModel` that has averaged at least one step."""
    return isinstance(value, Mapping) and _is_averaged_model(value) and not never_averaged(value)


def never_averaged(value: object) -> bool:
    """Whether `value` is an average that has not begun and still holds its initial weights."""
    count = value.get("n_averaged") if isinstance(value, Mapping) else None
    number = count.item() if isinstance(count, Tensor) and count.numel() == 1 else count
    return isinstance(number, int | float) and number == 0


def swapped(content: Mapping[Any, Any]) -> bool:
    """Whether `state_dict` is the average and `ema_state_dict` the last step: mmengine swaps them in its files."""
    average = content.get("ema_state_dict")
    if not isinstance(average, Mapping) or "state_dict" not in content:
        return False
    meta = content.get("meta")
    named = isinstance(meta, Mapping) and "mmengine_version" in meta
    counted = "steps" in average and all(str(name).startswith("module.") for name in average if name != "steps")
    return named or counted


def in_callbacks(content: Mapping[Any, Any], plain: State | None) -> Iterator[tuple[str, State]]:
    """Yield the path and the weights of each average in the states of Lightning's callbacks."""
    callbacks = content.get("callbacks")
    for name, state in callbacks.items() if isinstance(callbacks, Mapping) else ():
        if not isinstance(state, Mapping) or never_averaged(state):
            continue
        for key in AVERAGED:
            if key in state and (found := average_under(state[key], plain)) is not None:
                yield f"callbacks.{name}.{key}{found[0]}", found[1]
                break
        else:
            if (
                "ema" in str(name).lower()
                and plain is not None
                and (found := average_under(state, plain, 0)) is not None
            ):
                yield f"callbacks.{name}", found[1]


def _is_averaged_model(value: Mapping[Any, Any]) -> bool:
    return "n_averaged" in value and all(str(name).startswith("module.") for name in value if name != "n_averaged")


def _inner(state: State) -> State:
    """The averaged module's own weights, without prefixes and counters."""
    of_average = {name.removeprefix("ema_model."): t for name, t in state.items() if name.startswith("ema_model.")}
    if of_average:
        return unwrapped(of_average)
    wrapped = {name: tensor for name, tensor in state.items() if "." in name or tensor.dim() > 0}
    return unwrapped(wrapped if all(name.startswith("module.") for name in wrapped) else state)


def _completed(average: State, plain: State | None, every: bool) -> State:
    """The average, completed with entries of the last step that it lacks.

    Args:
        every: take all missing entries. Otherwise take only buffers and entries of modules that the average covers:
            the rest may belong to a criterion.
    """
    if plain is None:
        return average
    last = unwrapped(plain)
    ways = [way for way in renamings(average, last) if fits(average, last, way)]
    as_it_is = bool(ways) and all(name == new for name, new in ways[0].items())
    if len(average) == len(last) or not (as_it_is or len(ways) == 1):
        return average
    renamed = {ways[0][name]: tensor for name, tensor in average.items()}
    parents = {name.rpartition(".")[0] for name in renamed}
    lacking = {
        name: tensor
        for name, tensor in last.items()
        if name not in renamed and (every or _is_buffer(name, tensor) or name.rpartition(".")[0] in parents)
    }
    return {**lacking, **renamed} if lacking else average


def _is_buffer(name: str, tensor: Tensor) -> bool:
    return name.rpartition(".")[2] in STATISTICS or not tensor.is_floating_point()


def _by_order(listed: Sequence[object], plain: State | None) -> State | None:
    """Name a list of tensors after the last step's entries, or after its parameters alone.

    None unless the count and all shapes agree in order, so that only one naming is possible.
    """
    if plain is None or not listed or not all(isinstance(tensor, Tensor) for tensor in listed):
        return None
    last = unwrapped(plain)
    for names in (list(last), [name for name, tensor in last.items() if not _is_buffer(name, tensor)]):
        named = dict(zip(names, listed, strict=False))
        if len(names) == len(listed) and all(
            last[n].shape == t.shape for n, t in named.items() if isinstance(t, Tensor)
        ):
            return {**last, **{name: tensor for name, tensor in named.items() if isinstance(tensor, Tensor)}}
    return None
