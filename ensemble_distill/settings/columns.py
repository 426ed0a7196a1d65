"""Of `[data]`: what the columns of tables are, and how one data set is split into several."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from ensemble_distill.settings.section import SEED, Section


def _text_as(text: Any) -> str:
    return "<list>" if isinstance(text, list | tuple) else "<name>"


Name = Annotated[str, Field(min_length=1)]
TextColumns = Annotated[
    Annotated[Name, Tag("<name>")] | Annotated[tuple[Name, Name], Tag("<list>")], Discriminator(_text_as)
]


class ColumnSettings(Section):
    """`[data.columns]`: what the columns of tables are, in all splits."""

    inputs: tuple[str, ...] = Field((), description="Of tables, the columns members are given, in order.")
    images: str | None = Field(
        None, description="The column of pictures, or of their paths from the table's folder; inputs may stand beside."
    )
    text: TextColumns | None = Field(
        None, description="The column of the text that is, or the two of a pair; inputs may stand beside."
    )
    array: str | None = Field(
        None, min_length=1, description="The column of a list or tensor that is an array; inputs may stand beside."
    )
    categories: dict[str, tuple[str, ...]] = Field(
        {}, description="Of input columns that hold no numbers, the values, in the order they are encoded in."
    )
    encoding: Literal["one-hot", "index"] = Field(
        "one-hot", description="A category as so many numbers, one of them 1, or as one, its place."
    )
    labels: tuple[str, ...] = Field((), description="The columns of labels or targets; one, or several.")
    classes: tuple[str, ...] | None = Field(
        None, description="What the label column calls the classes, in the members' order; default numbers from 0."
    )

    @field_validator("categories")
    @classmethod
    def _values_once(cls, categories: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, values in categories.items():
            if len(set(values)) < len(values) or not values:
                raise ValueError(f"{name} has the values {list(values)}: give each once, and one at least")
        return categories


Share = Annotated[float, Field(gt=0, lt=1)]


class PortionSettings(Section):
    """`[data.split]`: how data.all is split; stratified by labels, what is left is train."""

    validation: Share | None = Field(None, description="Of data.all, the share that is validation.")
    test: Share | None = Field(None, description="The share that is test.")
    calibration: Share | None = Field(None, description="The share that is calibration.")
    seed: int = Field(0, ge=-SEED, lt=SEED, description="Seed of which rows those are.")

    @property
    def shares(self) -> dict[str, float]:
        """By split; what is left is train."""
        named = {name: getattr(self, name) for name in ("validation", "test", "calibration")}
        return {name: share for name, share in named.items() if share is not None}
