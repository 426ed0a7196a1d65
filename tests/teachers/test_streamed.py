"""Members that are read as they are asked, and leave as others need their room."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from ensemble_distill.facts import Member
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.teachers import streamed
from ensemble_distill.teachers.network import Network
from ensemble_distill.teachers.streamed import Room, Streamed


def module_of(numbers: int) -> Callable[[], Network]:
    def opens() -> Network:
        return Network(Classification, Member("a", "0" * 64), nn.Linear(numbers - 1, 1))

    return opens


def test_room_is_made_by_who_came_last_and_for_twice_what_is_read() -> None:
    room = Room({"cpu": 4 * 50})
    first, second, third = (Streamed(module_of(10), room) for _ in range(3))
    large = Streamed(module_of(30), room)
    here = [one for one in (first, second, third, large) if one._asked is not None]
    assert here == [first, second, large], "40 + 40 + 120 bytes are 200: how large it is was not known before"
    assert large.asked is large._asked
    assert third.asked.module is not None
    assert [one._asked is not None for one in (first, second, large)] == [True, True, False]
    assert large.asked.module is not None
    assert not any(one._asked is not None for one in (first, second, third)), "240 bytes while it is read"


def test_a_module_that_refers_to_itself_leaves_too() -> None:
    room = Room({"cpu": 1})

    def opens() -> Network:
        network = module_of(10)()
        network.module.itself = [network.module]  # type: ignore[assignment]
        return network

    member = Streamed(opens, room)
    held = weakref.ref(member.asked.module)
    gc.disable()
    try:
        member.leave()
        assert held() is None
    finally:
        gc.enable()


def test_one_group_is_the_members_themselves_and_what_fits_nowhere_is_a_group_of_its_own() -> None:
    for most, wanted in ((40 * 4 + 40, [[0, 1, 2, 3]]), (40 * 3, [[0, 1], [2, 3]]), (1, [[0], [1], [2], [3]])):
        room = Room({"cpu": most})
        members = [Streamed(module_of(10), room) for _ in range(4)]
        for index, one in enumerate(members):
            one.member = replace(one.member, name=str(index))
        found = streamed.groups(members, [], room)
        assert len(found) == len(wanted)
        if len(found) == 1:
            assert found == [[one.asked for one in members]]
        else:
            assert [[int(one.member.name) for one in group] for group in found] == wanted
    in_batch = [[int(one.member.name) for one in group] for group in streamed.groups(members, [["1", "3"]], room)]
    assert in_batch == [[0], [1, 3], [2]]


class Elsewhere(Network):
    """A member on a device that is not here: told where it is, it says so alone."""

    on = "cpu"

    def to(self, device: torch.device) -> None:
        self.on = device.type


@pytest.mark.parametrize(("of_machine", "read_again"), [(10**6, False), (40 * 3, True)])
def test_members_go_from_a_gpu_to_the_machine_where_that_has_room(of_machine: int, read_again: bool) -> None:
    room, opens = Room({"cpu": of_machine, "cuda": 2 * 40}), Counter[int]()

    def opening(index: int) -> Elsewhere:
        opens[index] += 1
        return Elsewhere(Classification, Member(str(index), "0" * 64), nn.Linear(9, 1))

    members = [Streamed(partial(opening, index), room) for index in range(3)]
    for one in members:
        one.to(torch.device("cuda"))
    opens.clear()
    found = streamed.groups(members, [], room)
    assert [len(group) for group in found] == [2, 1]
    assert streamed.lacking(members, room) == (120, 80)
    for _ in range(2):
        for group in found:
            assert {streamed.opened(one).on for one in group} == {"cuda"}  # type: ignore[attr-defined]
            assert [one.place for one in members].count("cuda") == len(group)
            streamed.leave(group)
    assert all(one.place == "cpu" for one in members)
    assert (opens.total() > 0) == read_again
