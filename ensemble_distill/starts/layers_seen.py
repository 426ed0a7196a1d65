"""Which layers of a network can become factors, and how their inputs and outputs vary."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ensemble_distill.starts.ranks import NOTHING, WIDEST
from ensemble_distill.students.canonical import decompose, product
from ensemble_distill.students.factored import (
    Layer,
    by_position,
    channels,
    factors_of,
    highest_rank,
    is_factorable,
    padding_of,
    parameters_of,
    positions,
    replace,
)

RIDGE = 1e-6  # share of the mean variance: directions that vary less are ignored
POSITIONS = 2**16  # positions over all batches that a layer is judged by and solved from
AT_ONCE = 2**25  # maximum numbers in patches held at a time
JUDGED = 1 / 8, 1 / 4, 1 / 2  # ranks of a kernel to try, as shares of the highest; others are interpolated
JUDGING_SWEEPS = 20


class _Covariance:
    """Covariance of rows (N, C), accumulated batch by batch."""

    def __init__(self) -> None:
        self._rows = 0
        self._origin = self._sum = self._gram = torch.empty(0)

    def add(self, x: Tensor) -> None:
        x = x.cpu().double()
        if self._rows == 0:  # relative to this origin, constant channels leave little rounding
            self._origin = x.mean(0)
            self._sum, self._gram = torch.zeros_like(self._origin), x.new_zeros(x.shape[1], x.shape[1])
        x = x - self._origin
        self._sum += x.sum(0)
        self._gram += x.T @ x
        self._rows += len(x)

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Variances (C,) in descending order, with mere rounding set to 0, and their directions (C, C)."""
        mean = self._sum / self._rows
        values, vectors = torch.linalg.eigh(self._gram / self._rows - torch.outer(mean, mean))
        size = (self._origin + mean).square().mean()
        least = torch.maximum(RIDGE * values.clamp_min(0).mean(), NOTHING * size)
        return torch.where(values > least, values, 0).flip(0), vectors.flip(1)


@dataclass(frozen=True)
class Seen:
    """A layer, and how its inputs and outputs vary.

    Attributes:
        input: covariance of the inputs over channels; unused for kernels of one position.
        nearby: covariance of the inputs over the positions of a kernel; unused for kernels of one position.
        output: covariance of the outputs over channels; used for kernels of one position only.
    """

    layer: Layer
    input: _Covariance = field(default_factory=_Covariance)
    nearby: _Covariance = field(default_factory=_Covariance)
    output: _Covariance = field(default_factory=_Covariance)

    def add(self, given: Tensor, made: Tensor, count: int) -> None:
        """Add some positions of more rows."""
        layer = self.layer
        if isinstance(layer, nn.Linear) or positions(layer) == 1:
            self.output.add(some_of(by_position(made, layer), count))
            return
        self.input.add(some_of(by_position(given, layer), count))
        places = made[0, 0].numel()
        most = AT_ONCE // (given.shape[1] * positions(layer) * places)
        rows = given[: max(1, min(count // places, most))]
        patches = patches_of(layer, rows - rows.mean((0, 2, 3), keepdim=True))
        self.nearby.add(patches.reshape(-1, positions(layer)))

    def brought(self) -> list[float]:
        """The shares of the output's variance that 0, 1, … channels between the factors explain."""
        layer = self.layer
        if positions(layer) == 1:
            return _shares(self.output.spectrum()[0])[: highest_rank(layer) + 1]
        highest = min(highest_rank(layer), parameters_of(layer) // sum(channels(layer)) + 1)  # above, it stays whole
        weight = layer.weight.detach().cpu().double().flatten(2)  # (out, in, positions)
        channel, near = (vectors * values.sqrt() for values, vectors in (self.input.spectrum(), self.nearby.spectrum()))
        return _judged(torch.einsum("oip,ij,pq->jqo", weight, channel, near), highest)


def _judged(kernel: Tensor, highest: int) -> list[float]:
    """The shares of a kernel that ranks from 0 on explain, if its inputs have covariance 1.

    Only the ranks in `JUDGED` are tried: the loss falls about geometrically between them.
    """
    size = kernel.square().sum()
    if size == 0:
        return [0.0, 0.0]
    sides = sorted(int(torch.linalg.matrix_rank(kernel.movedim(side, 0).flatten(1))) for side in range(3))
    highest = min(highest, sides[0] * sides[1])  # this rank reproduces the kernel
    ranks, logs = [0], [0.0]
    for rank in sorted({max(1, int(part * highest)) for part in JUDGED}):
        lost = (kernel - product(*decompose(kernel, rank, JUDGING_SWEEPS))).square().sum() / size
        ranks.append(rank)
        logs.append(min(logs[-1], math.log(max(float(lost), NOTHING))))
    falls = (logs[-1] - logs[-2]) / (ranks[-1] - ranks[-2])
    ranks, logs = [*ranks, highest], [*logs, logs[-1] + falls * (highest - ranks[-1])]
    return [*(1 - math.exp(log) for log in np.interp(range(highest), ranks, logs)), 1.0]


def run(network: nn.Module, x: Tensor) -> Tensor:
    """A network's output for a batch on any device.

    Input and output are copied, since the network may work in place, or return the same buffer again.
    """
    device = next((p.device for p in network.parameters()), x.device)
    made: Tensor = network(x.to(device, copy=True))
    return made.clone()


def look(body: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Seen]:
    """The layers that factors can replace, in execution order.

    Such a layer runs once, with one positional input, and shares its weights with no other layer. The body also has to
    call it without reading its attributes, so that a replacement is what runs.
    """
    owners = Counter(id(p) for _, p in body.named_parameters(remove_duplicate=False))
    layers = {
        name: module
        for name, module in body.named_modules()
        if name
        and is_factorable(module)
        and max(channels(module)[0] * positions(module), channels(module)[1]) <= WIDEST
        and all(owners[id(p)] == 1 for p in module.parameters())
    }
    seen: dict[str, Seen] = {}
    runs: Counter[str] = Counter()
    strange = {name for name, layer in layers.items() if not _runs_replaced(body, name, layer, inputs[0][:2])}

    def noting(name: str, layer: Layer, batch: int) -> Callable[..., None]:
        def note(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            if len(given) != 1 or not _by_rows(layer, given[0], made, batch):
                strange.add(name)
                return
            runs[name] += 1
            seen.setdefault(name, Seen(layer)).add(given[0], made, POSITIONS // len(inputs) + 1)

        return note

    for x in inputs:
        handles = [
            layer.register_forward_hook(noting(name, layer, len(x)))
            for name, layer in layers.items()
            if name not in strange
        ]
        try:
            run(body, x)
        finally:
            for handle in handles:
                handle.remove()
    return {name: at for name, at in seen.items() if runs[name] == len(inputs) and name not in strange}


def _by_rows(layer: Layer, given: Tensor, made: Tensor, batch: int) -> bool:
    """Whether a layer ran on equally many positions of each row, not on rows selected by their values."""
    dims = 4 if isinstance(layer, nn.Conv2d) else 2
    return (
        given.dim() >= dims
        and given.numel() > 0
        and len(given) % batch == 0
        and bool(given.isfinite().all() and made.isfinite().all())
    )


class _Probe(nn.Sequential):
    """Records whether it ran. A hook would not do: with one, some of torch's own layers take another path."""

    ran = False

    def forward(self, x: Tensor) -> Tensor:
        self.ran = True
        for module in self:
            x = module(x)
        return x


def _runs_replaced(body: nn.Module, name: str, layer: Layer, x: Tensor) -> bool:
    """Whether factors in a layer's place are what runs; the layer is put back."""
    factors = _Probe(*factors_of(layer, 1))
    replace(body, name, factors)
    try:
        run(body, x)
    except Exception:  # the body reads attributes of the layer
        return False
    finally:
        replace(body, name, layer)
    return factors.ran


def _shares(variances: Tensor) -> list[float]:
    """The cumulative shares of variances, from 0 on."""
    shares = variances / (variances.sum() + torch.finfo(torch.float32).tiny)
    return list(itertools.accumulate(shares.tolist(), initial=0.0))


def patches_of(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The inputs of a convolution at each position, (positions, in · kernel)."""
    kernel: Any = (layer.kernel_size, layer.dilation, padding_of(layer), layer.stride)
    return functional.unfold(x, *kernel).transpose(1, 2).flatten(0, 1)


def some_of(x: Tensor, count: int) -> Tensor:
    """`count` of the rows (N, C), at the same places in any two tensors of equal length."""
    if len(x) <= count:
        return x
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(len(x)))[:count]
    return x[chosen.to(x.device)]
