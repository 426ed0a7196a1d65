"""Which of how many processes this one is, as torchrun says, and what the processes do together.

Everything that several processes do differently from one goes through this module. For a single process, and while the
first one acts on behalf of all (`of_first`), every function behaves as for one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ensemble_distill.errors import EdistillError

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Rank:
    """A process of a group, 0 ≤ index < world."""

    index: int = 0
    world: int = 1

    def part(self, count: int) -> slice:
        """This rank's part of `count` things; the ranks' parts follow one another, and their sizes differ by at most
        1."""
        return slice(self.index * count // self.world, (self.index + 1) * count // self.world)


ALONE = Rank()
_apart = False  # whether the first process is acting on behalf of all
_shares = 0  # see `shares_taken`


def current() -> Rank:
    """This process among all, from RANK and WORLD_SIZE.

    Raises:
        EdistillError: they are not whole numbers, or not a valid pair.
    """
    index, world = (_number(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if not 0 <= index < world:
        raise EdistillError(f"The environment has RANK {index} of WORLD_SIZE {world}. Unset both.")
    return Rank(index, world)


def local() -> Rank:
    """This process among those of its machine, from LOCAL_RANK and LOCAL_WORLD_SIZE.

    Raises:
        EdistillError: they are not whole numbers, or not a valid pair.
    """
    index, world = (_number(name, default) for name, default in (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)))
    if not 0 <= index < world:
        raise EdistillError(f"The environment has LOCAL_RANK {index} of LOCAL_WORLD_SIZE {world}. Unset both.")
    return Rank(index, world)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise EdistillError(
            f"The environment has {name} {text!r}, and it is the whole number that torchrun sets. Unset it."
        ) from None


# --- one for all ----------------------------------------------------------------------------------------------------


def several() -> bool:
    """Whether there are other processes to communicate with."""
    if _apart or current().world == 1:
        return False
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_first() -> bool:
    """Whether this process writes files and messages."""
    return not several() or current().index == 0


def of_first(made: Callable[[], T]) -> T:
    """The result of `made` in the first process, which the others wait for.

    Every rank must call it. Meanwhile the first process behaves as if it were alone.
    """
    if not several():
        return made()
    from torch import device, distributed

    found: list[T | None] = [None]
    if current().index == 0:
        with _alone():
            found[0] = made()
    distributed.broadcast_object_list(found, src=0, device=device("cpu"))
    return found[0]  # type: ignore[return-value]  # the first process has set it


@contextmanager
def _alone() -> Iterator[None]:
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def of_each(own: T) -> list[T]:
    """The value of every rank, in rank order; every rank must call it."""
    if not several():
        return [own]
    from torch import distributed

    found: list[T | None] = [None] * current().world
    distributed.all_gather_object(found, own)
    return found  # type: ignore[return-value]


def wait() -> None:
    """Wait until every rank has called it."""
    of_each(None)


def as_first(module: nn.Module) -> None:
    """Give a module the first process's parameters and buffers; every rank must call it."""
    if not several():
        return
    from torch import distributed

    for tensor in module.state_dict().values():
        whole = tensor.contiguous()
        distributed.broadcast(whole, src=0)
        tensor.copy_(whole)


# --- sums over a batch that is divided among the ranks --------------------------------------------------------------


def mean_of_all(values: Tensor) -> Tensor:
    """The mean over the whole batch, of which this rank has `values`; scaled as in `share_of_all`."""
    if not several():
        return values.mean()
    return share_of_all(values.sum(), values.new_full((), values.numel()), 1.0)


def share_of_all(part: Tensor, whole: Tensor, least: float) -> Tensor:
    """This rank's `part` of a sum, divided by the sum of all ranks' `whole`, which is clamped to at least `least`.

    The result is multiplied by the number of ranks, since distributed training averages their gradients: the average is
    then the gradient of one process with all rows. Every rank must call it, even if it has no rows.
    """
    global _shares
    _shares += 1
    world = current().world if several() else 1
    return world * part / sum_of_all(whole).clamp_min(least)


def shares_taken() -> int:
    """How often `share_of_all` was called: a function that leaves the count unchanged ignores the other ranks."""
    return _shares


def sum_of_all(own: Tensor) -> Tensor:
    """The sum of all ranks' tensors, without gradient; every rank must call it."""
    total = own.detach().clone()
    if several():
        from torch import distributed

        distributed.all_reduce(total)
    return total


def before(own: int) -> int:
    """The sum of `own` over the ranks before this one; every rank must call it."""
    return sum(of_each(own)[: current().index]) if several() else 0


def largest_of_all(own: Tensor) -> Tensor:
    """The elementwise maximum over all ranks' tensors, without gradient; every rank must call it."""
    largest = own.detach().clone()
    if several():
        from torch import distributed

        distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    return largest
