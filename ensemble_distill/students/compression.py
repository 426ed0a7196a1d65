"""A trained network with thinner layers that give nearly what its own gave, in closed form.

How thin each layer becomes is chosen for all of them at once, by how much of its output's variance another channel
between its factors brings for each weight that it costs. The factors are then solved for a layer at a time, from what
the layers before it, already thin, give it, to what the whole layer gave in the whole network: later layers make up for
what earlier ones lost (Zhang et al. 2016, arXiv:1505.06798, do so with factors of the output alone).
"""

from __future__ import annotations

import copy
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
    channels,
    factored,
    flat,
    is_factorable,
    is_spatial,
    most,
    replace,
    weights_of,
)
from ensemble_distill.students.ridge import Ridge

RIDGE = 1e-6  # of the regressions, whose many positions leave little to guard against
POSITIONS = 2**16  # that a layer's regression sees, at most
AT_ONCE = 2**25  # numbers in the patches that are held at a time
STEPS = 64  # of a layer's width, that ranks are chosen by


@torch.no_grad()
def compress(
    body: nn.Module, share: float, inputs: Sequence[Tensor], name: str, advance: Callable[[int], None]
) -> dict[str, Ranks]:
    """Thin a body's layers in place, to a share of its parameters; the ranks by layer, see `factor`.

    Args:
        body: a trained network x (B, …) to features (B, F), in eval mode.
        share: above 0 and below 1.
        inputs: batches of rows as it is to see them.
        name: of the member that it is, for messages.
        advance: is told of each layer that is solved for, by 1.

    Raises:
        EdistillError: what cannot be thinned has more parameters than that.
    """
    seen = _look(body, inputs)
    ranks = _allotted(seen, body, share, name)
    whole = copy.deepcopy(body)
    for layer in seen:  # in the order in which they run
        if layer in ranks:
            _solve(body, whole, layer, ranks[layer], seen[layer], inputs)
        advance(1)
    return {layer: ranks[layer] for layer in seen if layer in ranks}


class _Covariance:
    """Of rows (N, C), a batch at a time."""

    def __init__(self) -> None:
        self._rows = 0
        self._sum = self._gram = torch.empty(0)

    def add(self, x: Tensor) -> None:
        x = _some(x, POSITIONS).double().cpu()
        if self._rows == 0:
            width = x.shape[1]
            self._sum, self._gram = x.new_zeros(width), x.new_zeros(width, width)
        self._sum += x.sum(0)
        self._gram += x.T @ x
        self._rows += len(x)

    def matrix(self) -> Tensor:
        """(C, C), float64 on the CPU."""
        mean = self._sum / self._rows
        return self._gram / self._rows - torch.outer(mean, mean)


@dataclass(frozen=True)
class _Seen:
    """A layer, and how its input and its output vary over rows and positions."""

    layer: Layer
    input: _Covariance = field(default_factory=_Covariance)
    output: _Covariance = field(default_factory=_Covariance)

    def importance(self) -> tuple[Tensor, Tensor]:
        """What each channel between the factors brings, most important first: of those after the first factor, and of
        those before the last, as shares of the output's variance."""
        outer = _shares(torch.linalg.eigvalsh(self.output.matrix()).flip(0))
        if not is_spatial(self.layer):  # one number of channels, counted once
            return outer, torch.zeros_like(outer)
        return _shares(torch.linalg.svdvals(self._heard()).square()), outer

    def directions(self, rank: int) -> Tensor:
        """(rank, in): what of the input tells most of the output, at any position of the kernel."""
        best = torch.linalg.svd(self._heard(), full_matrices=False).U[:, :rank]
        found: Tensor = torch.linalg.solve(self._root().T, best).T
        return found

    def _heard(self) -> Tensor:
        """The weights (in, positions · out) for an input that is turned and scaled to have covariance 1."""
        weight = self.layer.weight.detach().double().cpu()
        return self._root().T @ weight.transpose(0, 1).flatten(1)

    def _root(self) -> Tensor:
        matrix = self.input.matrix()
        # never singular: channels may be constant, or all of them, after a ReLU
        least = RIDGE * matrix.diagonal().mean() + torch.finfo(torch.float32).tiny
        root: Tensor = torch.linalg.cholesky(matrix + least * torch.eye(len(matrix), dtype=matrix.dtype))
        return root


def _look(body: nn.Module, inputs: Sequence[Tensor]) -> dict[str, _Seen]:
    """The layers that can be thinned, in the order in which they run; those that do not run just once with one input
    by position, or share their weights, cannot."""
    owners = Counter(id(p) for _, p in body.named_parameters(remove_duplicate=False))
    layers = {
        name: module
        for name, module in body.named_modules()
        if is_factorable(module) and owners[id(module.weight)] == 1
    }
    seen: dict[str, _Seen] = {}
    runs: Counter[str] = Counter()
    strange: set[str] = set()

    def noting(name: str, layer: Layer) -> Callable[..., None]:
        def note(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            if len(given) != 1 or (isinstance(layer, nn.Conv2d) and made.dim() != 4):
                strange.add(name)
                return
            runs[name] += 1
            at = seen.setdefault(name, _Seen(layer))
            at.input.add(flat(given[0], layer))
            at.output.add(flat(made, layer))

        return note

    handles = [layer.register_forward_hook(noting(name, layer)) for name, layer in layers.items()]
    try:
        for x in inputs:
            body(x)
    finally:
        for handle in handles:
            handle.remove()
    return {name: at for name, at in seen.items() if runs[name] == len(inputs) and name not in strange}


def _allotted(seen: Mapping[str, _Seen], body: nn.Module, share: float, name: str) -> dict[str, Ranks]:
    """The ranks on which the weights are best spent; layers that stay whole have none."""
    layers = {key: at.layer for key, at in seen.items()}
    brings = {key: at.importance() for key, at in seen.items()}
    parameters = sum(p.numel() for p in body.parameters())
    ranks: dict[str, Ranks] = dict.fromkeys(layers, (1, 1))
    spent = parameters + sum(_cost(layer, ranks[key]) - layer.weight.numel() for key, layer in layers.items())
    if spent > share * parameters:
        least = math.ceil(100 * spent / parameters) / 100
        raise EdistillError(
            f"student.compress is {share:g}, and with the thinnest layers there are, {name} keeps {least:g} of its "
            f"{parameters:,} parameters. Set it above {least:g}, or start from fewer members."
        )
    while True:
        steps = [
            (gain / max(1, more), key, wider, more)
            for key, layer in layers.items()
            for wider, gain in _wider(layer, ranks[key], brings[key])
            if spent + (more := _cost(layer, wider) - _cost(layer, ranks[key])) <= share * parameters
        ]
        if not steps:
            return {key: r for key, r in ranks.items() if weights_of(layers[key], r) < layers[key].weight.numel()}
        _, key, ranks[key], more = max(steps, key=lambda step: step[0])
        spent += more


def _wider(layer: Layer, ranks: Ranks, brings: tuple[Tensor, Tensor]) -> Iterator[tuple[Ranks, float]]:
    """The next ranks of a layer, and the share of the variance that they bring."""
    limits = most(layer)
    sides = ((1, 0), (0, 1)) if is_spatial(layer) else ((1, 1),)
    for side in sides:
        wider = tuple(
            min(limit, rank + at * max(1, limit // STEPS)) for rank, limit, at in zip(ranks, limits, side, strict=True)
        )
        if wider != ranks:
            gain = sum(float(b[r:w].sum()) for b, r, w in zip(brings, ranks, wider, strict=True))
            yield (wider[0], wider[1]), gain


def _cost(layer: Layer, ranks: Ranks) -> int:
    """The weights of its factors, and the bias that they bring along."""
    weights = weights_of(layer, ranks)
    brought = layer.bias is None and weights < layer.weight.numel()
    return weights + (channels(layer)[1] if brought else 0)


def _solve(body: nn.Module, whole: nn.Module, name: str, ranks: Ranks, seen: _Seen, inputs: Sequence[Tensor]) -> None:
    """Put a layer's factors in its place."""
    layer = seen.layer
    parts = factored(layer, ranks)
    reduce, core, expand = _parts(parts)
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
    replace(body, name, parts)


def _parts(parts: nn.Sequential) -> tuple[Any, Any, Any]:
    """`reduce`, `core` and `expand`, None for one that is not there."""
    reduce, core, expand = (getattr(parts, part, None) for part in ("reduce", "core", "expand"))
    return reduce, core, expand


def _columns(layer: Layer, x: Tensor, y: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What the layer sees at some positions of the rows (positions, kernel · in), and what it gave there."""
    if isinstance(layer, nn.Linear):
        yield _some(flat(x, layer), count), _some(flat(y, layer), count)
        return
    rows = max(1, AT_ONCE // (x.shape[1] * math.prod(layer.kernel_size) * y.shape[2] * y.shape[3]))
    kernel: Any = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    for few, made in zip(torch.split(x, rows), torch.split(y, rows), strict=True):
        patches = functional.unfold(few, *kernel)
        share = max(1, count * len(few) // len(x))
        yield _some(patches.transpose(1, 2).flatten(0, 1), share), _some(flat(made, layer), share)


def _some(x: Tensor, count: int) -> Tensor:
    """So many of the rows (N, C), the same of any two tensors as long."""
    if len(x) <= count:
        return x
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(len(x)))[:count]
    return x[chosen.to(x.device)]


def _shares(variances: Tensor) -> Tensor:
    variances = variances.clamp_min(0)
    return variances / (variances.sum() + torch.finfo(torch.float32).tiny)


class _ThereError(Exception):
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
        raise _ThereError  # also since what follows may change its input in place

    handle = body.get_submodule(name).register_forward_hook(note)
    try:
        body(x)
    except _ThereError:
        pass
    finally:
        handle.remove()
    return passing[0]
