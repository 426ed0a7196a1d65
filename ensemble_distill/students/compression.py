"""A trained network whose layers are factors that give nearly what the layers gave, in closed form.

The ranks of all layers are chosen at once, by how much of the variance of a layer's output another channel between its
factors brings for the parameters that it costs. The factors are then solved for, a layer at a time: `reduce` keeps what
in the layer's input tells most of its output, in the network as it was; `core` and `expand` are a regression from what
the layers before it, compressed already, give it to what the layer gave then, so that later layers make up for what
earlier ones lost (Zhang et al. 2016, arXiv:1505.06798, do so with factors of the output alone).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ensemble_distill.errors import EdistillError
from ensemble_distill.students.factored import (
    Layer,
    Ranks,
    admits,
    by_position,
    channels,
    factors_of,
    is_factorable,
    parameters_of,
    positions,
    replace,
)
from ensemble_distill.students.ridge import Ridge

RIDGE = 1e-6  # of the regressions, whose many positions leave little to guard against
POSITIONS = 2**16  # that a layer's regression sees, at most
AT_ONCE = 2**25  # numbers in the patches that are held at a time
STEPS = 64  # of a layer's width, that ranks are chosen by
NOTHING = 1e-12  # of a variance: rounding


@dataclass(frozen=True)
class Compression:
    """What became of a body.

    Attributes:
        ranks: by layer, see `factor`.
        kept: of its features' variance, R² averaged over features by variance: 1 for all of it, below 0 for worse than
            their mean.
    """

    ranks: Mapping[str, Ranks]
    kept: float


@torch.no_grad()
def compress(
    body: nn.Module, share: float, inputs: Sequence[Tensor], name: str, advance: Callable[[int], None]
) -> Compression:
    """Put factors in the place of a body's layers, down to a share of its parameters.

    Args:
        body: a trained network x (B, …) to features (B, F), in eval mode.
        share: above 0 and below 1.
        inputs: batches of rows as it is to see them.
        name: of the member that it is, for messages.
        advance: is told how many layers more are done; in the end all that are factorable.

    Raises:
        EdistillError: what has no factors has more parameters than that.
    """
    seen = _look(body, inputs)
    ranks = _ranks(seen, body, share, name)
    advance(sum(map(is_factorable, body.modules())) - len(ranks))
    whole = copy.deepcopy(body)
    for layer, wanted in ranks.items():  # in the order in which they run
        _solve(body, whole, layer, wanted, seen[layer], inputs)
        advance(1)
    return Compression(ranks, _kept(body, whole, inputs))


class _Covariance:
    """Of rows (N, C), a batch at a time."""

    def __init__(self) -> None:
        self._rows = 0
        self._origin = self._sum = self._gram = torch.empty(0)

    def add(self, x: Tensor) -> None:
        x = _some(x, POSITIONS).cpu().double()
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
    """A layer, and how its input and its output vary over rows and positions."""

    layer: Layer
    input: _Covariance = field(default_factory=_Covariance)
    output: _Covariance = field(default_factory=_Covariance)

    def brought(self) -> tuple[list[float], list[float]]:
        """What the first so many channels between the factors bring, from none on: of those after the first factor,
        and of those before the last, as shares of the output's variance."""
        outer = _shares(self.output.spectrum()[0])
        if positions(self.layer) == 1:  # one number of channels, counted once
            outer = outer[: min(channels(self.layer)) + 1]
            return outer, [0.0] * len(outer)
        return _shares(torch.linalg.svdvals(self._whitened()).square()), outer

    def directions(self, rank: int) -> Tensor:
        """(rank, in): what of the input tells most of the output, at any position of the kernel, scaled to variance 1;
        0 for what does not vary."""
        values, vectors = self.input.spectrum()
        best = torch.linalg.svd(self._whitened(), full_matrices=False).U[:, :rank]
        found: Tensor = (vectors * torch.where(values > 0, values.rsqrt(), 0) @ best).T
        return found

    def _whitened(self) -> Tensor:
        """The weights (in, positions · out) for an input that is turned and scaled to have covariance 1."""
        values, vectors = self.input.spectrum()
        weight = self.layer.weight.detach().cpu().double()
        found: Tensor = (vectors * values.sqrt()).T @ weight.transpose(0, 1).flatten(1)
        return found


def _look(body: nn.Module, inputs: Sequence[Tensor]) -> dict[str, _Seen]:
    """The layers that can be factors, in the order in which they run: those that run once with one input by position,
    share no weights, and that the body runs, and does not look into, whatever stands in their place."""
    owners = Counter(id(p) for _, p in body.named_parameters(remove_duplicate=False))
    layers = {
        name: module
        for name, module in body.named_modules()
        if name and is_factorable(module) and owners[id(module.weight)] == 1
    }
    seen: dict[str, _Seen] = {}
    runs: Counter[str] = Counter()
    strange = {name for name, layer in layers.items() if not _runs_replaced(body, name, layer, inputs[0][:2])}

    def noting(name: str, layer: Layer) -> Callable[..., None]:
        def note(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            if len(given) != 1 or (isinstance(layer, nn.Conv2d) and made.dim() != 4):
                strange.add(name)
                return
            runs[name] += 1
            at = seen.setdefault(name, _Seen(layer))
            at.input.add(by_position(given[0], layer))
            at.output.add(by_position(made, layer))

        return note

    handles = [layers[name].register_forward_hook(noting(name, layers[name])) for name in layers if name not in strange]
    try:
        for x in inputs:
            body(x.clone())  # it may change its input in place
    finally:
        for handle in handles:
            handle.remove()
    return {name: at for name, at in seen.items() if runs[name] == len(inputs) and name not in strange}


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


def _ranks(seen: Mapping[str, _Seen], body: nn.Module, share: float, name: str) -> dict[str, Ranks]:
    """The ranks on which the parameters are best spent, in the order of the layers; those that stay whole have none."""
    layers = {key: at.layer for key, at in seen.items()}
    ranks: dict[str, Ranks] = dict.fromkeys(layers, (1, 1))
    parameters = sum(p.numel() for p in body.parameters())
    spent = parameters - sum(parameters_of(layer) - _cost(layer, (1, 1)) for layer in layers.values())
    if spent > share * parameters:
        least = math.ceil(100 * spent / parameters) / 100
        raise EdistillError(
            f"student.compress is {share:g}, and "
            + (
                f"with factors of rank 1 {name} keeps {least:g} of its {parameters:,} parameters. Set it above "
                f"{least:g}, or start from fewer members."
                if least < 1
                else f"none of {name}'s layers can be made smaller: only torch's own linear and ungrouped "
                "2-D convolutional layers can. Leave it out, and start from fewer members."
            )
        )
    brought = {key: at.brought() for key, at in seen.items()}
    steps = {key: list(_steps(layer, ranks[key], brought[key])) for key, layer in layers.items()}
    while True:
        affordable = [
            (step.gain / max(1, step.cost), key, step)
            for key, some in steps.items()
            for step in some
            if spent + step.cost <= share * parameters
        ]
        if not affordable:
            return {key: r for key, r in ranks.items() if _cost(layers[key], r) < parameters_of(layers[key])}
        _, key, best = max(affordable, key=lambda one: one[0])
        spent += best.cost
        ranks[key] = best.ranks
        steps[key] = list(_steps(layers[key], best.ranks, brought[key]))


@dataclass(frozen=True)
class _Step:
    """To higher ranks of a layer."""

    ranks: Ranks
    gain: float  # shares of the output's variance
    cost: int  # parameters


def _steps(layer: Layer, ranks: Ranks, brought: tuple[list[float], list[float]]) -> Iterator[_Step]:
    """The next ranks of a layer that bring anything."""
    # both at once where each alone would be more than the other lets through
    sides = ((1, 0), (0, 1), (1, 1)) if positions(layer) > 1 else ((1, 1),)
    for side in sides:
        inner, outer = (
            min(len(b) - 1, rank + at * max(1, (len(b) - 1) // STEPS))
            for b, rank, at in zip(brought, ranks, side, strict=True)
        )
        gain = sum(b[to] - b[rank] for b, rank, to in zip(brought, ranks, (inner, outer), strict=True))
        if gain > NOTHING and admits(layer, (inner, outer)):
            yield _Step((inner, outer), gain, _cost(layer, (inner, outer)) - _cost(layer, ranks))


def _cost(layer: Layer, ranks: Ranks) -> int:
    """The parameters of its factors, or its own where they would have more: then it stays whole."""
    return min(parameters_of(layer), parameters_of(layer, ranks))


def _solve(body: nn.Module, whole: nn.Module, name: str, ranks: Ranks, seen: _Seen, inputs: Sequence[Tensor]) -> None:
    """Put a layer's factors in its place."""
    layer = seen.layer
    factors = factors_of(layer, ranks)
    parts: Any = dict(factors.named_children())
    reduce, core, expand = (parts.get(part) for part in ("reduce", "core", "expand"))
    if reduce is not None:
        reduce.weight.copy_(seen.directions(ranks[0])[..., None, None])
    few = max(1, POSITIONS // len(inputs))
    regression = Ridge()
    for x in inputs:
        given, wanted = _at(body, name, x).input, _at(whole, name, x).output
        for columns, target in _columns(layer, given if reduce is None else reduce(given), wanted, few):
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
    replace(body, name, factors)


def _kept(body: nn.Module, whole: nn.Module, inputs: Sequence[Tensor]) -> float:
    """See `Compression`."""
    wanted = torch.cat([whole(x.clone()) for x in inputs]).cpu().double()
    found = torch.cat([body(x.clone()) for x in inputs]).cpu().double()
    varied = (wanted - wanted.mean(0)).square().mean()
    return 1 - float((found - wanted).square().mean() / varied) if varied > 0 else 1.0


def _columns(layer: Layer, x: Tensor, y: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What the layer sees at some positions of the rows (positions, kernel · in), and what it gave there."""
    if isinstance(layer, nn.Linear):
        yield _some(by_position(x, layer), count), _some(by_position(y, layer), count)
        return
    rows = max(1, AT_ONCE // (x.shape[1] * positions(layer) * y.shape[2] * y.shape[3]))
    kernel: Any = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    for few, made in zip(torch.split(x, rows), torch.split(y, rows), strict=True):
        patches = functional.unfold(few, *kernel)
        share = max(1, count * len(few) // len(x))
        yield _some(patches.transpose(1, 2).flatten(0, 1), share), _some(by_position(made, layer), share)


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
