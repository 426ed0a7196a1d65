"""A trained network whose layers are factors that give nearly what the layers gave.

The ranks of all layers are chosen at once, by how much of the variance of a layer's output another channel between its
factors brings for the parameters that it costs. The factors are then solved for, a layer at a time: a regression from
what the layers before it, compressed already, give it to what the layer gave in the network as it was, so that later
layers make up for what earlier ones lost (Zhang et al. 2016, arXiv:1505.06798, do so with factors of the output alone);
and of that regression's weights the factors that lose least of what it says.
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
SWEEPS = 200  # of alternating least squares for a kernel's factors


@dataclass(frozen=True)
class Piece:
    """A network, or the part of one that follows another.

    Attributes:
        name: of the member that it is of, for messages.
        network: trained, what it is given to features (B, F), in eval mode.
        before: rows x (B, …) to what the network is given, in eval mode; None where it is given the rows.
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
    """What became of a network.

    Attributes:
        ranks: by layer, see `factor`.
        share: of its parameters that it has.
        kept: of its features' variance on rows that nothing was solved for, R² averaged over features by variance: 1
            for all of it, below 0 for worse than their mean, NaN where they do not vary.
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
    """Put factors in the place of networks' layers, down to a share of their parameters.

    They are of one architecture, and get the same ranks, so that they can run side by side in single tensors: what
    another channel brings is averaged over them. Each has factors of its own.

    Args:
        pieces: changed in place; they come and leave on the CPU.
        inputs: batches of rows as they are to see them.
        held_out: more of them, on which what is kept is measured.
        device: where the networks run, one at a time, a batch at a time.
        advance: is told how many layers more are done; in the end all that are factorable.

    Raises:
        EdistillError: what has no factors has more parameters than that, the features are not finite, or what runs
            depends on what the layers give.
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
    """For the layers that can become thinner in all of them."""
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
    """What ranks from 0 on bring on average; who has no further ranks has all that there is."""
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
    for layer, rank in ranks.items():  # in the order in which they run
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
    """From what a layer is given behind the factors of those before it to what it gave; the body is whole, and stays
    so. None where it is given something else altogether."""
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
    """The factors of a layer that are nearest to a regression of what it gave."""
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
    """A factor's channels (R, C), at random where nothing is told of them: at 0, like what reads them, they and all
    layers before would never learn."""
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=weight.dtype)
    return torch.where((weight == 0).all(1, keepdim=True), drawn / math.sqrt(weight.shape[1]), weight)


def _kernel_factors(covariance: Tensor, weight: Tensor, layer: Layer, rank: int) -> tuple[Tensor, Tensor]:
    """`reduce` (R, in) and `core` (R, positions) that lose little of what a kernel says of its inputs.

    The inputs' covariance (in · positions, in · positions) is taken for one over channels times one over positions.
    Channels have variance 1 after either factor.
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
    """What turns a map of inputs into one of inputs of covariance 1, and what turns it back."""
    values, vectors = torch.linalg.eigh(covariance)
    values = torch.where(values > NOTHING * values.max(), values, 0)
    return vectors * values.sqrt(), vectors * _inverse_root(values)


def _inverse_root(variances: Tensor) -> Tensor:
    """Of each that is above 0; 0 of the others."""
    return torch.where(variances > 0, variances.rsqrt(), 0)


def _columns(layer: Layer, x: Tensor, y: Tensor, batches: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What the layer sees at some positions of a batch's rows (positions, kernel · in), and what it gave there."""
    count = max(1, POSITIONS // batches)
    if isinstance(layer, nn.Linear):
        yield some_of(by_position(x, layer), count), some_of(by_position(y, layer), count)
        return
    rows = max(1, AT_ONCE // (x.shape[1] * positions(layer) * y.shape[2] * y.shape[3]))
    for few, made in zip(torch.split(x, rows), torch.split(y, rows), strict=True):
        part = max(1, count * len(few) // len(x))
        yield some_of(patches_of(layer, few), part), some_of(by_position(made, layer), part)


class _EnoughError(Exception):
    """A layer has run, and nobody needs what comes after it."""


@dataclass
class _Passing:
    input: Tensor
    output: Tensor


def _at(body: nn.Module, name: str, x: Tensor) -> _Passing | None:
    """What a layer is given and gives when the body runs on x; None where it does not run."""
    passing: list[_Passing] = []

    def note(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        passing.append(_Passing(given[0], made))
        raise _EnoughError  # also since what follows may change its input in place

    handle = body.get_submodule(name).register_forward_hook(note)
    try:
        run(body, x)
    except _EnoughError:
        pass
    finally:
        handle.remove()
    return passing[0] if passing else None
