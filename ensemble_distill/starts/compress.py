"""Compressing a trained network: its layers become factors that give nearly the same outputs.

The ranks of all layers are chosen at once, by how much of the variance of a layer's output another channel between its
factors explains for the parameters that it costs. The factors are then solved for, layer by layer. First comes a
regression of the layer's output in the original network on its input behind the already compressed layers, so that
later layers make up for the losses of earlier ones (Zhang et al. 2016, arXiv:1505.06798, do so with factors of the
output alone). The factors are those that lose least of that regression's predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError, quoted
from ensemble_distill.starts.layers_seen import AT_ONCE, POSITIONS, RIDGE, look, patches_of, run, some_of
from ensemble_distill.starts.ranks import NOTHING, Budget, choose_ranks
from ensemble_distill.students.canonical import decompose
from ensemble_distill.students.factored import (
    Layer,
    by_position,
    channels,
    factors_of,
    is_factorable,
    positions,
    replace,
)
from ensemble_distill.students.ridge import Ridge

CPU = torch.device("cpu")
SWEEPS = 200  # sweeps of alternating least squares for a kernel's factors


@dataclass(frozen=True)
class Piece:
    """A network, or the part of one behind another part.

    Attributes:
        name: its member, for messages.
        network: trained, in eval mode; maps its input to features (B, F).
        before: in eval mode; maps rows x (B, …) to the network's input. None if that is the rows themselves.
    """

    name: str
    network: nn.Module
    before: nn.Module | None = None

    @torch.no_grad()
    def given(self, rows: Sequence[Tensor]) -> Sequence[Tensor]:
        before = self.before
        return rows if before is None else [run(before, x).to(x.device) for x in rows]

    def to(self, device: torch.device) -> Piece:
        for module in (self.network, self.before):
            if module is not None:
                module.to(device)
        return self


@dataclass(frozen=True)
class Compression:
    """The result of compressing a network.

    Attributes:
        ranks: by layer, see `factor`.
        share: share of its parameters that remains.
        kept: share of its features' variance that remains, on held-out rows: R² averaged over features by variance. 1
            is all of it, below 0 is worse than the mean, NaN if they do not vary.
    """

    ranks: Mapping[str, int]
    share: float
    kept: float


@torch.no_grad()
def compress(
    pieces: Sequence[Piece],
    budget: Budget,
    inputs: Sequence[Tensor],
    held_out: Sequence[Tensor],
    device: torch.device,
    advance: Callable[[int], None],
) -> list[Compression]:
    """Replace layers of networks by factors, down to a share of their parameters.

    The networks have one architecture and get the same ranks, so that they can run side by side in single tensors: the
    gain of another channel is averaged over them. Each network gets its own factors.

    Args:
        pieces: changed in place; on the CPU before and after.
        inputs: batches of rows to solve from.
        held_out: batches of other rows, on which the kept variance is measured.
        device: where the networks run, one at a time, batch by batch.
        advance: called with the number of further layers done; their sum is the number of factorable layers.

    Raises:
        EdistillError: the layers without factors already have more parameters than that, the features are not finite,
            or which layers run depends on other layers' outputs.
    """
    parameters = _count(pieces[0].network)
    wanted, layers, brought = [], [], []
    for piece in pieces:
        piece.to(device)
        wanted.append(_features(piece, held_out))
        if not wanted[-1].isfinite().all():
            raise EdistillError(f"{piece.name}'s features are not finite on training rows. Leave {budget.key} out.")
        seen = look(piece.network, piece.given(inputs))
        layers.append({key: one.layer for key, one in seen.items()})
        brought.append({key: one.brought() for key, one in seen.items()})
        piece.to(CPU)
    ranks = _common_ranks(pieces, layers, brought, parameters, budget)
    found = []
    for piece, theirs, features in zip(pieces, layers, wanted, strict=True):
        piece.to(device)
        advance(sum(map(is_factorable, piece.network.modules())) - len(ranks))
        _replace_layers(piece, theirs, ranks, budget, inputs, advance)
        lost, varied = (_features(piece, held_out) - features).square().mean(), features.var(0, correction=0).mean()
        kept = 1 - float(lost / varied) if varied > 0 else math.nan
        found.append(Compression(ranks, _count(piece.network) / parameters, kept))
        piece.to(CPU)
    return found


def _common_ranks(
    pieces: Sequence[Piece],
    layers: Sequence[Mapping[str, Layer]],
    brought: Sequence[Mapping[str, Sequence[float]]],
    parameters: int,
    budget: Budget,
) -> dict[str, int]:
    """Ranks for the layers that can be compressed in all networks."""
    common = {key: layer for key, layer in layers[0].items() if all(key in theirs for theirs in layers)}
    together = {key: _averaged([theirs[key] for theirs in brought]) for key in common}
    try:
        return choose_ranks(common, together, parameters, budget, pieces[0].name)
    except EdistillError as error:
        named = list(zip(pieces, layers, strict=True))
        odd = [(one.name, key, other.name) for one, a in named for other, b in named for key in b.keys() - a.keys()]
        if not odd:
            raise
        one, key, other = odd[0]
        raise EdistillError(
            f"{error} All are made thinner alike, and {one}'s layer {key} cannot be, though {other}'s can."
        ) from None


def _averaged(brought: Sequence[Sequence[float]]) -> list[float]:
    """The mean over networks of what ranks from 0 on explain.

    Beyond its highest rank, a network stays at its last value.
    """
    longest = max(map(len, brought))
    filled = [[*one, *[one[-1]] * (longest - len(one))] for one in brought]
    return [float(share) for share in np.mean(filled, axis=0)]


def _replace_layers(
    piece: Piece,
    layers: Mapping[str, Layer],
    ranks: Mapping[str, int],
    budget: Budget,
    inputs: Sequence[Tensor],
    advance: Callable[[int], None],
) -> None:
    given = piece.given(inputs)
    factors: dict[str, nn.Module] = {}
    for layer, rank in ranks.items():  # in execution order
        regression = _regression(piece.network, factors, layer, layers, given)
        if regression is None:
            raise EdistillError(
                f"{budget}, and {piece.name}'s layer {layer} runs on other rows once the layers before it are "
                "compressed: what it gives cannot be learned. Leave it out."
            )
        factors[layer] = _solved(regression, layers[layer], rank)
        advance(1)
    for layer, module in factors.items():
        replace(piece.network, layer, module)


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _features(piece: Piece, inputs: Sequence[Tensor]) -> Tensor:
    try:
        return torch.cat([run(piece.network, x).cpu() for x in piece.given(inputs)]).double()
    except Exception as error:  # the network is anyone's code
        raise EdistillError(
            f"{piece.name}'s network fails on {len(inputs[0])} rows: {quoted(error)}. Fix it, or compress nothing."
        ) from error


def _regression(
    body: nn.Module,
    before: Mapping[str, nn.Module],
    name: str,
    layers: Mapping[str, Layer],
    inputs: Sequence[Tensor],
) -> Ridge | None:
    """Regression of a layer's original output on its input behind the factors of earlier layers.

    The body is whole before and after. None if the compressed body gives the layer inputs of another shape, or none.
    """
    layer = layers[name]
    regression = Ridge()
    for x in inputs:
        whole = _at(body, name, x)
        for key, module in before.items():
            replace(body, key, module)
        behind = _at(body, name, x)
        for key in before:
            replace(body, key, layers[key])
        if whole is None or behind is None or whole.input.shape != behind.input.shape:
            return None
        for columns, target in _columns(layer, behind.input, whole.output, len(inputs)):
            regression.add(columns, target.unsqueeze(1))
    return regression


def _solved(regression: Ridge, layer: Layer, rank: int) -> nn.Sequential:
    """The factors of a layer that are nearest to a regression of its output."""
    factors: Any = factors_of(layer, rank)
    if positions(layer) == 1:
        shared, own, bias = regression.reduced(RIDGE, rank)
        factors.reduce.weight.copy_(_alive(shared.T).view(factors.reduce.weight.shape))
    else:
        solution = regression.solution(RIDGE)
        reduce, core = _kernel_factors(solution.covariance, solution.weight, layer, rank)
        own, bias = regression.through(solution, RIDGE, (reduce.unsqueeze(2) * core.unsqueeze(1)).flatten(1).T)
        factors.reduce.weight.copy_(_alive(reduce).view(factors.reduce.weight.shape))
        factors.core.weight.copy_(_alive(core).view(factors.core.weight.shape))
    factors.expand.weight.copy_(own[0].T.reshape(factors.expand.weight.shape))
    factors.expand.bias.copy_(bias[0])
    return factors  # type: ignore[no-any-return]


def _alive(weight: Tensor) -> Tensor:
    """A factor's channels (R, C), with random weights in channels that are all 0.

    A zero channel, read by a zero channel, would never learn, and neither would the layers before it.
    """
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=weight.dtype)
    return torch.where((weight == 0).all(1, keepdim=True), drawn / math.sqrt(weight.shape[1]), weight)


def _kernel_factors(covariance: Tensor, weight: Tensor, layer: Layer, rank: int) -> tuple[Tensor, Tensor]:
    """`reduce` (R, in) and `core` (R, positions) that lose little of a kernel's output.

    The inputs' covariance (in · positions, in · positions) is approximated by one over channels times one over
    positions. Channels have variance 1 after either factor.
    """
    inputs, kernel = channels(layer)[0], positions(layer)
    by_both = covariance.view(inputs, kernel, inputs, kernel)
    over = by_both.diagonal(dim1=1, dim2=3).mean(-1)
    (channel, from_channel), (near, from_near) = map(_halves, (over, by_both.diagonal(dim1=0, dim2=2).mean(-1)))
    turned = torch.einsum("ipo,ij,pq->jqo", weight.view(inputs, kernel, -1), channel, near)
    found = decompose(turned, rank, SWEEPS)
    reduce, core = (from_channel @ found[0]).T, (from_near @ found[1]).T
    reduce = reduce * _inverse_root(torch.einsum("ri,ij,rj->r", reduce, over, reduce)).unsqueeze(1)
    both = (reduce.unsqueeze(2) * core.unsqueeze(1)).flatten(1)
    return reduce, core * _inverse_root(((both @ covariance) * both).sum(1)).unsqueeze(1)


def _halves(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix that turns a map of inputs into a map of inputs with covariance 1, and its inverse."""
    values, vectors = torch.linalg.eigh(covariance)
    values = torch.where(values > NOTHING * values.max(), values, 0)
    return vectors * values.sqrt(), vectors * _inverse_root(values)


def _inverse_root(variances: Tensor) -> Tensor:
    """1 ÷ √v of variances above 0; 0 for others."""
    return torch.where(variances > 0, variances.rsqrt(), 0)


def _columns(layer: Layer, x: Tensor, y: Tensor, batches: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A layer's inputs at some positions of a batch, (positions, in · kernel), and its outputs there."""
    count = max(1, POSITIONS // batches)
    if isinstance(layer, nn.Linear):
        yield some_of(by_position(x, layer), count), some_of(by_position(y, layer), count)
        return
    rows = max(1, AT_ONCE // (x.shape[1] * positions(layer) * y.shape[2] * y.shape[3]))
    for few, made in zip(torch.split(x, rows), torch.split(y, rows), strict=True):
        part = max(1, count * len(few) // len(x))
        yield some_of(patches_of(layer, few), part), some_of(by_position(made, layer), part)


class _EnoughError(Exception):
    """The layer has run; what follows is not needed."""


@dataclass
class _Passing:
    input: Tensor
    output: Tensor


def _at(body: nn.Module, name: str, x: Tensor) -> _Passing | None:
    """A layer's input and output when the body runs on x; None if the layer does not run."""
    passing: list[_Passing] = []

    def note(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        passing.append(_Passing(given[0], made))
        raise _EnoughError  # also because later layers may change their input in place

    handle = body.get_submodule(name).register_forward_hook(note)
    try:
        run(body, x)
    except _EnoughError:
        pass
    finally:
        handle.remove()
    return passing[0] if passing else None
