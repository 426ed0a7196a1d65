"""Where the members in a folder are, and what each of them is; none of their code is executed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from ensemble_distill.cache.manifest import is_cache
from ensemble_distill.data.folders import is_saved, is_sharded
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.runs.folder import ARGS
from ensemble_distill.settings import TeacherSettings
from ensemble_distill.setup.splits import DATA, is_data
from ensemble_distill.teachers import entries, kind_of, kinds
from ensemble_distill.teachers.names import member_name
from ensemble_distill.teachers.teacher import Context
from ensemble_distill.teachers.weights import read_weights

BARE = "checkpoint"  # the kind of bare weights
DEEPEST = 3  # levels below the given folder
MOST = 500  # folders to search

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Found:
    """An entry of a folder of members.

    Attributes:
        kind: the key of its kind; None for an entry that looks like a member but is not.
        model: the model that its own files name; empty if they name none.
        shapes: of its tensors by name, for bare weights.
        member: its record, if its own files provide one.
        problem: why it cannot be a member as it is.
    """

    path: Path
    name: str
    kind: str | None = None
    model: str = ""
    shapes: Shapes = field(default_factory=dict)
    member: Member | None = None
    problem: str | None = None

    @property
    def parameters(self) -> int | None:
        return sum(map(prod, self.shapes.values())) if self.shapes else None

    @property
    def width(self) -> int | None:
        """The number of outputs of its last layer, taken to be the last matrix; None if the shapes have none."""
        matrices = [shape for name, shape in self.shapes.items() if name.endswith("weight") and len(shape) == 2]
        return matrices[-1][0] if matrices else None


def folder_of_members(folder: Path) -> tuple[Path, list[Path]]:
    """The folder with the most members, the given one or one below, and the other folders that contain some.

    Raises:
        EdistillError: there are none.
    """
    if not folder.exists():
        raise EdistillError(f"There is no {folder}. Give the folder of your ensemble's checkpoints.")
    if not folder.is_dir():
        raise EdistillError(f"{folder} is a file. Give the folder of your ensemble's checkpoints: {folder.parent}")
    counts = {here: count for here in _folders(folder) if (count := _count(here))}
    if not counts:
        held = sorted(entry.name for entry in entries(folder))
        inside = f"it holds {', '.join(held[:6])}{', …' if len(held) > 6 else ''}" if held else "it is empty"
        raise EdistillError(
            f"{folder} has no member in it, nor have the folders below: {inside}. Give the folder of your ensemble's "
            f"checkpoints. What can be one: {', '.join(sorted(kinds()))}; edistill quickstart makes an example."
        )
    best = max(counts, key=lambda here: counts[here])  # of equal ones the first, which is the shallowest
    return best, [here for here in counts if here != best]


def _folders(top: Path) -> Iterator[Path]:
    """The folder and those below that are neither members nor made by edistill, the shallowest first."""
    waiting, looked = [(top, 0)], 0
    while waiting and looked < MOST:
        here, depth = waiting.pop(0)
        looked += 1
        yield here
        if depth < DEEPEST:
            with suppress(EdistillError):  # a folder without permission to list it
                waiting += [(one, depth + 1) for one in entries(here) if one.is_dir() and not _closed(one)]


def _closed(folder: Path) -> bool:
    """Whether a folder is one member, a cache, a run or a data set, which contains no members to look for."""
    return is_saved(folder) or is_sharded(folder) or is_cache(folder) or (folder / ARGS).is_file() or is_member(folder)


def is_member(entry: Path) -> bool:
    """Whether a kind of member claims an entry that is not data.

    Arrays of a split could otherwise pass for ready-made outputs.
    """
    if is_data(entry) or entry.name.lower() in DATA:
        return False
    return any(kind.claims(entry) for kind in kinds().values())


def _count(folder: Path) -> int:
    try:
        return sum(map(is_member, entries(folder)))
    except EdistillError:
        return 0


def look(folder: Path, trust: bool) -> list[Found]:
    """The members in a folder, and entries that look like members; others are skipped."""
    return [found for entry in entries(folder) if (found := _looked(entry, trust)) is not None]


def _looked(entry: Path, trust: bool) -> Found | None:
    if is_data(entry) or entry.name.lower() in DATA:
        return None
    name = member_name(entry)
    try:
        kind = kind_of(entry, missed=True)
    except EdistillError as error:
        return Found(entry, name, problem=str(error))
    if kind is None:
        return None
    key = next(key for key, one in kinds().items() if one is kind)
    try:
        if key == BARE:
            state = read_weights(entry, trust).state
            return Found(entry, name, key, shapes={name: tuple(tensor.shape) for name, tensor in state.items()})
        loaded = kind.load(entry, Context(TeacherSettings.model_validate({}), trust=trust))
        return Found(entry, name, key, loaded.member.model, member=loaded.member)
    except EdistillError as error:
        return Found(entry, name, key, problem=str(error))


def alike(found: Sequence[Found]) -> list[list[Found]]:
    """Bare weights in groups of one architecture, with equal names and shapes; the largest group first."""
    groups: dict[Any, list[Found]] = {}
    for one in found:
        if one.kind == BARE and one.problem is None:
            groups.setdefault(tuple(one.shapes.items()), []).append(one)
    return sorted(groups.values(), key=len, reverse=True)


def told_kinds(found: Sequence[Found]) -> str:
    """The kinds of members, and how many there are of each: "kind checkpoint", "kinds timm_run (4), checkpoint (1)"."""
    counted = Counter(one.kind for one in found if one.kind is not None and one.problem is None)
    if len(counted) < 2:
        return "".join(f"kind {kind}" for kind in counted)
    return "kinds " + ", ".join(f"{kind} ({count})" for kind, count in counted.items())


def told_members(found: Sequence[Found]) -> tuple[dict[str, Any], ...]:
    """The facts of each member, for the table of `init`."""
    keys = ("name", "kind", "model", "parameters", "problem")
    return tuple({key: getattr(one, key) for key in keys} for one in found)
