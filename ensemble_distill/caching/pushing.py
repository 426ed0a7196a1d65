"""The inputs of views that push: made once and stored. Members label them, and the student trains on them.

They depend on the members present when they were made, and the manifest notes for each view which were asked. A member
added later only labels the stored inputs, while a new view asks all members present by then. The writer writes, syncs
and renames their blocks as it does for outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.cache.manifest import Manifest, Pushed
from ensemble_distill.cache.reader import StoredInputs, stored_inputs
from ensemble_distill.cache.record_key import InputKey, inputs_place
from ensemble_distill.cache.writer import Writer
from ensemble_distill.caching.filling import fill
from ensemble_distill.caching.gradient import all_moved
from ensemble_distill.caching.noted import fresh_notes
from ensemble_distill.caching.panel import Panel
from ensemble_distill.caching.seen import Seen
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.push import Push
from ensemble_distill.data.rendition import pushes
from ensemble_distill.data.source import Array
from ensemble_distill.errors import CacheError, EdistillError
from ensemble_distill.facts import AnyPreprocessing, Member, Preprocessing
from ensemble_distill.teachers.answering import Answering, Inputs


def push_inputs(writer: Writer, name: str, plan: SplitPlan, views: Sequence[int], panel: Panel) -> StoredInputs | None:
    """Store the inputs of these views that are not stored yet; None for views that do not push.

    Raises:
        EdistillError: see `gradient.moved`; or a view that says it pushes has a row without a push.
    """
    if not pushes(plan.view):
        return None
    todo = writer.pending([InputKey(name, view) for view in views])
    if todo:
        _note(writer, plan, todo, panel.facts)
        fill(writer, plan.rows(), todo, _Moving(writer, plan, todo, panel), panel.asking, f"moving inputs of {name}")
        writer.join(todo, len(plan.source), panel.asking.batch_size)
        panel.asking.progress.finish()
    else:
        writer.drop_parts(inputs_place(name))
    return stored_inputs(writer.folder, writer.manifest, name, views)


def refuse_no_gradients(splits: Mapping[str, SplitPlan], members: Sequence[Answering]) -> None:
    """Raise EdistillError if a view pushes and a member has no module to take a gradient of."""
    for name, plan in splits.items():
        for asked in members:
            if pushes(plan.view) and asked.module is None:
                raise EdistillError(
                    f"Member {asked.member.name} gives no gradient: it is not a module of torch. The view "
                    f"{plan.transform!r} of {name} needs one of every member: take ods or confods out of "
                    "views.transform."
                )


def refuse_other_sizes(name: str, plan: SplitPlan, manifest: Manifest) -> None:
    """Raise EdistillError if members take inputs of different sizes: a stored input has a single size.

    Members may differ in mean and standard deviation, and in how they resize and crop: inputs are rendered as for the
    first one that is asked.
    """
    if not pushes(plan.view):
        return
    unsaid = [None] if plan.source.kind == "pixels" else []  # such members are refused when they are opened
    members = [member for member in manifest.members if member.preprocessing not in unsaid]
    if not members:
        return
    stored = manifest.pushed.get(InputKey(name, 0)) if manifest.holds(name) else None
    first = _shape(plan, members[0])
    for member in members:
        shape = _shape(plan, member)
        if shape != first:
            raise EdistillError(
                f"Member {members[0].name} takes {name} as {first}, and {member.name} as {shape}. With views.transform "
                f"{plan.transform!r} an input is stored once for all members: remove those of another size, or take "
                "ods or confods out of views.transform."
            )
    if stored is not None and stored.shape != first:
        raise CacheError(
            f"The cache stores inputs of {name} as {stored.shape}, and {members[0].name} takes {first}. Remove the "
            "members of another size, or run edistill cache-logits --overwrite."
        )


def refuse_other_making(folder: Path, name: str, plan: SplitPlan, manifest: Manifest) -> None:
    """Raise EdistillError if a view pushes and the cached view of its name did not, or the reverse."""
    stored = bool(manifest.pushed_views(name))
    if manifest.holds(name) and stored != pushes(plan.view):
        was, now = (("" if one else "not ") + "along gradients" for one in (stored, pushes(plan.view)))
        raise CacheError(
            f"{folder} has inputs of {name} moved {was}, and views.transform {plan.transform!r} moves them {now}. Its "
            "code has changed: put it back, or run edistill cache-logits --overwrite."
        )


def _shape(plan: SplitPlan, member: Member) -> tuple[int, ...]:
    shape: tuple[int, ...] = plan.rows().inputs(0, [0], [member.preprocessing])[0].shape
    return shape


def _note(writer: Writer, plan: SplitPlan, todo: Sequence[InputKey], members: Sequence[Member]) -> None:
    """Note which members will be asked, before the first block.

    A resumed pass asks the same members, even if new ones have come.
    """
    now = Pushed(
        members=tuple((member.name, member.sha256) for member in members),
        shape=_shape(plan, members[0]),
        dtype="uint8" if plan.source.kind == "pixels" else "float32",
    )
    if fresh := fresh_notes(writer.manifest.pushed, todo, now, lambda noted: noted.shape == now.shape):
        writer.note_pushed(fresh)


class _Moving:
    """Makes records of moved inputs from batches of rows; see `Maker`."""

    def __init__(self, writer: Writer, plan: SplitPlan, todo: Sequence[InputKey], panel: Panel) -> None:
        self.manifest, self.plan, self.device = writer.manifest, plan, panel.asking.device
        named = panel.by_name
        self.asked = {key: [named[name] for name, _ in writer.manifest.pushed[key].members] for key in todo}

    def wants(self, keys: Sequence[InputKey]) -> list[Inputs]:
        return list(dict.fromkeys(self._first(key) for key in keys))

    def make(self, keys: Sequence[InputKey], rows: range, seen: Seen) -> dict[InputKey, NDArray[np.void]]:
        kind, views = self.plan.source.kind, []
        for key in keys:
            to = self._first(key)
            x = _unit(seen[key.view, to].numpy(), to.preprocessing, kind)
            views.append((x, list(self._drawn(key.view, rows)), self.asked[key]))
        there = all_moved(views, kind, self.device, keys[0].split, rows)
        return {key: self.manifest.format_of(key).encode(one) for key, one in zip(keys, there, strict=True)}

    def _first(self, key: InputKey) -> Inputs:
        """The inputs of the first member that is asked, whatever members are new."""
        return Inputs(self.asked[key][0].member.preprocessing)

    def _drawn(self, view: int, rows: Sequence[int]) -> Iterator[Push]:
        for row in rows:
            push = self.plan.rows().push(row, view)
            if push is None:
                raise EdistillError(
                    f"views.transform {self.plan.transform!r} says that it pushes, and its plan of row {row} has no "
                    "push. Give every plan one, or let pushes be False."
                )
            yield push


def _unit(x: Array, to: AnyPreprocessing | None, kind: str) -> Array:
    """Undo the normalization of pixels. A view gives a network's input, whose borders may have the mean's color."""
    if kind != "pixels" or not isinstance(to, Preprocessing):
        return x
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (to.mean, to.std))
    unit: Array = (x * std + mean).clip(0, 1)
    return unit


def inputs_of_first_view(folder: Path, manifest: Manifest, split: str) -> StoredInputs | None:
    """The stored inputs of view 0 for a comparison; None if there are none. A lost file is made again later."""
    if InputKey(split, 0) not in manifest.records:
        return None
    try:
        return stored_inputs(folder, manifest, split, [0])
    except EdistillError:
        return None
