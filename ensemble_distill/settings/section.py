"""The base class of all tables of `edistill.toml`, and the bounds of its numbers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from ensemble_distill.facts import LARGE, SIDE
from ensemble_distill.settings.messages import wrong_kind
from ensemble_distill.settings.schema import kebab

# every number has bounds, beyond which a value is surely a typing error; a test checks all of them
MOST_ROWS = 2**20  # in a batch
WIDEST = 2**20  # units of a layer
MOST_EPOCHS = 10**6
SEED = 2**63  # upper bound of seeds, exclusive
FAR = 1e30  # bound of targets, in any unit, and of rates; float32 ends at 3e38
Side = Annotated[int, Field(ge=1, le=SIDE)]
Level = Annotated[float, Field(ge=-LARGE, le=LARGE)]


def one_or_list(value: Any) -> str:
    """The tag of a value that may be one item or a list."""
    return "<list>" if isinstance(value, list | tuple) else "<one>"


class Section(BaseModel):
    """A table of the file; unknown keys are refused."""

    model_config = ConfigDict(
        extra="forbid",
        alias_generator=kebab,
        populate_by_name=True,
        frozen=True,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        if told := wrong_kind(value, cls.model_fields[info.field_name].annotation):
            raise ValueError(told)
        return value
