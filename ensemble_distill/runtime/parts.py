"""The tensors in a network's output, which may be a tuple, a mapping or an object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

DEEPEST = 3  # levels of nesting that are searched
Steps = tuple[tuple[bool, Any], ...]


@dataclass(frozen=True)
class Part:
    """One tensor of a network's output.

    Attributes:
        path: the Python expression that follows the name of the output: "[0]", "['logits']", ".logits".
        steps: the same path in steps: whether each is an attribute, and the attribute or key.
    """

    path: str
    steps: Steps
    tensor: Tensor

    @property
    def said(self) -> str:
        return f"out{self.path} {tuple(self.tensor.shape)}"


def parts(value: Any, path: str = "", steps: Steps = ()) -> Iterator[Part]:
    """Yield the tensors in a network's output."""
    if isinstance(value, Tensor):
        yield Part(path, steps, value)
    elif len(steps) < DEEPEST:
        for attribute, key, inner in _inside(value):
            yield from parts(inner, path + (f".{key}" if attribute else f"[{key!r}]"), (*steps, (attribute, key)))


def _inside(value: Any) -> Iterator[tuple[bool, Any, Any]]:
    if isinstance(value, Mapping):
        yield from ((False, key, inner) for key, inner in value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from ((True, name, getattr(value, name)) for name in value._fields)
    elif isinstance(value, tuple | list):
        yield from ((False, index, inner) for index, inner in enumerate(value))
    elif hasattr(value, "__dict__"):
        yield from ((True, name, inner) for name, inner in vars(value).items() if not name.startswith("_"))
