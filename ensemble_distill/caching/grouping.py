"""Which members a pass asks in one batch, and in which groups it asks them if they do not fit into memory together.

Members that share a batch are those noted when the pass began; for new members, those that `together` finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from operator import attrgetter

from torch import Tensor

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.record_key import RecordKey
from ensemble_distill.caching.complete import keys
from ensemble_distill.caching.panel import Asking, Panel
from ensemble_distill.caching.seen import seen
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.rendition import pushes
from ensemble_distill.errors import first_few
from ensemble_distill.runtime.words import bytes_told, counted
from ensemble_distill.teachers.answering import Answering, Inputs
from ensemble_distill.teachers.streamed import Room, groups, lacking, leave
from ensemble_distill.teachers.together import Together, together

NOTED = "together"  # the key of `Manifest.caching` that lists the names asked in one batch


def batches(
    members: Sequence[Answering], splits: Mapping[str, SplitPlan], asking: Asking, there: Manifest | None
) -> Iterator[Together]:
    """The batches of members that are asked together, compared on the first rows of the largest split.

    Args:
        members: on the device where they answer.
        there: the manifest of the existing cache. Its members are asked as before, so that a resumed pass ends with the
            bytes of an uninterrupted one.
    """
    plan = max(splits.values(), key=lambda one: len(one.source))
    rows = range(min(asking.batch_size, len(plan.source)))
    noted, settled = ((), ()) if there is None else (there.caching.get(NOTED, ()), there.names)

    @cache
    def shown(to: Inputs) -> Tensor:
        return seen(plan.rows(), rows, [0], [to])[0, to].to(asking.device)

    return together(members, shown, noted, settled)


def noting(manifest: Manifest, found: Iterator[Together]) -> Manifest:
    """The manifest, with a note of the members that are asked in one batch, if there are any."""
    names = [list(names) for names in map(attrgetter("names"), found)]  # frees each batch before the next one is made
    rest = {key: value for key, value in manifest.caching.items() if key != NOTED}
    return replace(manifest, caching=rest | ({NOTED: names} if names else {}))


class Turns:
    """How a pass asks its members: all at once or, if they do not fit into memory, group after group.

    Args:
        members: in the order of the manifest.
        groups: the members that are in memory together.
        manifest: notes which members are asked in one batch.

    Attributes:
        whole: all members, for steps that need all at once; asked one by one if not all are in memory.
    """

    def __init__(
        self,
        members: Sequence[Answering],
        groups: Sequence[Sequence[Answering]],
        splits: Mapping[str, SplitPlan],
        asking: Asking,
        manifest: Manifest,
    ) -> None:
        self._groups, self._splits, self._asking, self._manifest = groups, splits, asking, manifest
        self.whole = self._panel(groups[0]) if len(groups) == 1 else Panel(members, asking)

    def each(self, todo: Sequence[RecordKey], act: Callable[[Panel, list[RecordKey]], None]) -> None:
        """Call `act` with each group and its records among `todo`.

        Each group leaves memory before the next one comes.
        """
        if len(self._groups) == 1:
            act(self.whole, list(todo))
            return
        for at, group in enumerate(self._groups):
            names = {one.member.name for one in group}
            own = [key for key in todo if key.member in names]
            if own:
                act(self._panel(group, f", group {at + 1} of {len(self._groups)}"), own)
                leave(group)

    def _panel(self, group: Sequence[Answering], named: str = "") -> Panel:
        found = batches(group, self._splits, self._asking, self._manifest)
        return Panel(group, self._asking, list(found), named)


def groups_of(members: Sequence[Answering], manifest: Manifest, room: Room) -> list[list[Answering]]:
    """The members that are in memory together, as groups; one group if all fit."""
    return groups(members, manifest.caching.get(NOTED, ()), room)


def groups_told(groups: Sequence[Sequence[Answering]], room: Room) -> str | None:
    """Why a pass asks its members in groups; None if it asks all at once."""
    members = [one for group in groups for one in group]
    lack = lacking(members, room)
    if len(groups) < 2 or lack is None:
        return None
    return (
        f"{counted(len(members), 'member')} are asked in {len(groups)} groups, one after the other: their "
        f"weights, and what loading one takes, need {bytes_told(lack[0])}, and only {bytes_told(lack[1])} of "
        "memory is available"
    )


def tell_groups(
    manifest: Manifest,
    splits: Mapping[str, SplitPlan],
    groups: Sequence[Sequence[Answering]],
    asking: Asking,
    room: Room,
) -> None:
    """Report, before a pass, that it asks its members in groups, and which splits need all members for every batch.

    Warns of a member that is too large for memory even alone.
    """
    for group in groups:
        if (lack := lacking(group, room)) is not None:
            names = first_few([one.member.name for one in group])
            asking.progress.warn(
                f"{names} may not fit into memory: loading its weights needs {bytes_told(lack[0])}, and "
                f"{bytes_told(lack[1])} is available."
            )
    if (told := groups_told(groups, room)) is None:
        return
    often = [name for name, count in readings(manifest, splits, asking).items() if count > 1]
    each = f" Each batch of {' and '.join(often)} needs all of them, and reads them again." if often else ""
    asking.progress.note(f"{told}.{each}")


def readings(manifest: Manifest, splits: Mapping[str, SplitPlan], asking: Asking) -> dict[str, int]:
    """How often a pass with several groups reads each member from disk, for each split that lacks records.

    Once, or once per batch for steps that need all members together.
    """
    found = {}
    for name, plan in splits.items():
        views = {key.view for key in keys({name: plan}, manifest.members) if key not in manifest.records}
        cut = -(-len(plan.source) // asking.batch_size)
        if views:
            found[name] = (cut * len(views) if name in asking.drawn else 1) + (cut if pushes(plan.view) else 0)
    return found
