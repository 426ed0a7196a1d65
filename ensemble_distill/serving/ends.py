"""The names of a graph's inputs."""

from __future__ import annotations

from ensemble_distill.facts import Kind

STATE, NEW_STATE = "state_", "new_state_"  # followed by a number: the state before and after the tokens
INPUTS: dict[Kind, str] = {"pixels": "pixel_values", "tokens": "input_ids"}


PIXELS = "pixels"  # of graphs that take uint8 (B, H, W, C)


def input_name(kind: Kind) -> str:
    """The name of the input that holds the rows."""
    return INPUTS.get(kind, "input")
