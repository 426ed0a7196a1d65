"""Putting weights into the module they were trained in, and nothing but those."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.teachers.names import first_few
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.teachers.weights import digest, read_weights

BARE = "teachers.model and teachers.model-kwargs"


def load_weights(module: nn.Module, state: Mapping[str, Tensor], name: str, built_from: str = BARE) -> None:
    """Copy a state dict into a module, every key of both used; values take the module's dtype.

    Args:
        module: changed in place.
        state: parameters and buffers by name.
        name: the member's, for the message.
        built_from: what the user edits to get another module.

    Raises:
        EdistillError: keys are missing, left over, or of another shape; a few of each are listed, and a
            difference in nothing but the number of classes is called that.
    """
    expected = {key: value for key, value in module.state_dict().items() if not is_lazy(value)}
    shapes = {
        key: (tuple(state[key].shape), tuple(value.shape))
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    }
    if shapes:
        missing = [key for key in expected if key not in state]
        unexpected = [key for key in state if key not in expected]
    else:
        # torch decides what is missing: BatchNorm, for one, forgives old files their absent counters
        try:
            result = module.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise EdistillError(f"{name} does not fit its module: {error}. Check {built_from}.") from None
        missing, unexpected = result.missing_keys, result.unexpected_keys
    if not (shapes or missing or unexpected):
        return
    if not (missing or unexpected) and (counts := _only_classes(shapes)):
        raise EdistillError(
            f"{name} was trained on {counts[0]} classes, but its module is built for {counts[1]} "
            f"({first_few(list(shapes))}). Set num_classes to {counts[0]} in {built_from}."
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
    raise EdistillError(f"{name} does not fit its module. " + "; ".join(problems) + f". Check {built_from}.")


Shape = tuple[int, ...]


def _only_classes(shapes: Mapping[str, tuple[Shape, Shape]]) -> tuple[int, int] | None:
    """(checkpoint's, module's) number of classes, if that is all that differs.

    Where a layer's width differs, whatever reads it differs in its second dimension; so sizes that differ in
    the first alone, all in the same way, are outputs that nothing reads.
    """
    pairs = {(was[:1], wants[:1]) for was, wants in shapes.values()}
    if len(pairs) != 1 or any(not was or was[1:] != wants[1:] for was, wants in shapes.values()):
        return None
    was, wants = pairs.pop()
    return (was[0], wants[0]) if was and wants else None


def deferred(
    member: Member, path: Path, trust: bool, construct: Callable[[], nn.Module], built_from: str = BARE
) -> Teacher:
    """A teacher that costs no memory until built; `construct` makes the module, `path` is read again then."""
    return Teacher(member, partial(_build, member, path, trust, construct, built_from))


def _build(member: Member, path: Path, trust: bool, construct: Callable[[], nn.Module], built_from: str) -> nn.Module:
    state = read_weights(path, trust).state
    found = digest(state)
    if found != member.sha256:
        raise EdistillError(
            f"{path} has changed since it was listed: its weights were {member.sha256[:12]}…, now "
            f"{found[:12]}…. Run the command again when nothing writes to the checkpoints."
        )
    # a module draws initial weights that are overwritten at once: the caller's random numbers stay untouched
    with torch.random.fork_rng(devices=[]):
        module = construct().float()
    load_weights(module, state, member.name, built_from)
    return module.eval().requires_grad_(False)
