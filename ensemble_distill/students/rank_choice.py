"""How thin each layer of a network becomes, for all at once: the ranks on which its parameters are best spent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ensemble_distill.errors import EdistillError
from ensemble_distill.students.factored import Layer, Ranks, admits, parameters_of, positions

STEPS = 64  # of a layer's width, that ranks are chosen by
NOTHING = 1e-12  # of a variance: rounding

Brought = tuple[list[float], list[float]]  # what the first 0, 1, … channels on either side of the core bring


def choose_ranks(
    layers: Mapping[str, Layer], brought: Mapping[str, Brought], parameters: int, share: float, name: str
) -> dict[str, Ranks]:
    """The ranks of the layers that become factors, in their order: step by step what brings most for its parameters.

    Args:
        brought: by layer, the shares of its output's variance that ranks bring, from none to the highest there are.
        parameters: of the whole network.
        share: of them that it may have.
        name: of the member that it is, for messages.

    Raises:
        EdistillError: with ranks of 1 it has more.
    """
    ranks: dict[str, Ranks] = dict.fromkeys(layers, (1, 1))
    spent = parameters - sum(parameters_of(layer) - _cost(layer, (1, 1)) for layer in layers.values())
    if spent > share * parameters:
        raise EdistillError(f"student.compress is {share:g}, and {_least(name, spent, parameters)}")
    for finest in (False, True):  # what is left after the last step that can be paid for goes channel by channel
        steps = {key: list(_steps(layer, ranks[key], brought[key], finest)) for key, layer in layers.items()}
        while affordable := [
            (step.gain / max(1, step.cost), key, step)
            for key, some in steps.items()
            for step in some
            if spent + step.cost <= share * parameters
        ]:
            _, key, best = max(affordable, key=lambda one: one[0])
            spent += best.cost
            ranks[key] = best.ranks
            steps[key] = list(_steps(layers[key], best.ranks, brought[key], finest))
    return {key: r for key, r in ranks.items() if _cost(layers[key], r) < parameters_of(layers[key])}


def _least(name: str, spent: int, parameters: int) -> str:
    """What is wrong and what to do where a body cannot be as small as it is to be."""
    if spent > 0.999 * parameters:
        return (
            f"none of {name}'s layers can be made much smaller: only torch's own linear layers and 2-D convolutions "
            "can, without groups, with zeros for padding, and run once for each row. Leave it out, and start from "
            "fewer members."
        )
    least = f"{math.ceil(1000 * spent / parameters) / 1000:g}"
    return (
        f"with factors of rank 1 {name} keeps {least} of its {parameters:,} parameters. Set it above {least}, or start "
        "from fewer members."
    )


@dataclass(frozen=True)
class _Step:
    """To higher ranks of a layer."""

    ranks: Ranks
    gain: float  # shares of the output's variance
    cost: int  # parameters


def _steps(layer: Layer, ranks: Ranks, brought: Brought, finest: bool) -> Iterator[_Step]:
    """The next ranks of a layer that bring anything, a channel further or a part of its width."""
    # both at once where each alone would be more than the other lets through
    sides = ((1, 0), (0, 1), (1, 1)) if positions(layer) > 1 else ((1, 1),)
    for side in sides:
        inner, outer = (
            min(len(b) - 1, rank + moves * (1 if finest else max(1, (len(b) - 1) // STEPS)))
            for b, rank, moves in zip(brought, ranks, side, strict=True)
        )
        gain = sum(b[to] - b[rank] for b, rank, to in zip(brought, ranks, (inner, outer), strict=True))
        if gain > NOTHING and admits(layer, (inner, outer)):
            yield _Step((inner, outer), gain, _cost(layer, (inner, outer)) - _cost(layer, ranks))


def _cost(layer: Layer, ranks: Ranks) -> int:
    """The parameters of its factors, or its own where they would have more: then it stays whole."""
    return min(parameters_of(layer), parameters_of(layer, ranks))
