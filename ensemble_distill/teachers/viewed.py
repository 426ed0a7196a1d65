"""Views and ready-made outputs: a member that answers row numbers alone must have outputs of exactly these views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ensemble_distill.errors import EdistillError


@dataclass(frozen=True)
class Viewed:
    """The views of a split that a member has outputs of.

    Attributes:
        member: its name.
        file: the file of its outputs.
        views: how many views; None for rows as they are.
        made: what the file states about them, by "transform" and "seed".
    """

    member: str
    file: str = ""
    views: int | None = None
    made: Mapping[str, str] = field(default_factory=dict)


def refuse_other_views(viewed: Viewed, split: str, transform: str, seed: int, count: int) -> None:
    """Raise EdistillError unless outputs are of the rows as a split shows them.

    Refused are outputs without views for a split with views and vice versa, another number of views, and views that
    were made differently.

    Args:
        viewed: the views that there are outputs of.
        split: the split's name, for the message.
        transform, seed, count: of the split's views; the transform is "none" for rows as they are.
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
    """What to tell the user about views whose file does not say how they were made; None for nothing."""
    lacking = [key for key in ("transform", "seed") if key not in viewed.made]
    if viewed.views is None or not lacking:
        return None
    return (
        f"{viewed.file} does not say the {' and the '.join(lacking)} of its views: they are taken to be those of "
        f"{' and '.join(f'views.{key}' for key in lacking)}."
    )
