"""Which of how many processes this one is, as torchrun says it, and what they do together.

All that several processes do differently from one is asked here. Where there is one process, and where the first one
does something on behalf of all (`of_first`), every function answers as for one.
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
    """0 ≤ index < world."""

    index: int = 0
    world: int = 1

    def part(self, count: int) -> slice:
        """This rank's of so many things, of which all ranks' parts are one after the other; their sizes differ by 1 at
        most."""
        return slice(self.index * count // self.world, (self.index + 1) * count // self.world)


ALONE = Rank()
_apart = False  # whether the first process does something on behalf of all just now
_shares = 0  # see `shares_taken`


def current() -> Rank:
    """Raises EdistillError where the environment says it in no whole number, or in none that can be."""
    index, world = (_number(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if not 0 <= index < world:
        raise EdistillError(f"The environment has RANK {index} of WORLD_SIZE {world}. Unset both.")
    return Rank(index, world)


def local() -> Rank:
    """The same among the processes of this machine."""
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
    """Whether other processes are to be asked."""
    if _apart or current().world == 1:
        return False
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return not several() or current().index == 0


def of_first(made: Callable[[], T]) -> T:
    """What the first process makes, which the others wait for. Every rank has to call it; meanwhile the first one is
    as if it were alone."""
    if not several():
        return made()
    from torch import device, distributed

    found: list[T | None] = [None]
    if current().index == 0:
        with _alone():
            found[0] = made()
    distributed.broadcast_object_list(found, src=0, device=device("cpu"))
    return found[0]  # type: ignore[return-value]  # what the first one made


@contextmanager
def _alone() -> Iterator[None]:
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def of_each(own: T) -> list[T]:
    """What every rank has, in their order. Every rank has to call it."""
    if not several():
        return [own]
    from torch import distributed

    found: list[T | None] = [None] * current().world
    distributed.all_gather_object(found, own)
    return found  # type: ignore[return-value]


def wait() -> None:
    """Go on when every rank has come here."""
    of_each(None)


def as_first(module: nn.Module) -> None:
    """Give a module the first process's parameters and buffers. Every rank has to call it."""
    if not several():
        return
    from torch import distributed

    for tensor in module.state_dict().values():
        whole = tensor.contiguous()
        distributed.broadcast(whole, src=0)
        tensor.copy_(whole)


# --- sums over a batch that all ranks have parts of ----------------------------------------------------------------


def mean_of_all(values: Tensor) -> Tensor:
    """The mean of all numbers of the batch, of which this rank has `values`; as `share_of_all` scales it."""
    if not several():
        return values.mean()
    return share_of_all(values.sum(), values.new_full((), values.numel()), 1.0)


def share_of_all(part: Tensor, whole: Tensor, least: float) -> Tensor:
    """This rank's `part` of a sum, divided by the sum of all ranks' `whole`; that divisor is `least` at least.

    It is multiplied by the number of ranks, since distributed training averages their gradients: the average is then
    the gradient of one process with all rows. Every rank has to call it, also with nothing of its own.
    """
    global _shares
    _shares += 1
    world = current().world if several() else 1
    return world * part / sum_of_all(whole).clamp_min(least)


def shares_taken() -> int:
    """How often a share was asked for: what did not ask between two calls knows of no other ranks."""
    return _shares


def sum_of_all(own: Tensor) -> Tensor:
    """The sum of every rank's tensor, which no gradient follows. Every rank has to call it."""
    total = own.detach().clone()
    if several():
        from torch import distributed

        distributed.all_reduce(total)
    return total


def before(own: int) -> int:
    """How many of something the ranks before this one have. Every rank has to call it."""
    return sum(of_each(own)[: current().index]) if several() else 0


def largest_of_all(own: Tensor) -> Tensor:
    """The largest of every rank's number, which no gradient follows. Every rank has to call it."""
    largest = own.detach().clone()
    if several():
        from torch import distributed

        distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    return largest
