"""Heads that each have their own copy of the body's last stage."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import EXACT, Size
from ensemble_distill.students.adapters import KERNEL, Adapters
from ensemble_distill.students.bodies import each
from ensemble_distill.students.factored import factor
from ensemble_distill.students.heads import BatchedLinear, Heads
from ensemble_distill.students.per_head import per_head, resized
from ensemble_distill.students.side_by_side import SideBySide
from ensemble_distill.students.split import Split, split
from ensemble_distill.students.tied import TiedHeads

Name = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class LastStage:
    """Where heads begin in a body; a part of `config.json`.

    Attributes:
        at: the first module of the last stage.
        adapt_from: the module from which on, up to `at`, adapters replace the body; None for no such gap.
        adapted: whether there are adapters; without them every head sees the body's own output.
        rank: channels of the bottleneck that the adapters share; None without one.
        compressed: the factored layers of the last stage and their ranks, the same for every head.
    """

    at: Name
    adapt_from: Name | None = None
    adapted: bool = False
    rank: Size | None = None
    compressed: Mapping[str, Size] = field(default_factory=dict)

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def split(self, body: nn.Module) -> Split:
        """The body in three parts. Raises EdistillError if it cannot be taken apart there."""
        return split(body, self.at, self.adapt_from)

    def with_factors(self, tail: nn.Module) -> nn.Module:
        """A copy of a last stage, with fresh factors for the layers in `compressed`."""
        tail = copy.deepcopy(tail)
        factor(tail, self.compressed)
        return tail


class LastStageHeads(nn.Module):
    """`count` heads on shared features (B, C, …): each an optional adapter, a last stage and a linear layer.

    Output (B, count, outputs).
    """

    def __init__(self, adapters: Adapters | None, tail: nn.Module, last: BatchedLinear) -> None:
        """`tail` is a last stage for as many heads as `last`; see `per_head`."""
        super().__init__()
        self.adapters, self.tail, self.last = adapters, tail, last

    @property
    def count(self) -> int:
        return int(self.last.weight.shape[0])

    def hidden(self, x: Tensor) -> Tensor:
        """The input of the last layer, (B, count, F), from features."""
        if self.adapters is not None:
            rows = self.adapters(x)
        else:
            # for a single head nothing else copies, and its tail may work in place
            rows = x.clone().unsqueeze(1).expand(-1, self.count, *x.shape[1:]).flatten(0, 1)
        features: Tensor = self.tail(rows)
        return features.view(-1, self.count, features.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.hidden(x))
        return outputs

    @torch.no_grad()
    def copied(self, count: int) -> LastStageHeads:
        """`count` copies of head 0."""
        _, inputs, outputs = self.last.weight.shape
        last = BatchedLinear(count, inputs, outputs).to(self.last.weight)
        last.weight.copy_(self.last.weight[:1].expand_as(last.weight))
        last.bias.copy_(self.last.bias[:1].expand_as(last.bias))
        adapters = None if self.adapters is None else self.adapters.copied(count)
        return LastStageHeads(adapters, resized(self.tail, count), last)


def apart(body: nn.Module, stage: LastStage, shape: Sequence[int], outputs: int) -> tuple[nn.Module, LastStageHeads]:
    """Take a body, or several side by side, apart into the trunk that heads share and one head with its last stage.

    Args:
        shape: shape of one example.
        outputs: how many numbers a head emits.

    Raises:
        EdistillError: the body cannot be taken apart there, the last stage cannot be given to each head, or adapters
            cannot map between the two modules' shapes.
    """
    bodies = each(body)
    parts = [stage.split(one) for one in bodies]
    trunk: nn.Module = SideBySide(p.trunk for p in parts) if len(parts) > 1 else parts[0].trunk
    seen, wanted, features = run_apart(trunk, parts[0], shape)
    _refuse_changed(bodies[0], parts[0], shape)
    if stage.adapted:
        _refuse_not_pictures(shape, seen)
    adapters = _adapters(stage, seen, wanted) if stage.adapted else None
    tail = per_head(stage.with_factors(parts[0].tail), 1)
    heads = LastStageHeads(adapters, tail, BatchedLinear(1, features.shape[1], outputs))
    return trunk, heads


def run_apart(trunk: nn.Module, part: Split, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """For two rows: the output of the trunk, the input of the last stage in the body, and the features from it."""
    modules = (trunk, part.trunk, part.bridge, part.tail)
    were = [module.training for module in modules]
    for module in modules:
        module.eval()
    with torch.no_grad():
        x = torch.zeros(2, *shape)  # cloned, since modules may work in place
        seen = trunk(x.clone())
        wanted = part.bridge(part.trunk(x.clone()))
        features = part.tail(wanted.clone())
    for module, training in zip(modules, were, strict=True):
        module.train(training)
    return seen, wanted, features


@torch.no_grad()
def _refuse_changed(body: nn.Module, part: Split, shape: Sequence[int]) -> None:
    """Raise EdistillError if the parts in a row give something else than the body.

    A forward that changes tensors in place and drops the result cannot be traced.
    """
    modules = (body, part.trunk, part.bridge, part.tail)
    were = [module.training for module in modules]
    for module in modules:
        module.eval()
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    wanted, seen = body(x.clone()), part.bridge(part.trunk(x.clone()))
    apart = (part.tail(seen.clone()), per_head(part.tail, 1).eval()(seen.clone()))
    for module, training in zip(modules, were, strict=True):
        module.train(training)
    if not wanted.isfinite().all():
        raise EdistillError("The body gives numbers that are not finite on random rows. Fix it, or its weights.")
    for found in apart:
        if not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())):
            raise EdistillError(
                f"Taken apart at its last stage, the body gives {float((found - wanted).abs().max()):.2g} more or less "
                f"than whole (of {float(wanted.abs().max()):.2g}). Use the result of every step in its forward, as in "
                "x = x.relu(), and not x.relu_() alone; or use heads = [] or [100]."
            )


def _refuse_not_pictures(shape: Sequence[int], seen: Tensor) -> None:
    """Raise EdistillError for adapters on rows that are no images.

    Features of three dimensions may be the tokens of an image, or a convolved series; nothing tells which.
    """
    if len(shape) in (2, 4) and seen.dim() > 2:
        raise EdistillError(
            f"Adapters are to map features of shape {tuple(seen.shape[1:])} of an input {tuple(shape)}, and they know "
            "maps and tokens of pictures, and vectors. Leave student.heads.adapt-from out, or set it to a module that "
            "gives vectors."
        )


def _adapters(stage: LastStage, seen: Tensor, wanted: Tensor) -> Adapters:
    maps = seen.dim() == 4
    channel = 1 if maps else -1
    inputs, outputs = seen.shape[channel], wanted.shape[channel]
    stride = seen.shape[-1] // wanted.shape[-1] if maps and wanted.dim() == 4 else 1
    if (
        seen.dim() not in (2, 3, 4)
        or seen.dim() != wanted.dim()
        or (maps and _strided(seen, stride) != wanted.shape[2:])
    ):
        raise EdistillError(
            f"Adapters are to map features of shape {tuple(seen.shape[1:])} to what {stage.at} is given, "
            f"{tuple(wanted.shape[1:])}, and do so from maps to maps, or from vectors to vectors. Set adapt-from to a "
            "module nearer to the last stage."
        )
    largest = inputs * (KERNEL**2 if maps else 1)
    if stage.rank is not None and stage.rank > largest:
        raise EdistillError(
            f"The rank of the adapters is {stage.rank}, and they read {largest} numbers. Give fewer, or leave it out."
        )
    return Adapters(1, inputs, outputs, maps, max(1, stride), stage.rank)


def _strided(seen: Tensor, stride: int) -> tuple[int, ...]:
    return tuple((size - 1) // max(1, stride) + 1 for size in seen.shape[2:])


HeadStack = Heads | LastStageHeads | TiedHeads  # what a student's heads can be
