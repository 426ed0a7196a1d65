"""When each key of members and views has an effect.

`CACHING` lists the keys that may have none, each with the rule that decides. A test lists all others, so a new key has
to go on one side or the other. A rule is asked only about a key whose value is not the default.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ensemble_distill.data.decoded import decodes
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.several import arrays_of
from ensemble_distill.data.source import Source
from ensemble_distill.data.views import able_views, kinds_of
from ensemble_distill.facts import Several
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.settings import MemberSettings, Settings
from ensemble_distill.settings.idle import Idle, is_given, no_pixels, tell
from ensemble_distill.settings.schema import kebab
from ensemble_distill.settings.teachers import of_members
from ensemble_distill.teachers.encodings import as_used
from ensemble_distill.teachers.ready_made import MODEL as READY_MADE
from ensemble_distill.teachers.run import MODEL as RUN
from ensemble_distill.teachers.several import each_of
from ensemble_distill.teachers.teacher import Teacher

SUGGESTED = ("affine", "crop-flip", "mixup", "noise", "ods")
OTHER_ROWS = (
    "No view acts on such rows: set data.transfer to rows that members were not trained on, with or without labels."
)
OTHER_OUTPUTS = (
    "Members that are ready-made outputs can be asked nothing else: write what they say of views, (V, N, ·), or of "
    "rows that they were not trained on, as data.transfer."
)


@dataclass(frozen=True)
class Caching:
    """What is known just before members are asked."""

    settings: Settings
    sources: Mapping[str, Source]
    teachers: Sequence[Teacher]

    @property
    def own(self) -> bool:
        """Whether all members are runs of edistill, which record everything about themselves.

        `[teachers]` then describes the ensemble that these runs, in a chain, came from.
        """
        return all(teacher.member.model == RUN for teacher in self.teachers)


def _own(facts: Caching) -> dict[str, Any]:
    """Options of `Idle` if all members are runs of edistill.

    The settings are then those of the ensemble that these runs learned from.
    """
    return {"quiet": True, "remedy": "Nothing is to be done."} if facts.own else {}


def _for_bare(facts: Caching) -> Idle | None:
    if any(teacher.bare for teacher in facts.teachers):
        return None
    return Idle("it is for bare checkpoints, and every member is a folder that says what builds it", **_own(facts))


def _for_others(facts: Caching) -> Idle | None:
    return Idle("every member is a run of edistill, which knows what it returns", **_own(facts)) if facts.own else None


def _heads(facts: Caching) -> Idle | None:
    if any(teacher.member.model == RUN for teacher in facts.teachers):
        return None
    return Idle("no member is a run of edistill, and others have no heads")


def _rendering(facts: Caching) -> Idle | None:
    """Preprocessing acts on pixels, unless a member's own files say something else."""
    given = facts.settings.teachers.preprocessing
    if given is None:
        return None
    if told := no_pixels(source.kind for source in facts.sources.values()):
        return told
    used = [one for teacher in facts.teachers for one in each_of(teacher.member.preprocessing)]
    unused = [
        f"{name} = {list(value) if isinstance(value, tuple) else value}"
        for name, value in given
        if value is not None and all(getattr(one, name, None) != as_used(name, value) for one in used)
    ]
    if not unused:
        return None
    return Idle(
        f"the files of every member say otherwise than {', '.join(unused)}", "Leave it out, or fix what they say."
    )


def _views(facts: Caching) -> Idle | None:
    if not {"train", "transfer"} & facts.sources.keys():
        return Idle("views are of data.train and data.transfer, and neither is set")
    if facts.settings.views.transform == "none":
        return Idle('views.transform is "none", so that all views are one picture', "Set views.transform.")
    return None


def _transform(facts: Caching) -> Idle | None:
    return None if {"train", "transfer"} & facts.sources.keys() else _views(facts)


def _samples(facts: Caching) -> Idle | None:
    return Idle('cache.records is "dense", so that none are drawn') if facts.settings.cache.records == "dense" else None


def _decoded(facts: Caching) -> Idle | None:
    return nothing_to_decode(facts.sources.values())


def nothing_to_decode(sources: Collection[Source]) -> Idle | None:
    """Why no images are to be decoded once; None if some are."""
    if any(map(decodes, sources)):
        return None
    kinds = sorted({source.kind for source in sources})
    if "several" in kinds:
        return Idle("rows are several arrays, whose pictures are decoded as they are read")
    if kinds == ["pixels"]:
        return Idle("the pictures of an .npz are decoded already")
    return Idle(f"rows are {' and '.join(kinds)}, and nothing is decoded")


def _columns(facts: Caching) -> Idle | None:
    tables = any(getattr(source, "columns", None) is not None for source in facts.sources.values())
    return None if tables else Idle("no split is a table")


def _inputs(facts: Caching) -> Idle | None:
    if any(isinstance(teacher.member.preprocessing, Several) for teacher in facts.teachers):
        return None
    several = {source.kind for source in facts.sources.values()} == {"several"}
    why = "no member takes arrays by their names" if several else "a row of the data is one array"
    return Idle(f"it names those that members take of several arrays, and {why}")


def _folds(facts: Caching) -> Idle | None:
    return None if "train" in facts.settings.splits() else Idle("data.train is not set, whose rows have the folds")


CACHING: Mapping[str, Callable[[Caching], Idle | None]] = {
    "teachers.model": _for_bare,
    "teachers.model-kwargs": _for_bare,
    "teachers.output": _for_others,
    "teachers.standardized": _for_others,
    "teachers.variance": _for_others,
    "teachers.preprocessing": _rendering,
    "teachers.inputs": _inputs,
    "data.columns": _columns,
    "teachers.as": _heads,
    "teachers.folds": _folds,
    "cache.samples": _samples,
    "cache.decoded": _decoded,
    "views.count": _views,
    "views.transform": _transform,
    "views.seed": _views,
}


def tell_idle_caching(facts: Caching, progress: Progress) -> None:
    """Warn about each setting of members and views that has no effect.

    Raises:
        EdistillError: such a setting would change results if it had its effect.
    """
    found = {key: _own_tables(key, facts) or rule(facts) for key, rule in CACHING.items()}
    tell(partial(is_given, facts.settings), found, progress)
    for pattern, table in facts.settings.teachers.members.items():
        given = [kebab(name) for name, value in table if value is not None]
        of_table = _facts_of(facts, pattern, table)
        rules = {key: CACHING[f"teachers.{key}"] for key in given if f"teachers.{key}" in CACHING}
        told = {f"{of_members(pattern)}.{key}": rule(of_table) for key, rule in rules.items()}
        tell(lambda _: True, told, progress)


def _own_tables(key: str, facts: Caching) -> Idle | None:
    """The reason if every member's own table overrides a key of `[teachers]`."""
    section, _, name = key.partition(".")
    teachers = facts.settings.teachers
    if section != "teachers" or name == "preprocessing" or not teachers.members:  # `_rendering` checks preprocessing
        return None
    patterns = [teachers.pattern_of(teacher.member.name) for teacher in facts.teachers]
    field = name.replace("-", "_")
    if field not in MemberSettings.model_fields:
        return None
    if any(pattern is None or getattr(teachers.members[pattern], field) is None for pattern in patterns):
        return None
    return Idle("every member has its own in teachers.members")


def _facts_of(facts: Caching, pattern: str, table: MemberSettings) -> Caching:
    """The facts for the members of one table alone, with the preprocessing of the table itself."""
    teachers = facts.settings.teachers
    own = teachers.of_pattern(pattern).model_copy(update={"preprocessing": table.preprocessing})
    theirs = [teacher for teacher in facts.teachers if teachers.pattern_of(teacher.member.name) == pattern]
    return Caching(facts.settings.model_copy(update={"teachers": own}), facts.sources, theirs)


def warn_of_little_diversity(
    transform: str, splits: Mapping[str, SplitPlan], teachers: Sequence[Teacher], progress: Progress
) -> None:
    """Warn if there is little to learn besides the mean.

    That is so with a single member, or on plain rows that the members were trained on.
    """
    if len(teachers) == 1:
        progress.warn(f"{teachers[0].member.name} is the only member: there is no diversity to keep.")
    if transform == "none" and "train" in splits:
        source = splits["train"].source
        arrays = arrays_of(source)
        known = able_views(arrays) if arrays else [one for one in SUGGESTED if source.kind in kinds_of(one)]
        views = [name for name in known if name != "none"]
        remedy = f"Set views.transform to {', '.join(views[:-1])} or {views[-1]}." if len(views) > 1 else OTHER_ROWS
        if all(teacher.member.model == READY_MADE for teacher in teachers):
            remedy = OTHER_OUTPUTS
        progress.warn(
            'views.transform is "none": on the rows they were trained on members agree, and there is little diversity '
            f"to learn. {remedy}"
        )
