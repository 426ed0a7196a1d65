"""A trained network whose layers are factors that give nearly what the layers gave, in closed form.

The ranks of all layers are chosen at once, by how much of the variance of a layer's output another channel between its
factors brings for the parameters that it costs. The factors are then solved for, a layer at a time: `reduce` keeps what
in the layer's input tells most of its output, in the network as it was; `core` and `expand` are a regression from what
the layers before it, compressed already, give it to what the layer gave then, so that later layers make up for what
earlier ones lost (Zhang et al. 2016, arXiv:1505.06798, do so with factors of the output alone).
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ensemble_distill.students.factored import (
    Layer,
    Ranks,
    by_position,
    channels,
    factors_of,
    is_factorable,
    positions,
    replace,
)
from ensemble_distill.students.rank_choice import NOTHING, Brought, choose_ranks
from ensemble_distill.students.ridge import Ridge

RIDGE = 1e-6  # of the regressions, whose many positions leave little to guard against
POSITIONS = 2**16  # of all batches, that a layer is judged by and solved for from
AT_ONCE = 2**25  # numbers in the patches that are held at a time
WIDEST = 2**13  # inputs of a layer: beyond that solving for it takes longer than training


@dataclass(frozen=True)
class Compression:
    """What became of a body.

    Attributes:
        ranks: by layer, see `factor`.
        share: of its parameters that it has.
        kept: of its features' variance on rows that nothing was solved for, R² averaged over features by variance: 1
            for all of it, below 0 for worse than their mean.
    """

    ranks: Mapping[str, Ranks]
    share: float
    kept: float


@torch.no_grad()
def compress(
    body: nn.Module,
    share: float,
    inputs: Sequence[Tensor],
    held_out: Sequence[Tensor],
    name: str,
    advance: Callable[[int], None],
) -> Compression:
    """Put factors in the place of a body's layers, down to a share of its parameters.

    Args:
        body: a trained network x (B, …) to features (B, F), in eval mode.
        share: above 0 and below 1.
        inputs: batches of rows as it is to see them.
        held_out: more of them, on which what it keeps is measured.
        name: of the member that it is, for messages.
        advance: is told how many layers more are done; in the end all that are factorable.

    Raises:
        EdistillError: what has no factors has more parameters than that.
    """
    parameters = _count(body)
    wanted = _features(body, held_out)
    seen = _look(body, inputs)
    layers = {key: one.layer for key, one in seen.items()}
    brought = {key: one.brought() for key, one in seen.items()}
    ranks = choose_ranks(layers, brought, parameters, share, name)
    advance(sum(map(is_factorable, body.modules())) - len(ranks))
    factors: dict[str, nn.Module] = {}
    for layer, own in ranks.items():  # in the order in which they run
        factors[layer] = _solved(body, factors, layer, own, seen, inputs)
        advance(1)
    for layer, module in factors.items():
        replace(body, layer, module)
    lost, varied = (_features(body, held_out) - wanted).square().mean(), wanted.var(0, correction=0).mean()
    return Compression(ranks, _count(body) / parameters, 1 - float(lost / varied) if varied > 0 else 1.0)


def _count(body: nn.Module) -> int:
    return sum(p.numel() for p in body.parameters())


def _features(body: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    return torch.cat([body(x.clone()) for x in inputs]).cpu().double()  # it may change its input in place


class _Covariance:
    """Of rows (N, C), a batch at a time."""

    def __init__(self) -> None:
        self._rows = 0
        self._origin = self._sum = self._gram = torch.empty(0)

    def add(self, x: Tensor) -> None:
        x = x.cpu().double()
        if self._rows == 0:  # counted from there, channels that do not vary leave little rounding behind
            self._origin = x.mean(0)
            self._sum, self._gram = torch.zeros_like(self._origin), x.new_zeros(x.shape[1], x.shape[1])
        x = x - self._origin
        self._sum += x.sum(0)
        self._gram += x.T @ x
        self._rows += len(x)

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Variances (C,), greatest first and 0 where there is but rounding, and their directions (C, C)."""
        mean = self._sum / self._rows
        values, vectors = torch.linalg.eigh(self._gram / self._rows - torch.outer(mean, mean))
        size = (self._origin + mean).square().mean()
        least = torch.maximum(RIDGE * values.clamp_min(0).mean(), NOTHING * size)
        return torch.where(values > least, values, 0).flip(0), vectors.flip(1)


@dataclass(frozen=True)
class _Seen:
    """A layer, and how its output varies over rows and positions, and its input where that is reduced first."""

    layer: Layer
    input: _Covariance = field(default_factory=_Covariance)
    output: _Covariance = field(default_factory=_Covariance)

    def add(self, given: Tensor, made: Tensor, count: int) -> None:
        """Some positions of more rows."""
        if positions(self.layer) > 1:
            self.input.add(_some(by_position(given, self.layer), count))
        self.output.add(_some(by_position(made, self.layer), count))

    def brought(self) -> Brought:
        """What the first so many channels between the factors bring, from none on: of those after the first factor,
        and of those before the last, as shares of the output's variance."""
        inputs, outputs = channels(self.layer)
        outer = _shares(self.output.spectrum()[0])[: min(outputs, inputs * positions(self.layer)) + 1]
        if positions(self.layer) == 1:  # one number of channels, counted once
            return outer, [0.0] * len(outer)
        return _shares(self._heard[0].square()), outer

    def directions(self, rank: int) -> Tensor:
        """(rank, in): what of the input tells most of the output, at any position of the kernel, scaled to variance 1;
        0 for what does not vary."""
        return self._heard[1][:rank]

    @functools.cached_property
    def _heard(self) -> tuple[Tensor, Tensor]:
        """How much the output says of directions of the input (R,), most first, and these (R, in)."""
        values, vectors = self.input.spectrum()
        weight = self.layer.weight.detach().cpu().double().transpose(0, 1).flatten(1)
        # for an input that is turned and scaled to have covariance 1
        found = torch.linalg.svd((vectors * values.sqrt()).T @ weight, full_matrices=False)
        return found.S, (vectors * torch.where(values > 0, values.rsqrt(), 0) @ found.U).T


def _look(body: nn.Module, inputs: Sequence[Tensor]) -> dict[str, _Seen]:
    """The layers that can be factors, in the order in which they run: those that run once with one input by position,
    share nothing, and that the body runs, and does not look into, whatever stands in their place."""
    owners = Counter(id(p) for _, p in body.named_parameters(remove_duplicate=False))
    layers = {
        name: module
        for name, module in body.named_modules()
        if name
        and is_factorable(module)
        and channels(module)[0] <= WIDEST
        and all(owners[id(p)] == 1 for p in module.parameters())
    }
    seen: dict[str, _Seen] = {}
    runs: Counter[str] = Counter()
    strange = {name for name, layer in layers.items() if not _runs_replaced(body, name, layer, inputs[0][:2])}

    def noting(name: str, layer: Layer, batch: int) -> Callable[..., None]:
        def note(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            if len(given) != 1 or not _by_rows(layer, given[0], made, batch):
                strange.add(name)
                return
            runs[name] += 1
            seen.setdefault(name, _Seen(layer)).add(given[0], made, POSITIONS // len(inputs) + 1)

        return note

    for x in inputs:
        handles = [
            layer.register_forward_hook(noting(name, layer, len(x)))
            for name, layer in layers.items()
            if name not in strange
        ]
        try:
            body(x.clone())
        finally:
            for handle in handles:
                handle.remove()
    return {name: at for name, at in seen.items() if runs[name] == len(inputs) and name not in strange}


def _by_rows(layer: Layer, given: Tensor, made: Tensor, batch: int) -> bool:
    """Whether a layer ran on as many positions of each row: not on rows that are chosen by what they are."""
    dims = 4 if isinstance(layer, nn.Conv2d) else 2
    return (
        given.dim() >= dims
        and given.numel() > 0
        and len(given) % batch == 0
        and bool(given.isfinite().all() and made.isfinite().all())
    )


def _runs_replaced(body: nn.Module, name: str, layer: Layer, x: Tensor) -> bool:
    """Whether factors in a layer's place are what runs; the layer is put back."""
    ran: list[bool] = []
    factors = factors_of(layer, (1, 1))
    factors.register_forward_hook(lambda *_: ran.append(True))
    replace(body, name, factors)
    try:
        body(x.clone())
    except Exception:  # whatever: it looks into the layer
        return False
    finally:
        replace(body, name, layer)
    return len(ran) > 0


def _solved(
    body: nn.Module,
    before: Mapping[str, nn.Module],
    name: str,
    ranks: Ranks,
    seen: Mapping[str, _Seen],
    inputs: Sequence[Tensor],
) -> nn.Sequential:
    """The factors of a layer, given those of the layers before it; the body is whole, and stays so."""
    layer = seen[name].layer
    factors = factors_of(layer, ranks)
    parts: Any = dict(factors.named_children())
    reduce, core, expand = (parts.get(part) for part in ("reduce", "core", "expand"))
    if reduce is not None:
        reduce.weight.copy_(seen[name].directions(ranks[0])[..., None, None])
    regression = Ridge()
    for x in inputs:
        wanted = _at(body, name, x).output
        for key, module in before.items():
            replace(body, key, module)
        given = _at(body, name, x).input
        for key in before:
            replace(body, key, seen[key].layer)
        for columns, target in _columns(layer, given if reduce is None else reduce(given), wanted, len(inputs)):
            regression.add(columns, target.unsqueeze(1))
    if expand is not None:
        shared, own, bias = regression.reduced(RIDGE, ranks[1])
        core.weight.copy_(shared.T.reshape(core.weight.shape))
        expand.weight.copy_(own[0].T.reshape(expand.weight.shape))
        expand.bias.copy_(bias[0])
    else:
        weight, bias = regression.solve(RIDGE)
        core.weight.copy_(weight[0].T.reshape(core.weight.shape))
        core.bias.copy_(bias[0])
    return factors


def _columns(layer: Layer, x: Tensor, y: Tensor, batches: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What the layer sees at some positions of a batch's rows (positions, kernel · in), and what it gave there."""
    count = max(1, POSITIONS // batches)
    if isinstance(layer, nn.Linear):
        yield _some(by_position(x, layer), count), _some(by_position(y, layer), count)
        return
    rows = max(1, AT_ONCE // (x.shape[1] * positions(layer) * y.shape[2] * y.shape[3]))
    kernel: Any = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    for few, made in zip(torch.split(x, rows), torch.split(y, rows), strict=True):
        patches = functional.unfold(few, *kernel).transpose(1, 2).flatten(0, 1)
        part = max(1, count * len(few) // len(x))
        yield _some(patches, part), _some(by_position(made, layer), part)


def _some(x: Tensor, count: int) -> Tensor:
    """So many of the rows (N, C), the same of any two tensors as long."""
    if len(x) <= count:
        return x
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(len(x)))[:count]
    return x[chosen.to(x.device)]


def _shares(variances: Tensor) -> list[float]:
    """What the first 0, 1, … of them are of all."""
    shares = variances / (variances.sum() + torch.finfo(torch.float32).tiny)
    return list(itertools.accumulate(shares.tolist(), initial=0.0))


class _EnoughError(Exception):
    """A layer has run, and nobody needs what comes after it."""


@dataclass
class _Passing:
    input: Tensor
    output: Tensor


def _at(body: nn.Module, name: str, x: Tensor) -> _Passing:
    """What a layer is given and gives when the body runs on x."""
    passing: list[_Passing] = []

    def note(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        passing.append(_Passing(given[0], made))
        raise _EnoughError  # also since what follows may change its input in place

    handle = body.get_submodule(name).register_forward_hook(note)
    try:
        body(x.clone())
    except _EnoughError:
        pass
    finally:
        handle.remove()
    return passing[0]
