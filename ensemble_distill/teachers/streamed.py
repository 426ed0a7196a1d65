"""Members whose weights do not fit into memory together: each is read from its files as it is asked, and leaves again.

Who asks does not know whether a member is there. Members are asked in turn, over and over: so where one has to leave
for another, it is the one that came last, and those that came first are still there for the next turn.
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

SHARE = 0.7  # of the memory that there is; the rest is for inputs, outputs, and what networks hold in between
READ = 2  # times its size that a member takes on the machine while it is read: its file's numbers, and its module
CPU = torch.device("cpu")


class Room:
    """The memory that members' weights may take, and the members that are in it.

    Args:
        most: bytes by type of device; what is not among them has no end.
    """

    def __init__(self, most: Mapping[str, int] | None = None) -> None:
        self.most = dict(most or {})
        self.seconds = 0.0  # that reading each member took the first time
        self.largest = 0  # bytes of a member so far
        self._there: list[Streamed] = []  # in the order in which they came

    @classmethod
    def of(cls, device: torch.device) -> Room:
        """A share of the memory that there is on the machine, where several processes divide it, and on a device; the
        least of all ranks, so that they agree. Every rank has to call it."""
        own = {"cpu": int(SHARE * memory.available(CPU)) // ranks.local().world}
        own.setdefault(device.type, int(SHARE * memory.available(device)) if device.type == "cuda" else own["cpu"])
        each = ranks.of_each(own)
        return cls({kind: min(one[kind] for one in each) for kind in own})

    def has(self, kind: str, needed: int) -> bool:
        """Whether so many bytes more fit on a type of device."""
        return kind not in self.most or needed + sum(one.size for one in self._on(kind)) <= self.most[kind]

    def clear(self, kind: str, needed: int) -> None:
        """Let members leave until so many bytes fit, or none is there."""
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
    """See `Answering`.

    Args:
        opens: the member as it stands in its files. Raises EdistillError where these are no longer those of its record.

    Attributes:
        place: the type of device where its weights are just now.
        common: what members in one batch have in common, see `together`; None of one that is asked alone.
        batched: whether it is asked in a batch, which has a copy of its weights.
    """

    def __init__(self, opens: Callable[[], Answering], room: Room) -> None:
        self._opens, self._room = opens, room
        self._device, self.place = CPU, CPU.type
        self._settled: Callable[[Answering], Answering] = _as_it_is
        self._asked: Answering | None = None
        self._remarked: Remarked | None = None
        self.common: Hashable | None = None
        self.batched = False
        self._weights = room.largest  # bytes; as of others until it is read
        begun = time.monotonic()
        first = self.asked
        room.seconds += time.monotonic() - begun
        self.member, self.task, self.fineness, self.wants = first.member, first.task, first.fineness, first.wants
        self._remarked = first.remarked if isinstance(first, Session | Estimator) else None
        self._is_module = first.module is not None

    @property
    def asked(self) -> Answering:
        """The member itself, read where it is not there, on its device. Raises EdistillError as opening it does."""
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
            found.remarked = self._remarked  # it was looked at when it was first asked
        self._weights, self.place = weight_bytes(found), CPU.type
        self._room.largest = max(self._room.largest, self._weights)
        self._room.clear(CPU.type, self.size)  # it may be larger than any before
        self._asked = found = self._settled(found)
        self._room.enter(self)
        return found

    @property
    def size(self) -> int:
        """Bytes of its weights, and of the copy that a batch has."""
        return self._weights * (2 if self.batched else 1)

    def settle(self, settled: Callable[[Answering], Answering]) -> None:
        """What is to be asked in its place, now and whenever it is read again."""
        self._asked, self._settled = settled(self.asked), settled
        self.fineness = self._asked.fineness

    def leave(self) -> None:
        """Make room. From a CUDA device it goes to the machine's memory, where that has room, and need not be read."""
        if self._asked is None or not self.size:  # of no size it may hold which rows it has met
            return
        if self.place == "cuda" and self._room.has(CPU.type, READ * self.size):
            self._asked.to(CPU)
            self.place = CPU.type
            self._room.enter(self)
            return
        held = _watched(self._asked)
        self._asked, self.place = None, CPU.type
        self._room.leave(self)
        if held() is not None:  # a module may refer to itself
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
        """It moves when it is asked."""
        if self._is_module:
            self._device = device

    @property
    def device(self) -> torch.device:
        """Where it answers."""
        return self._device

    def answers(self, split: str, rows: Sequence[int], inputs: Tensor | None) -> NDArray[np.float32]:
        """Raises EdistillError, too, where its files are no longer those of its record."""
        asked = self.asked
        found = asked.answers(split, rows, inputs)
        self.fineness = asked.fineness
        return found


def opened(asked: Answering) -> Answering:
    """The member itself."""
    return asked.asked if isinstance(asked, Streamed) else asked


def lacking(members: Iterable[Answering], room: Room) -> tuple[int, int] | None:
    """The bytes that weights fill where they answer, also while the last of them is read, and those that are there for
    them; None where they fit together."""
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
    """The members in their order, cut into groups that fit. Those of a batch stay together, and what fits nowhere is a
    group of its own. Where there is one group, these are the members themselves.

    Args:
        members: told their device.
        batches: names of those that are asked in one batch.
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
    """Let those go that can be read again."""
    for one in members:
        if isinstance(one, Streamed):
            one.leave()


def _watched(asked: Answering) -> weakref.ref[object]:
    return weakref.ref(asked if asked.module is None else asked.module)


def _as_it_is(asked: Answering) -> Answering:
    return asked


def weight_bytes(asked: Answering) -> int:
    """Of a network the bytes of its weights; of an ONNX file or an estimator those of its files; 0 of ready-made
    outputs."""
    if isinstance(asked, Session | Estimator):
        return asked.size
    if asked.module is None:
        return 0
    tensors = [*asked.module.parameters(), *asked.module.buffers()]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
