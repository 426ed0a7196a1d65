"""`[teachers]`: the members, how they are pooled, and what some of their files do not state."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from ensemble_distill.facts import LARGE
from ensemble_distill.runtime.names import places
from ensemble_distill.settings.messages import quoted
from ensemble_distill.settings.paths import ModelSpec, PathText
from ensemble_distill.settings.section import FAR, Level, Section, Side, one_or_list

Output = Literal["logits", "probabilities", "mean", "mean-variance", "mean-logvar"]
Weight = Annotated[float, Field(ge=0, le=FAR)]


class PreprocessingSettings(Section):
    """Parts of timm's preprocessing, or of how texts are cut; the rest comes from the model or the other members."""

    size: tuple[Side, Side] | None = Field(None, description="Height and width.")
    mean: tuple[Level, ...] | None = Field(None, description="Mean of each channel, for pixels in [0, 1].")
    std: tuple[Annotated[float, Field(gt=0, le=LARGE)], ...] | None = Field(
        None, description="Standard deviation of each channel, for pixels in [0, 1]."
    )
    interpolation: str | None = Field(None, description="Interpolation, by timm's name.")
    crop_pct: float | None = Field(None, gt=0, le=1, description="Share of the resized picture that the crop keeps.")
    crop_mode: str | None = Field(None, description="center, squash or border, as in timm.")
    channels: Literal[1] | None = Field(
        None, description="1 for networks that take gray pictures; color is converted to gray."
    )
    tokenizer: PathText | None = Field(None, description="For texts: the tokenizer.json to tokenize them with.")
    length: int | None = Field(None, ge=1, le=2**16, description="For texts: truncate to this many tokens.")


Center = Annotated[float, Field(ge=-FAR, le=FAR)]
Deviation = Annotated[float, Field(gt=0, le=FAR)]
Centers = Annotated[
    Annotated[Center, Tag("<one>")] | Annotated[tuple[Center, ...], Field(min_length=1), Tag("<list>")],
    Discriminator(one_or_list),
]
Deviations = Annotated[
    Annotated[Deviation, Tag("<one>")] | Annotated[tuple[Deviation, ...], Field(min_length=1), Tag("<list>")],
    Discriminator(one_or_list),
]


class UnitSettings(Section):
    """The unit of standardized outputs: target = mean + std × output; for several targets, a list each or one number
    for all."""

    mean: Centers = Field(description="The target's mean over the members' training rows; a list for several targets.")
    std: Deviations = Field(description="Its standard deviation over those rows; a list for several targets.")


class MemberSettings(Section):
    """`[teachers.members."PATTERN"]`: settings of some members; what is left out is inherited from `[teachers]`."""

    model: ModelSpec | None = Field(None, description="As teachers.model.")
    model_kwargs: dict[str, Any] | None = Field(None, description="As teachers.model-kwargs.")
    output: Output | None = Field(None, description="As teachers.output.")
    standardized: UnitSettings | None = Field(None, description="As teachers.standardized.")
    variance: Deviations | None = Field(None, description="As teachers.variance.")
    preprocessing: PreprocessingSettings | None = Field(
        None, description="As teachers.preprocessing, whose other keys still hold."
    )
    inputs: dict[str, str] | None = Field(None, description="As teachers.inputs.")
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="The data's class or label names, in the order of these members' outputs."
    )
    weight: Weight | None = Field(None, description="Weight of each of them in the pooled prediction; default 1.")


class TeacherSettings(Section):
    """`[teachers]`: the members, and how they are pooled."""

    path: PathText = Field("teachers", validate_default=True, description="Folder of checkpoints.")
    model: ModelSpec | None = Field(
        None, description="For bare checkpoints: a timm name, file.py:factory or package.module:factory."
    )
    model_kwargs: dict[str, Any] = Field({}, description="Keyword arguments of the model or factory.")
    output: Output = Field("logits", description="What the members return; for regression, one of the last three.")
    standardized: UnitSettings | None = Field(
        None,
        description="Regression with standardized targets: the target's mean and std, or lists for several targets.",
    )
    variance: Deviations | None = Field(
        None,
        description="Regression with members that return only a mean: their noise variance, in squared target units; a "
        "list for several targets.",
    )
    preprocessing: PreprocessingSettings | None = Field(
        None, description="Preprocessing, where the members' files do not state it."
    )
    inputs: dict[str, str] = Field(
        {},
        description="Where a row has several arrays: which ones members take, and their argument names; default all.",
    )
    as_: Literal["member", "heads"] = Field(
        "member", alias="as", description="Whether an edistill run counts as one member, or each of its heads as one."
    )
    average: Literal["probabilities", "logits"] = Field("probabilities", description="What the ensemble averages.")
    weights: tuple[Weight, ...] | None = Field(
        None, description="One weight per member, in the natural order of their names; default equal."
    )
    folds: PathText | None = Field(
        None,
        description="An .npy with the fold of each row of data.train; member k, in the natural order of names, was "
        "trained without fold k.",
    )
    hub: dict[str, str] = Field(
        {}, description="Members from the Hugging Face hub or its local cache: NAME = hf:OWNER/MODEL@REVISION."
    )
    members: dict[str, MemberSettings] = Field(
        {}, description="Settings for members whose names match a pattern; the first match applies."
    )

    def pattern_of(self, name: str) -> str | None:
        """The first pattern of `members` that matches a member's name; None if none does."""
        return next((pattern for pattern in self.members if name == pattern or fnmatchcase(name, pattern)), None)

    def of_pattern(self, pattern: str | None) -> TeacherSettings:
        """The settings of the members that a pattern applies to; with None, of members that no pattern matches."""
        table = MemberSettings.model_validate({}) if pattern is None else self.members[pattern]
        given: dict[str, Any] = {name: value for name, value in table if value is not None}
        update = {name: value for name, value in given.items() if name in TeacherSettings.model_fields}
        if "model" in given:  # arguments belong to their model
            update.setdefault("model_kwargs", {})
        if "preprocessing" in given and self.preprocessing is not None:
            merged = {**dict(self.preprocessing), **{k: v for k, v in given["preprocessing"] if v is not None}}
            update["preprocessing"] = self.preprocessing.model_copy(update=merged)
        if given.get("output", "mean") != "mean":
            update.setdefault("variance", None)
        return self.model_copy(update={**update, "members": {}})

    def shares(self, names: Sequence[str]) -> tuple[float, ...] | None:
        """The weights of members in the given order; None if they are equal.

        The list `weights` follows the natural order of names.
        """
        tables = [self.members.get(self.pattern_of(name) or "") for name in names]
        each = [None if table is None else table.weight for table in tables]
        if self.weights is not None or all(weight is None for weight in each):
            if self.weights is None or len(self.weights) != len(names):  # a wrong length is refused elsewhere
                return self.weights
            return tuple(self.weights[place] for place in places(names))
        return tuple(1.0 if weight is None else weight for weight in each)


def of_members(pattern: str) -> str:
    """The key of a table in `members`, as a file spells it."""
    return f"teachers.members.{quoted(pattern)}"
