"""Which of how many processes this one is, as torchrun says it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ensemble_distill.errors import EdistillError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rank:
    """0 ≤ index < world."""

    index: int = 0
    world: int = 1


ALONE = Rank()


def current() -> Rank:
    """Raises EdistillError where the environment says it in no whole number, or in none that can be."""
    index, world = (_number(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if not 0 <= index < world:
        raise EdistillError(f"The environment has RANK {index} of WORLD_SIZE {world}. Unset both.")
    return Rank(index, world)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise EdistillError(
            f"The environment has {name} {text!r}, and it is the whole number that torchrun sets. Unset it."
        ) from None


def share_of_all(part: Tensor, whole: Tensor, least: float) -> Tensor:
    """This rank's `part` of a sum, divided by the sum of all ranks' `whole`; that divisor is `least` at least.

    It is multiplied by the number of ranks, since distributed training averages their gradients: the average is then
    the gradient of one process with all rows. Every rank has to call it, also with nothing of its own.
    """
    from torch import distributed

    total = whole.detach().clone()
    if not (distributed.is_available() and distributed.is_initialized()):
        return part / total.clamp_min(least)
    distributed.all_reduce(total)
    return distributed.get_world_size() * part / total.clamp_min(least)


def largest_of_all(own: Tensor) -> Tensor:
    """The largest of every rank's number, which no gradient follows. Every rank has to call it."""
    from torch import distributed

    largest = own.detach().clone()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    return largest
