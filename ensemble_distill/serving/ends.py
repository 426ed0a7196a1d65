"""What the inputs of a graph are called."""

from __future__ import annotations

from ensemble_distill.facts import Kind

STATE, NEW_STATE = "state_", "new_state_"  # and a number: the state before the tokens, and after them
INPUTS: dict[Kind, str] = {"pixels": "pixel_values", "tokens": "input_ids"}


PIXELS = "pixels"  # of graphs that take uint8 (B, H, W, C)


def input_name(kind: Kind) -> str:
    """Of the rows."""
    return INPUTS.get(kind, "input")
