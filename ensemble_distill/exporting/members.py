"""The members of an ensemble as modules whose outputs are those of the cache: one by one, or several in one batch.

A batch saves the start of each operation, about a microsecond, and loses elsewhere: onnxruntime packs a layer's weights
once for products of two matrices but never for batches of them, and runs grouped convolutions one group at a time.
Milliseconds for one row on one thread:

| members | side by side | in one batch |
|---|---|---|
| 8 of 64-64-64-10 | .061 | .069 |
| 10 of 64-64-64-10 | .046 | .039 |
| 20 of 64-64-64-10 | .079 | .054 |
| 20 of 64-128-128-10 | .113 | .085 |
| 20 of 256-256-256-10 | 1.28 | 1.99 |
| 20 of 784-200-200-10 | .88 | 1.32 |
| 10 ResNet-8, width 16 | 4.00 | 4.31 |
| 10 ResNet-8, width 8 | 1.33 | 1.76 |

Hence `FEWEST` and `SMALL`, and members with convolutions are never batched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member, Preprocessing, difference, same_rows
from ensemble_distill.students.per_head import architecture, in_one_batch
from ensemble_distill.tasks import Task

FEWEST = 10  # members of one architecture for which a batch is faster
SMALL = 2**13  # numbers in the largest tensor of a member up to which a batch is faster
APART = 1e-4  # of the largest output: a batch that differs by more is not used


class Seen(nn.Module):
    """Maps x, normalized for the first member, to another member's normalization."""

    scale: Tensor
    shift: Tensor

    def __init__(self, given: Preprocessing, wanted: Preprocessing) -> None:
        super().__init__()
        there, here = (
            [torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (one.mean, one.std)]
            for one in (given, wanted)
        )
        self.register_buffer("scale", (there[1] / here[1]).float())
        self.register_buffer("shift", ((there[0] - here[0]) / here[1]).float())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Part(nn.Module):
    """Maps x (B, ...) to the outputs of some members, (B, m, W) in the cache's unit."""

    def __init__(self, task: Task, members: Sequence[Member], network: nn.Module, seen: Seen | None) -> None:
        """`network` maps (B·m, ...) to whatever a member returns; the m copies of a row are adjacent."""
        super().__init__()
        self.task, self.members, self.network, self.seen = task, tuple(members), network, seen

    def forward(self, x: Tensor) -> Tensor:
        count = len(self.members)
        x = x if self.seen is None else self.seen(x)
        rows = x if count == 1 else x.unsqueeze(1).expand(-1, count, *x.shape[1:]).flatten(0, 1)
        raw = _joined(self.network(rows), rows.shape[0])
        if len({_meaning(member) for member in self.members}) == 1:
            said = self.task.as_answers(raw, self.members[0])
            return said.reshape(-1, count, said.shape[1])
        each = raw.reshape(-1, count, raw.shape[1])
        return torch.stack([self.task.as_answers(each[:, m], member) for m, member in enumerate(self.members)], dim=1)


def parts_of(
    task: Task, members: Sequence[Member], modules: Sequence[nn.Module], seen: Sequence[Seen | None], x: Tensor
) -> list[Part]:
    """Members of one architecture in one batch if that is faster, and the others one by one.

    Args:
        seen: the module that maps x to each member's normalization, or None.
        x: (B, ...), a few rows on which a batch is compared with its members.
    """
    groups: dict[Any, list[int]] = {}
    for at, (member, module) in enumerate(zip(members, modules, strict=True)):
        groups.setdefault(_architecture(member, module), []).append(at)
    found = []
    for group in groups.values():
        alone = [Part(task, [members[at]], modules[at], seen[at]) for at in group]
        batch = None
        if len(group) >= FEWEST and is_small(modules[group[0]]):
            batch = _batch(task, [members[at] for at in group], [modules[at] for at in group], seen[group[0]])
        found += [batch] if batch is not None and _agree(batch, alone, x) else alone
    return found


def is_small(module: nn.Module) -> bool:
    """Whether a batch of such members is faster than running them one by one."""
    if any(isinstance(one, _ConvNd) for one in module.modules()):
        return False
    return max((tensor.numel() for tensor in module.state_dict().values()), default=0) <= SMALL


def reseen(members: Sequence[Member]) -> list[Seen | None]:
    """For each member, the module that maps the first member's normalization to its own; None if they are equal.

    Raises:
        EdistillError: images are resized or cropped differently, or have other channels.
    """
    (first, given), *_ = each = [(member, _preprocessing(member)) for member in members]
    for member, wanted in each:
        if (what := _unlike(given, wanted)) is not None:
            raise EdistillError(
                f"Member {first.name} sees pictures with {what} = {getattr(given, what)}, and {member.name} with "
                f"{getattr(wanted, what)}, and one graph has one input. Move one of them out of teachers.path, or "
                "train a student of both and export that (edistill train, edistill export --onnx)."
            )
    return [None if wanted == given else Seen(given, wanted) for _, wanted in each]


def refuse_other_encodings(members: Sequence[Member]) -> None:
    """Raise EdistillError if a member encodes rows, texts or several arrays, differently from the first one."""
    first = members[0]
    for member in members:
        if not same_rows(first.preprocessing, member.preprocessing):
            what, one, other = difference(first.preprocessing, member.preprocessing)
            raise EdistillError(
                f"Members {first.name} and {member.name} differ in their {what}, {one} and {other}, but one graph has "
                "one input. Move one of them out of teachers.path, or train a student of both and export "
                "that (edistill train, edistill export --onnx)."
            )


def _unlike(given: Preprocessing, wanted: Preprocessing) -> str | None:
    """The first difference that a graph cannot make up for, or None; the mean is one if it fills borders."""
    fixed = ("size", "interpolation", "crop_pct", "crop_mode", "channels")
    names = (*fixed, "mean") if given.crop_mode == "border" else fixed
    different = next((name for name in names if getattr(given, name) != getattr(wanted, name)), None)
    channels = [max(len(one.mean), len(one.std)) for one in (given, wanted)]
    return "mean" if different is None and channels[0] != channels[1] else different


def _preprocessing(member: Member) -> Preprocessing:
    assert isinstance(member.preprocessing, Preprocessing)  # others were refused before
    return member.preprocessing


def _architecture(member: Member, module: nn.Module) -> Any:
    """What the members of one batch must have in common."""
    return member.model, member.output, member.preprocessing, architecture(module)


def _meaning(member: Member) -> Any:
    """What determines the meaning of a member's outputs."""
    return member.class_order, member.units, member.variance, member.output


def _batch(task: Task, members: Sequence[Member], modules: Sequence[nn.Module], seen: Seen | None) -> Part | None:
    """The members in one batch; None if they have layers that cannot be batched."""
    network = in_one_batch(modules)
    return None if network is None else Part(task, members, network, seen)


@torch.no_grad()
def _agree(batch: Part, alone: Sequence[Part], x: Tensor) -> bool:
    """Whether a batch gives the outputs of its members.

    It does not if their code depends on the batch, or they differ in something other than weights.
    """
    apart = torch.cat([part(x.clone()) for part in alone], dim=1)
    try:
        together = batch(x.clone())
    except Exception:  # a member can be any code, which may not support this
        return False
    return together.shape == apart.shape and bool(((together - apart).abs() <= APART * apart.abs().max()).all())


def _joined(returned: Any, rows: int) -> Tensor:
    """A network's output for `rows` rows as one tensor (B, ·); `Task.joined` has checked it."""
    parts = returned if isinstance(returned, tuple | list) else (returned,)
    return torch.cat([(part.to_dense() if part.is_sparse else part).reshape(rows, -1) for part in parts], dim=1)
