"""How rows of several arrays become the input of a member that takes each by its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ensemble_distill.errors import EdistillError, first_few, nearest
from ensemble_distill.facts import FIELDS, AnyPreprocessing, Part, Preprocessing, RowArray, Several, Tokenization
from ensemble_distill.settings import PreprocessingSettings
from ensemble_distill.settings.teachers import of_members
from ensemble_distill.teachers.encodings import from_tokenizer
from ensemble_distill.teachers.preprocessing import OF_TEXTS, from_settings, settled
from ensemble_distill.teachers.teacher import Context

How = Callable[[RowArray], Preprocessing | Tokenization | None]  # the preprocessing of pixels or texts


def several_of(name: str, context: Context, taken: Sequence[str] | None = None) -> Several | None:
    """The preprocessing of rows of several arrays; None if a row is one array.

    Args:
        name: the member's.
        taken: the names of its arguments, in order; None if they are unknown, and it takes all arrays.

    Raises:
        EdistillError: `teachers.inputs` names an array that the data does not have; nothing says how pictures or texts
            become inputs; an array's name cannot be an argument's; or the arguments do not match the arrays.
    """
    if context.arrays is None:
        return None
    said, called = context.settings.preprocessing, _called(name, context)
    fields = None if taken is None else tuple(field for field in FIELDS if field in taken)

    def how(array: RowArray) -> Preprocessing | Tokenization | None:
        if array.kind == "pixels":
            return settled(name, from_settings(said))
        if array.kind != "text":
            return None
        to = from_tokenizer(name, of_kind(said, "text"), context.pairs, fields)
        if to is None:
            raise EdistillError(
                f"{name}: a row has a text, and nothing says which tokenizer cuts it. Give the one that the member was "
                'trained with: teachers.preprocessing = { tokenizer = "tokenizer.json", length = 128 }.'
            )
        return to

    arrays = [array for array in context.arrays if array.name in called]
    if taken is not None and not context.settings.inputs:
        arrays = [one for one in arrays if (fields if one.kind == "text" else one.name in taken)]
    found = as_taken(name, arrays or context.arrays, called, how)
    if taken is None or set(taken) == set(found.fields):
        return found
    pairs = zip((array.name for array in context.arrays), taken, strict=False)
    example = ", ".join(f"{array} = {json.dumps(argument)}" for array, argument in pairs)
    raise EdistillError(
        f"{name} takes {', '.join(taken)}, and a row gives {', '.join(found.fields)}. Say which of the data's arrays "
        f"it takes, and what it calls them, for instance {of_members(name)}.inputs = {{ {example} }}."
    )


def _called(name: str, context: Context) -> Mapping[str, str]:
    """The names that the member has for the arrays it takes, by the data's names."""
    assert context.arrays is not None
    known, given = [array.name for array in context.arrays], context.settings.inputs
    for one in given:
        if one not in known:
            close = nearest(one, known)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            raise EdistillError(
                f"{name}: teachers.inputs has {one!r}{meant}, and a row of the data is {first_few(known, 8)}. Name "
                "those that it takes."
            )
    return given or {one: one for one in known}


def as_taken(name: str, arrays: Sequence[RowArray], called: Mapping[str, str], how: How) -> Several:
    """How arrays become the input of a network.

    Args:
        name: the member's, for messages.
        arrays: the data's arrays that it takes.
        called: its name for each array, by the data's.
        how: gives the preprocessing of an array, or None.

    Raises:
        EdistillError: a name cannot be that of an argument.
    """
    parts = []
    for array in arrays:
        to = how(array)
        shape = rendered_shape(array, to) if isinstance(to, Preprocessing) else array.shape if to is None else to.shape
        parts.append(Part(array.name, called[array.name], array.kind, shape, to))
    try:
        return Several(tuple(parts))
    except ValueError as error:
        raise EdistillError(f"{name}: {error}. Say what the member calls it: teachers.inputs.") from None


def of_kind(said: PreprocessingSettings | None, kind: str) -> PreprocessingSettings | None:
    """The settings for texts, or those for pictures; None if there are none."""
    if said is None:
        return None
    others = [key for key in type(said).model_fields if (key in OF_TEXTS) != (kind == "text")]
    left = said.model_copy(update=dict.fromkeys(others))
    return left if any(value is not None for _, value in left) else None


def rendered_shape(array: RowArray, to: Preprocessing) -> tuple[int, ...]:
    """The shape (C, H, W) in which `rendering.render` returns a picture."""
    found, wanted = array.shape[-1], max(len(to.mean), len(to.std))
    return (1 if to.channels == 1 else wanted if found == 1 else found, *to.size)


def each_of(preprocessing: AnyPreprocessing | None) -> list[Any]:
    """The preprocessing as a list, with one entry for each of several arrays."""
    if isinstance(preprocessing, Several):
        return [part.preprocessing for part in preprocessing.parts]
    return [preprocessing]
