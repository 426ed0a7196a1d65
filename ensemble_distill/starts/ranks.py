"""How thin each layer of a network becomes, for all at once: the ranks on which its parameters are best spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.students.factored import Layer, parameters_of

STEPS = 64  # of a layer's width, that ranks are chosen by
# of channels between a convolution's factors: runtimes read them in blocks, and with other numbers of them onnxruntime
# took three times as long for a compressed ResNet-8
BLOCK = 8
NOTHING = 1e-12  # of a variance: rounding
WIDEST = 2**13  # inputs of a layer, or outputs: beyond that solving for it takes longer than training


@dataclass(frozen=True)
class Budget:
    """The share of its parameters that a network may have.

    Attributes:
        share: above 0 and below 1.
        key, part: the setting that says so, and what of a member the network is; for messages.
    """

    share: float
    key: str
    part: str

    def __str__(self) -> str:
        return f"{self.key} is {self.share:g}"


def choose_ranks(
    layers: Mapping[str, Layer], brought: Mapping[str, Sequence[float]], parameters: int, budget: Budget, name: str
) -> dict[str, int]:
    """The ranks of the layers that become factors, in their order: step by step what brings most for its parameters.

    Args:
        brought: by layer, the share of its output's variance that ranks bring, from 0 to the highest there is.
        parameters: of the whole network.
        name: of the member that it is, for messages.

    Raises:
        EdistillError: with ranks of 1 it has more, or it has no parameters.
    """
    if parameters == 0:
        raise EdistillError(f"{budget}, and {name}'s {budget.part} has no parameters. Leave it out.")
    ranks = dict.fromkeys(layers, 1)
    spent = parameters - sum(parameters_of(layer) - _cost(layer, 1) for layer in layers.values())
    most = budget.share * parameters
    if spent > most:
        raise EdistillError(f"{budget}, and {_least(budget, name, spent, parameters)}")
    for finest in (False, True):  # what is left after the last step that can be paid for goes by the least there is
        steps = {key: _step(layer, ranks[key], brought[key], finest) for key, layer in layers.items()}
        while affordable := [
            (step.gain / max(1, step.cost), key, step)
            for key, step in steps.items()
            if step is not None and spent + step.cost <= most
        ]:
            _, key, best = max(affordable, key=lambda one: one[0])
            spent += best.cost
            ranks[key] = best.rank
            steps[key] = _step(layers[key], best.rank, brought[key], finest)
    return {key: r for key, r in ranks.items() if _cost(layers[key], r) < parameters_of(layers[key])}


def _least(budget: Budget, name: str, spent: int, parameters: int) -> str:
    """What is wrong and what to do where a network cannot be as small as it is to be."""
    if spent > 0.999 * parameters:
        return (
            f"none of {name}'s layers can be made much smaller: only torch's own linear layers and 2-D convolutions "
            f"can, without groups, with zeros for padding, of at most {WIDEST:,} inputs and outputs, and run once for "
            "each row. Leave it out."
        )
    least = f"{math.ceil(1000 * spent / parameters) / 1000:g}"
    return (
        f"with factors of rank 1 {name}'s {budget.part} keeps {least} of its {parameters:,} parameters (what is not "
        f"torch's own, runs twice or has more than {WIDEST:,} inputs or outputs stays whole). Set it above {least}, or "
        "leave it out."
    )


@dataclass(frozen=True)
class _Step:
    """To a higher rank of a layer."""

    rank: int
    gain: float  # share of the output's variance
    cost: int  # parameters


def _step(layer: Layer, rank: int, brought: Sequence[float], finest: bool) -> _Step | None:
    """To the next rank of a layer, a block further or a part of its width; None where that brings nothing."""
    highest, block = len(brought) - 1, BLOCK if isinstance(layer, nn.Conv2d) else 1
    to = rank + (1 if finest else max(1, highest // STEPS))
    if to > block or not finest:  # up to the end of a block
        to = -(-to // block) * block
    to = min(highest, to)
    gain = brought[to] - brought[rank]
    return _Step(to, gain, _cost(layer, to) - _cost(layer, rank)) if gain > NOTHING else None


def _cost(layer: Layer, rank: int) -> int:
    """The parameters of its factors, or its own where they would have more: then it stays whole."""
    return min(parameters_of(layer), parameters_of(layer, rank))
