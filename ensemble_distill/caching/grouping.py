"""Which members a pass asks in one batch, and which it asks before others where they do not fit into memory together.

Those in one batch are as the pass was begun or, of those that are new, as `together` finds them.
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

NOTED = "together"  # in what the manifest says of the caching: lists of names


def batches(
    members: Sequence[Answering], splits: Mapping[str, SplitPlan], asking: Asking, there: Manifest | None
) -> Iterator[Together]:
    """Those that are asked in one batch, compared on the first rows of the largest split.

    Args:
        members: on the device where they answer.
        there: what the cache says that is there already: its members stay as they are asked, so that a pass which goes
            on ends with the bytes of one that was never interrupted.
    """
    plan = max(splits.values(), key=lambda one: len(one.source))
    rows = range(min(asking.batch_size, len(plan.source)))
    noted, settled = ((), ()) if there is None else (there.caching.get(NOTED, ()), there.names)

    @cache
    def shown(to: Inputs) -> Tensor:
        return seen(plan.rows(), rows, [0], [to])[0, to].to(asking.device)

    return together(members, shown, noted, settled)


def noting(manifest: Manifest, found: Iterator[Together]) -> Manifest:
    """The manifest, which says who is asked in one batch; as it was where nobody is."""
    names = [list(names) for names in map(attrgetter("names"), found)]  # a batch goes before the next one is made
    rest = {key: value for key, value in manifest.caching.items() if key != NOTED}
    return replace(manifest, caching=rest | ({NOTED: names} if names else {}))


class Turns:
    """How a pass comes to ask its members: all of them at once or, where they do not fit, group after group.

    Args:
        members: in the order of the manifest.
        groups: they as they are in memory together.
        manifest: which says who is asked in one batch.

    Attributes:
        whole: all of them, for what needs them at once; asked one by one where not all are in memory.
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
        """Act on each group that lacks some of these records, with those; it leaves before the next one comes."""
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
    """The members as they are in memory together: one group where they fit."""
    return groups(members, manifest.caching.get(NOTED, ()), room)


def groups_told(groups: Sequence[Sequence[Answering]], room: Room) -> str | None:
    """Why a pass asks its members in groups; None where it asks all at once."""
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
    """Say, before a pass, that it asks its members in groups, and of which splits each batch needs all of them; and
    where one of them is too large by itself."""
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
    """How often a pass that asks its members in groups reads each of them for the splits that lack records: once or,
    where it needs all of them at once, for each batch."""
    found = {}
    for name, plan in splits.items():
        views = {key.view for key in keys({name: plan}, manifest.members) if key not in manifest.records}
        cut = -(-len(plan.source) // asking.batch_size)
        if views:
            found[name] = (cut * len(views) if name in asking.drawn else 1) + (cut if pushes(plan.view) else 0)
    return found
