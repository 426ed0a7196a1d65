"""Parts of `[data]`: the columns of tables, and how one data set is divided into splits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from ensemble_distill.settings.section import SEED, Section, one_or_list

Name = Annotated[str, Field(min_length=1)]
TextColumns = Annotated[
    Annotated[Name, Tag("<one>")] | Annotated[tuple[Name, Name], Tag("<list>")], Discriminator(one_or_list)
]


class ColumnSettings(Section):
    """`[data.columns]`: the columns of tables, the same for all splits."""

    inputs: tuple[str, ...] = Field((), description="The table columns that members are given, in order.")
    images: str | None = Field(
        None,
        description="The column of pictures, or of paths relative to the table's folder; can be combined with inputs.",
    )
    text: TextColumns | None = Field(
        None, description="The text column, or the two columns of a text pair; can be combined with inputs."
    )
    array: str | None = Field(
        None,
        min_length=1,
        description="The column that holds an array, as a list or tensor; can be combined with inputs.",
    )
    categories: dict[str, tuple[str, ...]] = Field(
        {}, description="The values of each non-numeric input column, in encoding order."
    )
    encoding: Literal["one-hot", "index"] = Field(
        "one-hot", description="Encode a category as a 0/1 vector, or as its index."
    )
    labels: tuple[str, ...] = Field((), description="The column or columns of labels or targets.")
    classes: tuple[str, ...] | None = Field(
        None, description="The classes as the label column names them, in the members' order; default numbers from 0."
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
    """`[data.split]`: how data.all is divided, stratified by label; the rest is train."""

    validation: Share | None = Field(None, description="Share of data.all used for validation.")
    test: Share | None = Field(None, description="Share used for test.")
    calibration: Share | None = Field(None, description="Share used for calibration.")
    seed: int = Field(0, ge=-SEED, lt=SEED, description="Seed of the random division.")

    @property
    def shares(self) -> dict[str, float]:
        """The share of each split but train, which gets the rest."""
        named = {name: getattr(self, name) for name in ("validation", "test", "calibration")}
        return {name: share for name, share in named.items() if share is not None}
