"""The ranks of all layers of a network, chosen together to spend its parameters best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.students.factored import Layer, parameters_of

STEPS = 64  # coarse rank steps per layer
# ranks of convolutions are multiples of this: runtimes read channels in blocks, and with other numbers onnxruntime took
# three times as long for a compressed ResNet-8
BLOCK = 8
NOTHING = 1e-12  # share of a variance that is mere rounding
WIDEST = 2**13  # inputs or outputs of a layer: solving for a wider one takes longer than training


@dataclass(frozen=True)
class Budget:
    """The share of its parameters that a network may keep.

    Attributes:
        share: above 0 and below 1.
        key: the setting that gives the share, for messages.
        part: what part of a member the network is, for messages.
    """

    share: float
    key: str
    part: str

    def __str__(self) -> str:
        return f"{self.key} is {self.share:g}"


def choose_ranks(
    layers: Mapping[str, Layer], brought: Mapping[str, Sequence[float]], parameters: int, budget: Budget, name: str
) -> dict[str, int]:
    """The ranks of the layers that become factors, in the order of `layers`.

    Ranks grow step by step, always by the step that explains most variance per parameter.

    Args:
        brought: for each layer, the share of its output's variance that ranks from 0 to the highest explain.
        parameters: of the whole network.
        name: its member, for messages.

    Raises:
        EdistillError: it exceeds the budget even with ranks of 1, or it has no parameters.
    """
    if parameters == 0:
        raise EdistillError(f"{budget}, and {name}'s {budget.part} has no parameters. Leave it out.")
    ranks = dict.fromkeys(layers, 1)
    spent = parameters - sum(parameters_of(layer) - _cost(layer, 1) for layer in layers.values())
    most = budget.share * parameters
    if spent > most:
        raise EdistillError(f"{budget}, and {_least(budget, name, spent, parameters)}")
    for finest in (False, True):  # once no coarse step is affordable, spend the rest in the smallest steps
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
    """The problem and the remedy if a network cannot become as small as required."""
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
    """A step to a higher rank of a layer."""

    rank: int
    gain: float  # share of the output's variance
    cost: int  # parameters


def _step(layer: Layer, rank: int, brought: Sequence[float], finest: bool) -> _Step | None:
    """The next step of a layer, by a block or a share of its width; None if it gains nothing."""
    highest, block = len(brought) - 1, BLOCK if isinstance(layer, nn.Conv2d) else 1
    to = rank + (1 if finest else max(1, highest // STEPS))
    if to > block or not finest:  # round up to a whole block
        to = -(-to // block) * block
    to = min(highest, to)
    gain = brought[to] - brought[rank]
    return _Step(to, gain, _cost(layer, to) - _cost(layer, rank)) if gain > NOTHING else None


def _cost(layer: Layer, rank: int) -> int:
    """The parameters of a layer's factors; of the layer itself if these are fewer, since it then stays whole."""
    return min(parameters_of(layer), parameters_of(layer, rank))
