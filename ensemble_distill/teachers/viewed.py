"""Who answers row numbers alone, and rows that are shown in views: outputs of exactly those, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ensemble_distill.errors import EdistillError


@dataclass(frozen=True)
class Viewed:
    """What there is of a split.

    Attributes:
        member: its name.
        file: where its outputs stand.
        views: how many it has outputs of; None for rows as they are.
        made: what the file says of them: "transform", "seed".
    """

    member: str
    file: str = ""
    views: int | None = None
    made: Mapping[str, str] = field(default_factory=dict)


def refuse_other_views(viewed: Viewed, split: str, transform: str, seed: int, count: int) -> None:
    """Raise EdistillError where outputs are not of the rows as a split shows them: of none of its views, of another
    number of them, or of views that were made otherwise.

    Args:
        transform, seed, count: of the split's views; "none" for rows as they are.
    """
    if transform == "none":
        if viewed.views is not None:
            raise EdistillError(
                f"{viewed.file} has outputs of {viewed.views} views of {split}, (V, N, ·), and {split} is shown as it "
                "is. Set views.transform, views.seed and views.count to what they were made with, or give (N, ·)."
            )
    elif viewed.views is None:
        raise EdistillError(
            f"Member {viewed.member} answers row numbers alone, and {split} is shown in views of {transform!r}, which "
            'it does not see. Set views.transform = "none": the student then learns from rows as they are, best from '
            "such as no member was trained on (data.transfer). Or give its outputs of these views, (V, N, ·), or take "
            "it out of teachers.path."
        )
    else:
        wanted = {"transform": transform, "seed": str(seed), "count": str(count)}
        for key, there in {"count": str(viewed.views), **viewed.made}.items():
            if there != wanted[key]:
                raise EdistillError(
                    f"{viewed.file} has outputs of views of {split} of {key} {there}, and views.{key} is "
                    f"{wanted[key]}. Set views.{key} to that, or give outputs of those views."
                )


def unsaid(viewed: Viewed) -> str | None:
    """What a user should know of outputs of views; None for nothing."""
    lacking = [key for key in ("transform", "seed") if key not in viewed.made]
    if viewed.views is None or not lacking:
        return None
    return (
        f"{viewed.file} does not say the {' and the '.join(lacking)} of its views: they are taken to be those of "
        f"{' and '.join(f'views.{key}' for key in lacking)}."
    )
