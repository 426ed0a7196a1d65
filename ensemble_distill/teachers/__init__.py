"""The members of an ensemble, found in a folder or on the hub. Each kind of checkpoint is a module of this package."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.runtime.names import natural_key
from ensemble_distill.runtime.registry import Registry
from ensemble_distill.settings import TeacherSettings
from ensemble_distill.settings.teachers import of_members
from ensemble_distill.teachers.hub import snapshot
from ensemble_distill.teachers.names import is_weights_file, member_name, refuse_unfit
from ensemble_distill.teachers.outputs import holds_inputs
from ensemble_distill.teachers.teacher import Context, Teacher, TeacherKind

# models of other tools; skipping one of these files would silently shrink the ensemble
FOREIGN = (".h5", ".keras", ".msgpack", ".pickle", ".pkl")


_KINDS = Registry(__name__, "claims")


def kinds() -> dict[str, TeacherKind]:
    """All kinds by key, in alphabetical order: the modules of this package that define `claims` and `load`."""
    return {key.replace("-", "_"): cast(TeacherKind, module) for key, module in _KINDS.modules.items()}


def open_teachers(path: Path, context: Context) -> list[Teacher]:
    """The members at `path` in natural order of their names (member-2 before member-10), then those of the hub.

    Weights are hashed, and none are kept in memory. A path that is itself a checkpoint or run is the only local
    member. In any other folder, each entry that a kind claims is a member; hidden files and files that are not
    checkpoints (model.py, README, .npy) are skipped.

    Raises:
        EdistillError: there is no member; an entry looks like a checkpoint but no kind loads it; two members
            share a name or their weights; `teachers.weights` does not fit the members; a table of
            `teachers.members` applies to none of them; or a member cannot be read.
    """
    claimed = _claimed(path, context.settings.hub)
    names = [name for name, _, _ in claimed]
    if context.settings.as_ == "heads":
        teachers = [one for name, entry, kind in claimed for one in _heads(kind, entry, context.of(name))]
        names = [teacher.member.name for teacher in teachers]
        refuse_idle_patterns(context.settings, names)
        _check_weights(context.settings, names)
    else:
        refuse_idle_patterns(context.settings, names)
        _check_weights(context.settings, names)
        teachers = [_loaded(name, entry, kind, context) for name, entry, kind in claimed]
    _check_distinct(teachers)
    for teacher in teachers:
        _tell_unused(teacher, context)
    return teachers


def _claimed(path: Path, hub: Mapping[str, str]) -> list[tuple[str, Path, TeacherKind]]:
    """The name, path and kind of each member: those at `path`, then those of the hub.

    `path` may be missing if there are members of the hub.
    """
    if not path.exists() and not hub:
        raise EdistillError(f"teachers.path is {path}, which does not exist. Give {_accepted()}.")
    if path.exists() and (own := kind_of(path)) is not None:
        claimed = [(path, own)]
    else:
        claimed = [(entry, kind) for entry in entries(path) if (kind := kind_of(entry, missed=True)) is not None]
    if not claimed and not hub:
        raise EdistillError(f"{path} has no member in it: {_contents(path)}. Give {_accepted()}.")
    _check_names([entry for entry, _ in claimed])
    found = [(member_name(entry), entry, kind) for entry, kind in claimed]
    for name, given in hub.items():
        if name in (there := {own for own, _, _ in found}):
            raise EdistillError(f"teachers.hub.{name} is named as {path / name} is. Give it another name than {there}.")
        entry = snapshot(name, given)
        if (kind := kind_of(entry)) is None:
            raise EdistillError(f"teachers.hub.{name} is {given!r}, and {_contents(entry)}. Give {_accepted()}.")
        found.append((name, entry, kind))
    return found


def _loaded(name: str, entry: Path, kind: TeacherKind, context: Context) -> Teacher:
    """Load a member under `name`: a member of the hub lies in a folder named after its commit."""
    teacher = kind.load(entry, context.of(name))
    return teacher if teacher.member.name == name else teacher.named(name)


# --- finding ------------------------------------------------------------------------------------------------


def entries(folder: Path) -> list[Path]:
    """The entries of a folder in the members' order, without hidden files and Python caches."""
    if not folder.is_dir():
        return []
    shown = [entry for entry in _listed(folder) if not entry.name.startswith((".", "__"))]
    return sorted(shown, key=lambda entry: (natural_key(member_name(entry)), entry.name))


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise EdistillError(f"{folder} cannot be listed: {error.strerror}. Make it readable, or move it out.") from None


def kind_of(path: Path, missed: bool = False) -> TeacherKind | None:
    """The kind that claims a path, or None.

    Raises:
        EdistillError: two kinds claim it; or no kind does, it looks like a checkpoint and `missed` is set.
    """
    claiming = {name: kind for name, kind in kinds().items() if kind.claims(path)}
    if len(claiming) > 1:
        raise EdistillError(
            f"{path} can be read as {' and as '.join(claiming)}. Move what makes it one of them out: "
            f"config.json of a Hugging Face folder or edistill run, args.yaml of a timm run."
        )
    if missed and not claiming and _looks_like_a_member(path):
        raise EdistillError(
            f"{path} looks like a member, but nothing here loads it{_within(path)}. Move it out of the "
            f"folder, or make it {_accepted()}."
        )
    return next(iter(claiming.values()), None)


def _looks_like_a_member(path: Path) -> bool:
    if path.is_dir():  # an .npz inside proves nothing: runs store their evaluations as .npz
        return any(
            entry.name in ("args.yaml", "config.json") or _is_model_file(entry)
            for entry in _listed(path)
            if not entry.is_dir()
        )
    if path.suffix.lower() == ".npz":
        return not holds_inputs(path)
    return _is_model_file(path)


def _is_model_file(path: Path) -> bool:
    return is_weights_file(path) or path.suffix.lower() in FOREIGN


def _within(path: Path) -> str:
    return f" ({_contents(path)})" if path.is_dir() else ""


def _contents(folder: Path) -> str:
    found = [entry.name for entry in entries(folder)]
    return f"it holds {first_few(found, 5)}" if found else "it is empty" if folder.is_dir() else "it is another file"


def _accepted() -> str:
    """What a member may be: the first docstring line of each kind."""
    first_lines = [(kind.__doc__ or name).strip().splitlines()[0].rstrip(".") for name, kind in kinds().items()]
    return "one of these, or a folder of them: " + "; ".join(line[0].lower() + line[1:] for line in first_lines)


def _heads(kind: TeacherKind, entry: Path, context: Context) -> list[Teacher]:
    """The members of an entry when each head counts as one; a kind without `heads_of` gives a single member."""
    heads_of = getattr(kind, "heads_of", None)
    return [kind.load(entry, context)] if heads_of is None else heads_of(entry, context)


# --- checking -----------------------------------------------------------------------------------------------


def _check_names(paths: list[Path]) -> None:
    taken: dict[str, Path] = {}
    for path in paths:
        refuse_unfit(path)
        other = taken.setdefault(member_name(path), path)
        if other is not path:
            raise EdistillError(
                f"{other.name} and {path.name} would both be member {member_name(path)}. Rename one; if they "
                f"are the same weights in two formats, remove one."
            )


def refuse_idle_patterns(settings: TeacherSettings, names: list[str]) -> None:
    """Raise EdistillError for a table of `teachers.members` that applies to no member."""
    found = {name: settings.pattern_of(name) for name in names}
    for pattern in settings.members:
        if pattern in found.values():
            continue
        fit = {name: first for name, first in found.items() if first is not None and fnmatchcase(name, pattern)}
        why = (
            f"{first_few(list(fit))} fit {', '.join(map(repr, dict.fromkeys(fit.values())))}, which stands before it, "
            "and the first that fits holds. Put it first"
            if fit
            else f"the members are {first_few(names)}. Fix the pattern"
        )
        raise EdistillError(f"{of_members(pattern)} holds for no member: {why}, or leave the table out.")


def _check_weights(settings: TeacherSettings, names: list[str]) -> None:
    weights = settings.shares(names)
    if weights is None:
        return
    if len(weights) != len(names):
        raise EdistillError(
            f"teachers.weights has {len(weights)} values for {len(names)} members. Give one per member, in the "
            f"natural order of their names ({first_few(sorted(names, key=natural_key))}), or leave it out for equal "
            "weights."
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) <= 0:
        raise EdistillError(
            f"teachers.weights {'is' if settings.weights else 'and the tables of teachers.members come to'} "
            f"{list(weights)}. Every weight is 0 or more and one at least is above 0; "
            f"only their ratios matter."
        )


def _check_distinct(teachers: list[Teacher]) -> None:
    seen: dict[str, str] = {}
    for teacher in teachers:
        member, origin = teacher.member, teacher.origin
        weights = (origin and origin.fingerprint) or member.sha256  # fingerprints ignore a common prefix
        other = seen.setdefault(weights, member.name)
        if other != member.name:
            raise EdistillError(
                f"{other} and {member.name} hold the same weights (sha256 {member.sha256[:12]}…), for "
                f"instance the last and the best epoch of one run. Remove one: a copy adds no diversity and "
                "counts its model twice."
            )


def _tell_unused(teacher: Teacher, context: Context) -> None:
    origin = teacher.origin
    if origin is not None and origin.unused:
        used = origin.key or "its tensors by name"
        context.progress.warn(
            f"{teacher.member.name}: {origin.file} holds several sets of weights. Used: {used}. Not used: "
            f"{first_few(list(origin.unused))}. If another was meant, save it by itself in a file of its own."
        )
