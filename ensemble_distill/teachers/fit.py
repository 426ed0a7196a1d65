"""Load weights into the module they were trained in, and refuse any others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.facts import Member
from ensemble_distill.teachers.choosing import Weights
from ensemble_distill.teachers.encodings import refuse_other_tokenizer
from ensemble_distill.teachers.states import COUNTER, State, digest, prefixes, renamings
from ensemble_distill.teachers.teacher import Context, Origin, Teacher
from ensemble_distill.teachers.weights import read_weights

BARE = "teachers.model and teachers.model-kwargs"
NOBODYS = ("total_ops", "total_params")  # buffers that the profiler thop leaves in every module


def load_weights(module: nn.Module, state: Mapping[str, Tensor], name: str, built_from: str = BARE) -> list[str]:
    """Copy a state dict into a module, using every key of both; values are cast to the module's dtype.

    Keys may differ by one prefix common to all, on either side. A tensor that the module has under several names may
    be in the file once.

    Args:
        module: changed in place.
        state: parameters and buffers by name.
        name: the member's, for the message.
        built_from: the settings the user edits to get another module, for the message.

    Returns:
        A sentence for each adjustment that made them fit.

    Raises:
        EdistillError: keys are missing, unexpected, or of another shape. The message lists a few of each, or says
            that only the number of classes differs.
    """
    expected: State = {key: value for key, value in module.state_dict().items() if not is_lazy(value)}
    counts = [key for key in state if key.rpartition(".")[2] in NOBODYS and key not in expected]
    kept = {key: value for key, value in state.items() if key not in counts}
    told = [f"{name}: {first_few(counts)} count a profiler's operations; they are passed over."] if counts else []
    ways = renamings(kept, expected)
    for way in ({key: key for key in kept}, *(way for way in ways if any(key != new for key, new in way.items()))):
        renamed = {way[key]: value for key, value in kept.items()}
        if _load(module, expected, renamed, name, built_from):
            return told + _told_prefix(name, way)
    raise _misfit(module, expected, kept, name, built_from)


def _load(module: nn.Module, expected: State, state: State, name: str, built_from: str) -> bool:
    """Load the state if names and shapes agree, and return whether they do."""
    if any(key in expected and expected[key].shape != value.shape for key, value in state.items()):
        return False
    _refuse_lossy(expected, state, name, built_from)
    missing, unexpected = _unlike(module, state, name, built_from)
    return not (unexpected or set(missing) - _excused(module, expected, state))


def _unlike(module: nn.Module, state: State, name: str, built_from: str) -> tuple[list[str], list[str]]:
    """Load the state, and return the missing and unexpected keys.

    Torch decides which these are: BatchNorm, for example, accepts old files without its counters.
    """
    try:
        result = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise EdistillError(f"{name} does not fit its module: {error}. Check {built_from}.") from None
    return result.missing_keys, result.unexpected_keys


def _refuse_lossy(expected: State, state: State, name: str, built_from: str) -> None:
    """Refuse values that the module would lose: complex values of a real tensor, or two values of one tensor."""
    for key in state.keys() & expected.keys():
        if state[key].is_complex() and not expected[key].is_complex():
            raise EdistillError(
                f"{name} does not fit its module: {key} is complex in the checkpoint, and real in the module. Check "
                f"{built_from}."
            )
    for first, other in _tied(expected, state):
        if other in state and not torch.equal(*(state[key].to(expected[key].dtype) for key in (first, other))):
            raise EdistillError(
                f"{name} does not fit its module: {first} and {other} are one tensor in the module, and differ in the "
                f"checkpoint. Check {built_from}."
            )


def _excused(module: nn.Module, expected: State, state: State) -> set[str]:
    """Keys that may be missing: other names of tensors that are there, and counters of BatchNorm and AveragedModel."""
    excused = {other for _, other in _tied(expected, state)}
    for name, part in module.named_modules():
        if isinstance(part, AveragedModel | _NormBase):
            counter = "n_averaged" if isinstance(part, AveragedModel) else COUNTER
            excused.add(f"{name}.{counter}" if name else counter)
    return excused


def _tied(expected: State, state: Mapping[str, Tensor]) -> Iterable[tuple[str, str]]:
    """Yield (name in the checkpoint, other name of the same tensor in the module)."""
    named: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in expected.items():
        if tensor.numel() and tensor.layout is torch.strided and not tensor.is_meta:
            at = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            named.setdefault(at, []).append(name)
    for names in named.values():
        first = next((name for name in names if name in state), None)
        if first is not None:
            yield from ((first, other) for other in names if other != first)


def _told_prefix(name: str, way: Mapping[str, str]) -> list[str]:
    key, new = next(iter(way.items()), ("", ""))
    if key == new:
        return []
    off, on = key.split("."), new.split(".")
    while off and on and off[-1] == on[-1]:
        del off[-1], on[-1]
    key, new = "".join(f"{part}." for part in off), "".join(f"{part}." for part in on)
    if not new:
        return [f"{name}: names begin with {key!r} in the checkpoint and not in the module; they fit without it."]
    if not key:
        return [f"{name}: names begin with {new!r} in the module and not in the checkpoint; they fit with it."]
    return [
        f"{name}: names begin with {key!r} in the checkpoint and with {new!r} in the module; else they are the same."
    ]


def _misfit(
    module: nn.Module, expected: State, state: Mapping[str, Tensor], name: str, built_from: str
) -> EdistillError:
    shapes = {
        key: (tuple(state[key].shape), tuple(value.shape))
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    }
    excused = _excused(module, expected, {key: value for key, value in state.items() if key in expected})
    missing = [key for key in expected if key not in state and key not in excused]
    unexpected = [key for key in state if key not in expected]
    if not (missing or unexpected) and (counts := _only_classes(shapes)):
        return EdistillError(
            f"{name} was trained on {counts[0]} classes, but its module is built for {counts[1]} "
            f"({first_few(list(shapes))}). Set num_classes to {counts[0]} in {built_from}"
            + (", by the name that a factory of yours has for it." if built_from == BARE else ".")
        )
    problems = [
        f"{what}: {first_few(keys)}"
        for what, keys in (
            ("missing from the checkpoint", missing),
            ("not in the module", unexpected),
            (
                "of another shape",
                [f"{key} is {was} in the checkpoint, {wants} in the module" for key, (was, wants) in shapes.items()],
            ),
        )
        if keys
    ]
    remedy = _part(module, expected, state) or f"Check {built_from}."
    return EdistillError(f"{name} does not fit its module. {'; '.join(problems)}. {remedy}")


def _part(module: nn.Module, expected: State, state: Mapping[str, Tensor]) -> str | None:
    """The remedy for a checkpoint that holds more than the module, such as a criterion or an average; else None."""
    fitting: list[str] = []
    for on in prefixes(expected):
        first = next(iter(expected), "")[len(on) :]
        for off in sorted({key[: len(key) - len(first)] for key in state if key == first or key.endswith(f".{first}")}):
            part = {on + key[len(off) :]: value for key, value in state.items() if key.startswith(off)}
            whole = {
                key: value for key, value in part.items() if key in expected and value.shape == expected[key].shape
            }
            if whole.keys() | _excused(module, expected, whole) >= expected.keys() and off and off not in fitting:
                fitting.append(off)
    if not fitting:
        return None
    of_names = " and those that begin with ".join(map(repr, fitting))
    several = "both fit it: save those that were evaluated" if len(fitting) > 1 else "fit it: save them alone"
    return (
        f"Those that begin with {of_names} {several}, with state for the checkpoint's state dict: torch.save({{key: "
        f"tensor for key, tensor in state.items() if key.startswith({fitting[0]!r})}}, 'member.pth'). Put member.pth "
        "in its place."
    )


Shape = tuple[int, ...]


def _only_classes(shapes: Mapping[str, tuple[Shape, Shape]]) -> tuple[int, int] | None:
    """The number of classes of the checkpoint and of the module if nothing else differs; None otherwise.

    A layer of another width also changes the second dimension of the layers that read it. Shapes that differ in the
    first dimension alone, all in the same way, therefore belong to outputs that no layer reads.
    """
    pairs = {(was[:1], wants[:1]) for was, wants in shapes.values()}
    if len(pairs) != 1 or any(not was or was[1:] != wants[1:] for was, wants in shapes.values()):
        return None
    was, wants = pairs.pop()
    return (was[0], wants[0]) if was and wants else None


def deferred(
    member: Member,
    path: Path,
    weights: Weights,
    context: Context,
    construct: Callable[[], nn.Module],
    built_from: str = BARE,
) -> Teacher:
    """A teacher that takes no memory until it is built: then `construct` makes the module and `path` is read again."""
    shared = len(prefixes(weights.state)[-1])
    origin = Origin(
        file=path.name,
        key=weights.key,
        average=weights.ema,
        unused=weights.unused,
        fingerprint=digest({name[shared:]: tensor for name, tensor in weights.state.items()}) if shared else "",
    )
    return Teacher(member, partial(_build, member, path, context, construct, built_from, set()), origin)


def _build(
    member: Member, path: Path, context: Context, construct: Callable[[], nn.Module], built_from: str, told: set[str]
) -> nn.Module:
    """Build the module with its weights; notes that are in `told` are not repeated."""
    state = read_weights(path, context.trust).state
    found = digest(state)
    if found != member.sha256:
        raise EdistillError(
            f"{path} has changed since it was listed: its weights were {member.sha256[:12]}…, now "
            f"{found[:12]}…. Run the command again when nothing writes to the checkpoints."
        )
    # the module draws initial weights that are overwritten at once; the caller's random state must not change
    with torch.random.fork_rng(devices=[]):
        module = construct().float()
    for sentence in load_weights(module, state, member.name, built_from):
        if sentence not in told:
            context.progress.note(sentence)
            told.add(sentence)
    module.eval().requires_grad_(False)
    refuse_other_tokenizer(module, member.preprocessing, member.name)
    return module
