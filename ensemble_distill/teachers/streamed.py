"""Members whose weights do not fit into memory together: each is loaded when it is asked, and unloaded for another.

Callers do not know whether a member is loaded. Members are asked in turn, again and again. The member that was loaded
last is therefore unloaded first, so that the earlier ones are still there for the next turn.
"""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ensemble_distill.runtime import memory, ranks
from ensemble_distill.teachers.answering import Answering, Rows
from ensemble_distill.teachers.estimator import Estimator
from ensemble_distill.teachers.remarked import Remarked
from ensemble_distill.teachers.session import Session

SHARE = 0.7  # of the available memory, for weights; the rest is for inputs, outputs and activations
READ = 2  # memory of a member while it is read, in multiples of its size: the file's numbers and the module
CPU = torch.device("cpu")


class Room:
    """The memory for members' weights, and the members that are loaded in it.

    Args:
        most: bytes by device type; a type that is missing has no limit.
    """

    def __init__(self, most: Mapping[str, int] | None = None) -> None:
        self.most = dict(most or {})
        self.seconds = 0.0  # spent on reading each member for the first time
        self.largest = 0  # bytes of the largest member so far
        self._there: list[Streamed] = []  # in the order of loading

    @classmethod
    def of(cls, device: torch.device) -> Room:
        """A share of the memory available on the machine, divided among its processes, and on a device.

        Every rank has to call it: the ranks agree on the least of their numbers.
        """
        own = {"cpu": int(SHARE * memory.available(CPU)) // ranks.local().world}
        own.setdefault(device.type, int(SHARE * memory.available(device)) if device.type == "cuda" else own["cpu"])
        each = ranks.of_each(own)
        return cls({kind: min(one[kind] for one in each) for kind in own})

    def has(self, kind: str, needed: int) -> bool:
        """Whether `needed` more bytes fit on a device type."""
        return kind not in self.most or needed + sum(one.size for one in self._on(kind)) <= self.most[kind]

    def clear(self, kind: str, needed: int) -> None:
        """Unload members, the last loaded first, until `needed` more bytes fit or no member is left."""
        while not self.has(kind, needed) and (there := self._on(kind)):
            there[-1].leave()

    def enter(self, member: Streamed) -> None:
        self.leave(member)
        self._there.append(member)

    def leave(self, member: Streamed) -> None:
        self._there = [one for one in self._there if one is not member]

    def _on(self, kind: str) -> list[Streamed]:
        return [one for one in self._there if one.place == kind and one.size]


class Streamed:
    """See `Answering`. A member that is loaded whenever it is asked.

    Args:
        opens: opens the member from its files; raises EdistillError if these no longer match its record.
        room: the memory that it shares with other members.

    Attributes:
        place: the device type on which its weights are at present.
        common: what members of one batch have in common, see `in_common`; None if it is asked alone.
        batched: whether it is asked in a batch, which holds a copy of its weights.
    """

    def __init__(self, opens: Callable[[], Answering], room: Room) -> None:
        self._opens, self._room = opens, room
        self._device, self.place = CPU, CPU.type
        self._settled: Callable[[Answering], Answering] = _as_it_is
        self._asked: Answering | None = None
        self._remarked: Remarked | None = None
        self.common: Hashable | None = None
        self.batched = False
        self._weights = room.largest  # bytes; the largest so far until it is read
        begun = time.monotonic()
        first = self.asked
        room.seconds += time.monotonic() - begun
        self.member, self.task, self.fineness, self.wants = first.member, first.task, first.fineness, first.wants
        self._remarked = first.remarked if isinstance(first, Session | Estimator) else None
        self._is_module = first.module is not None

    @property
    def asked(self) -> Answering:
        """The member itself on its device, loaded if necessary; raises EdistillError as opening it does."""
        found = self._read() if self._asked is None else self._asked
        if self.place != self._device.type:
            self._room.clear(self._device.type, self.size)
            found.to(self._device)
            self.place = self._device.type
            self._room.enter(self)
        return found

    def _read(self) -> Answering:
        self._room.clear(CPU.type, READ * self.size)
        found = self._opens()
        if isinstance(found, Session | Estimator) and self._remarked is not None:
            found.remarked = self._remarked  # its first answers were checked before
        self._weights, self.place = weight_bytes(found), CPU.type
        self._room.largest = max(self._room.largest, self._weights)
        self._room.clear(CPU.type, self.size)  # it may be larger than was assumed
        self._asked = found = self._settled(found)
        self._room.enter(self)
        return found

    @property
    def size(self) -> int:
        """Bytes of its weights, including the copy that a batch holds."""
        return self._weights * (2 if self.batched else 1)

    def settle(self, settled: Callable[[Answering], Answering]) -> None:
        """Replace the member by `settled(member)`, now and whenever it is read again."""
        self._asked, self._settled = settled(self.asked), settled
        self.fineness = self._asked.fineness

    def leave(self) -> None:
        """Unload the weights; those on a CUDA device move to the machine's memory instead if it has room."""
        if self._asked is None or not self.size:  # one without weights may keep the rows it has met
            return
        if self.place == "cuda" and self._room.has(CPU.type, READ * self.size):
            self._asked.to(CPU)
            self.place = CPU.type
            self._room.enter(self)
            return
        held = _watched(self._asked)
        self._asked, self.place = None, CPU.type
        self._room.leave(self)
        if held() is not None:  # a module may be in a reference cycle
            gc.collect()

    @property
    def module(self) -> nn.Module | None:
        return self.asked.module if self._is_module else None

    @property
    def remark(self) -> str | None:
        return self.asked.remark

    def meets(self, split: str, rows: Rows) -> None:
        self.asked.meets(split, rows)

    def to(self, device: torch.device) -> None:
        """Set the device of a module, which moves there when it is next asked."""
        if self._is_module:
            self._device = device

    @property
    def device(self) -> torch.device:
        """The device on which it answers."""
        return self._device

    def answers(self, split: str, rows: Sequence[int], inputs: Tensor | None) -> NDArray[np.float32]:
        """See `Answering`; also raises EdistillError if its files no longer match its record."""
        asked = self.asked
        found = asked.answers(split, rows, inputs)
        self.fineness = asked.fineness
        return found


def opened(asked: Answering) -> Answering:
    """The member itself, without the `Streamed` around it."""
    return asked.asked if isinstance(asked, Streamed) else asked


def lacking(members: Iterable[Answering], room: Room) -> tuple[int, int] | None:
    """The bytes that members' weights need and the bytes available, on a device type where they do not fit together.

    On the machine that includes reading the largest member. None if they fit everywhere.
    """
    sizes: dict[str, list[int]] = {}
    for one in members:
        if isinstance(one, Streamed):
            sizes.setdefault(one.device.type, []).append(one.size)
    for kind, here in sizes.items():
        needed = sum(here) + (0 if kind == "cuda" else (READ - 1) * max(here))
        if needed > room.most.get(kind, needed):
            return needed, room.most[kind]
    return None


def groups(members: Sequence[Answering], batches: Iterable[Sequence[str]], room: Room) -> list[list[Answering]]:
    """Cut the members, in order, into groups that fit into memory together.

    Members of a batch stay together, and members that fit with no others are a group of their own. If one group is
    enough, it holds the members themselves without the `Streamed` around them.

    Args:
        members: with their device set.
        batches: names of the members that are asked in one batch.
        room: the memory for their weights.
    """
    batch_of = {name: names for names in batches for name in names}
    for one in members:
        if isinstance(one, Streamed):
            one.batched = one.member.name in batch_of
    units: dict[Hashable, list[Answering]] = {}
    for one in members:
        units.setdefault(tuple(batch_of.get(one.member.name, [one.member.name])), []).append(one)
    found: list[list[Answering]] = []
    for unit in units.values():
        if found and lacking([*found[-1], *unit], room) is None:
            found[-1] += unit
        else:
            found.append(unit)
    return found if len(found) > 1 else [[opened(one) for one in members]]


def leave(members: Iterable[Answering]) -> None:
    """Unload the members that can be read again."""
    for one in members:
        if isinstance(one, Streamed):
            one.leave()


def _watched(asked: Answering) -> weakref.ref[object]:
    return weakref.ref(asked if asked.module is None else asked.module)


def _as_it_is(asked: Answering) -> Answering:
    return asked


def weight_bytes(asked: Answering) -> int:
    """The bytes of a network's weights, or of the files of an ONNX graph or estimator; 0 for ready-made outputs."""
    if isinstance(asked, Session | Estimator):
        return asked.size
    if asked.module is None:
        return 0
    tensors = [*asked.module.parameters(), *asked.module.buffers()]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
