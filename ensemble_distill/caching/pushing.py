"""The inputs of views that push: made once, stored, and from then on what members are shown and the student trains on.

They depend on the members that there were. One that comes later labels what is stored, and new views ask all there are
by then; the manifest notes for each view who was asked. Blocks, syncs and renames are the writer's, as for outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.cache.manifest import Manifest, Pushed
from ensemble_distill.cache.reader import StoredInputs, stored_inputs
from ensemble_distill.cache.record_key import InputKey, inputs_place
from ensemble_distill.cache.writer import Writer, blocks
from ensemble_distill.caching.gradient import moved
from ensemble_distill.caching.panel import Panel
from ensemble_distill.caching.seen import Rendered, stack
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.push import Push
from ensemble_distill.data.rendition import pushes
from ensemble_distill.data.source import Array
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.runtime.loading import batches


def push_inputs(
    writer: Writer,
    name: str,
    plan: SplitPlan,
    views: Sequence[int],
    panel: Panel,
) -> StoredInputs | None:
    """Store the inputs of the views that are not stored yet; None for views that do not push.

    Raises:
        EdistillError: see `gradient.moved`; or the split's outputs are cached, and its inputs are of another making.
    """
    if not pushes(plan.view):
        return None
    todo = writer.pending([InputKey(name, view) for view in views])
    if todo:
        _plan(writer, plan, todo, panel.members)
        _push(writer, name, plan, todo, panel)
    else:
        writer.drop_parts(inputs_place(name))
    return stored_inputs(writer.folder, writer.manifest, name, views)


def refuse_other_sizes(name: str, plan: SplitPlan, members: Sequence[Member], manifest: Manifest | None) -> None:
    """Raise EdistillError when members take inputs of other sizes: a stored one has a single size.

    They may differ in mean and standard deviation, and in how they resize and crop: it is rendered as for the first one
    that is asked.
    """
    if not pushes(plan.view):
        return
    stored = manifest.pushed.get(InputKey(name, 0)) if manifest is not None and manifest.holds(name) else None
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
        raise EdistillError(
            f"The cache stores inputs of {name} as {stored.shape}, and {members[0].name} takes {first}. Remove the "
            "members of another size, or run edistill cache-logits --overwrite."
        )


def refuse_other_making(folder: Path, name: str, plan: SplitPlan, manifest: Manifest) -> None:
    """Raise EdistillError when a view pushes and the cached one of its name did not, or the other way round."""
    stored = bool(manifest.pushed_views(name))
    if manifest.holds(name) and stored != pushes(plan.view):
        was, now = (("" if one else "not ") + "along gradients" for one in (stored, pushes(plan.view)))
        raise EdistillError(
            f"{folder} has inputs of {name} moved {was}, and views.transform {plan.transform!r} moves them {now}. Its "
            "code has changed: put it back, or run edistill cache-logits --overwrite."
        )


def _shape(plan: SplitPlan, member: Member) -> tuple[int, ...]:
    shape: tuple[int, ...] = Rendered(plan, [0], [member.preprocessing])[0][0].shape
    return shape


def _plan(writer: Writer, plan: SplitPlan, todo: Sequence[InputKey], members: Sequence[Member]) -> None:
    """Note who will be asked, before the first block: a pass that goes on asks the same, whoever has come since."""
    there = {(member.name, member.sha256) for member in members}
    now = Pushed(
        members=tuple((member.name, member.sha256) for member in members),
        shape=_shape(plan, members[0]),
        dtype="uint8" if plan.source.kind == "pixels" else "float32",
    )
    noted = {key: writer.manifest.pushed.get(key) for key in todo}
    fresh = {
        key: now for key, one in noted.items() if one is None or one.shape != now.shape or not set(one.members) <= there
    }
    if fresh:
        writer.note_pushed(fresh)


def _push(writer: Writer, name: str, plan: SplitPlan, todo: Sequence[InputKey], panel: Panel) -> None:
    named = {member.name: member for member in panel.members}
    kind, rows = plan.source.kind, len(plan.source)
    asked = {key: [named[n] for n, _ in writer.manifest.pushed[key].members] for key in todo}
    preprocessings = list(dict.fromkeys(asked[key][0].preprocessing for key in todo))
    for module in panel.modules.values():
        module.requires_grad_(False)  # of the inputs alone
    cut = blocks(rows, panel.batch_size)
    missing = {block: writer.missing(block, todo) for block in cut}
    done = sum(b.stop - b.start for b, lacking in missing.items() if not lacking)
    panel.progress.start(f"moving inputs of {name}", total=rows, unit="rows", done=done)
    for lacking, group in itertools.groupby(cut, key=lambda block: missing[block]):
        if not lacking:
            continue
        wanted = list(group)
        batched = [batch for block in wanted for batch in block.batches(panel.batch_size)]
        rendered = Rendered(plan, [key.view for key in lacking], preprocessings)
        loaded = batches(rendered, [list(b) for b in batched], stack, panel.workers, panel.device)
        stream = zip(batched, loaded, strict=True)
        for block in wanted:
            made: dict[InputKey, list[NDArray[np.void]]] = {key: [] for key in lacking}
            for batch, inputs in itertools.islice(stream, len(block.batches(panel.batch_size))):
                for position, key in enumerate(lacking):
                    to = asked[key][0].preprocessing  # of the first one asked, whoever has come since
                    at = position * len(preprocessings) + preprocessings.index(to)
                    x, drawn = _unit(inputs[at].numpy(), to, kind), list(_drawn(plan, key.view, batch))
                    there = moved(x, drawn, kind, asked[key], panel.modules, panel.device, name, batch)
                    made[key].append(writer.manifest.format_of(key).encode(there))
                panel.progress.advance(len(batch))
            writer.put(block, {key: np.concatenate(parts) for key, parts in made.items()})
    writer.join(todo, rows, panel.batch_size)
    panel.progress.finish()


def _drawn(plan: SplitPlan, view: int, rows: Sequence[int]) -> Iterator[Push]:
    for row in rows:
        push = getattr(plan.view.plan(plan.seed, view, row, len(plan.source)), "push", None)
        if push is None:
            raise EdistillError(
                f"views.transform {plan.transform!r} says that it pushes, and its plan of row {row} has no push. Give "
                "every plan one, or let pushes be False."
            )
        yield push


def _unit(x: Array, to: Preprocessing | None, kind: str) -> Array:
    """Pixels back from normalization: a view gives a network's input, whose borders may be of the mean's color."""
    if kind != "pixels" or to is None:
        return x
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (to.mean, to.std))
    unit: Array = (x * std + mean).clip(0, 1)
    return unit


def inputs_of_first_view(folder: Path, manifest: Manifest, split: str) -> StoredInputs | None:
    """The stored inputs of view 0, where they are there to be compared with; a lost file is made again."""
    if InputKey(split, 0) not in manifest.records:
        return None
    try:
        return stored_inputs(folder, manifest, split, [0])
    except EdistillError:
        return None
