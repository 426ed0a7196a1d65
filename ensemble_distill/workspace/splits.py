"""What splits have in common: classes by name, and rows that one network can take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ensemble_distill.data.renamed import by_name
from ensemble_distill.data.several import arrays_of, held, of_pairs
from ensemble_distill.data.source import Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import AnyPreprocessing, Member, Preprocessing, RowArray, Several, Tokenization
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.settings import PreprocessingSettings
from ensemble_distill.teachers.encodings import from_tokenizer
from ensemble_distill.teachers.several import as_taken, each_of, of_kind


def with_classes(source: Source, classes: tuple[str, ...] | None, name: str) -> Source:
    """A split whose labels index these classes, matched by name; OOD rows keep their own classes."""
    return source if name.startswith("ood/") else by_name(source, classes, f"data.{name}")


def refuse_unlike(sources: Mapping[str, Source]) -> None:
    """Raise EdistillError for splits whose rows no single network can take."""
    (first, like), *others = sources.items()
    wanted = _held(like)
    for name, source in others:
        if (held := _held(source)) != wanted:
            raise EdistillError(
                f"data.{name.replace('/', '.')} holds {held}, and data.{first.replace('/', '.')} {wanted}. Give rows "
                "like those."
            )


def _held(source: Source) -> str:
    """What a network would take of the split's rows, in words; images may differ in size, and texts in length."""
    if source.kind in ("pixels", "text", "several"):
        return held(source)
    return f"{source.kind} of {source.item(0).x.shape}"


def tell_remarks(sources: Mapping[str, Source], progress: Progress) -> None:
    """Warn about what reading each split skipped; OOD rows without labels are left out, since they need none."""
    for name, source in sources.items():
        if not name.startswith("ood/") or source.labels is not None:
            for remark in source.remarks:
                progress.warn(f"data.{name.replace('/', '.')}: {remark}")


def class_names(sources: Mapping[str, Source], known: tuple[str, ...] | None = None) -> tuple[str, ...] | None:
    """The ensemble's class names; None if no split has any.

    They come from the first of the splits with the most names, since others may lack some, or are the `known` ones if
    these include them.
    """
    named = [s.classes for name, s in sources.items() if s.classes is not None and not name.startswith("ood/")]
    found = max(named, key=len, default=None)
    return known if found is not None and known is not None and set(found) <= set(known) else found


def student_preprocessing(
    asked: PreprocessingSettings | None, members: Sequence[Member], source: Source
) -> AnyPreprocessing | None:
    """The student's preprocessing: the first member's, overridden by the settings. Ready-made outputs have none.

    If rows are several arrays, a student takes all of them, by the data's names: images and texts each as the first
    member that takes them.

    Raises:
        EdistillError: together they are incomplete, or mix options of texts and of images.
    """
    said = [member.preprocessing for member in members if member.preprocessing is not None]
    arrays, pairs = arrays_of(source), of_pairs(source)
    if arrays is None:
        return _of_one(asked, next(iter(said), None), pairs)
    found = [one for member in said for one in each_of(member)]

    def how(array: RowArray) -> Preprocessing | Tokenization | None:
        if array.kind not in ("pixels", "text"):
            return None
        kind = Preprocessing if array.kind == "pixels" else Tokenization
        first: AnyPreprocessing | None = next((one for one in found if isinstance(one, kind)), None)
        to = _of_one(of_kind(asked, array.kind), first, pairs)
        if not isinstance(to, kind) or isinstance(to, Several):
            raise EdistillError(
                f"A row has {array.name} ({array.kind}), and neither a member nor student.preprocessing says how it "
                "becomes a network's input. Set student.preprocessing."
            )
        return to

    return as_taken("The student", arrays, {array.name: array.name for array in arrays}, how)


def _of_one(
    asked: PreprocessingSettings | None, first: AnyPreprocessing | None, pairs: bool
) -> AnyPreprocessing | None:
    """The preprocessing of one array."""
    assert not isinstance(first, Several)
    if asked is None:
        return first
    if asked.tokenizer is not None:
        return from_tokenizer("The student", asked, pairs)
    given: dict[str, Any] = {name: value for name, value in asked if value is not None}
    if isinstance(first, Tokenization):
        if odd := next((name for name in given if name != "length"), None):
            raise EdistillError(
                f"student.preprocessing has {odd} = {given[odd]!r}, and the members are given texts. Leave it out."
            )
        return replace(first, **given)
    if asked.length is not None:
        raise EdistillError(
            f"student.preprocessing has length = {asked.length}, and the members are given no texts. Leave it out."
        )
    if "channels" not in given and max(len(given.get(name, ())) for name in ("mean", "std")) > 1:
        given["channels"] = None  # a mean or std per color: the student sees colors even if the first member does not
    if first is not None:
        return replace(first, **given)
    lacking = [name for name in ("size", "mean", "std") if name not in given]
    if lacking:
        raise EdistillError(
            f"student.preprocessing lacks {', '.join(lacking)}, and the members have none to fill it. "
            "Give size, mean and std."
        )
    return Preprocessing(**given)
