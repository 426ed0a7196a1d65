"""Which timm architecture bare weights belong to, guessed from words in their names and checked against every shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from ensemble_distill.setup.members import Found, Shapes

TRIED = 12  # architectures to build per group of members; each takes about a tenth of a second


def architecture_of(group: Sequence[Found]) -> tuple[str, int] | None:
    """A timm name and number of classes whose tensors equal those of a group of members; None if their names contain
    none."""
    first = group[0]
    for name in _named([*(one.name for one in group[:3]), first.path.parent.name]):
        if (classes := _classes(name, first.shapes)) is not None:
            return name, classes
    return None


def timm_names(names: Iterable[str]) -> list[str]:
    """The names that timm can build; a member's model may be only its file's name."""
    import timm

    return [name for name in names if name and timm.is_model(name)]


def _named(texts: Sequence[str]) -> Iterator[str]:
    """The architectures named in texts, longest name first."""
    import timm

    known, found = set(timm.list_models()), dict[str, None]()
    for text in texts:
        parts = [part for part in re.split(r"[^a-z0-9]+", text.lower()) if part]
        spans = {"_".join(parts[a:b]) for a in range(len(parts)) for b in range(a + 1, len(parts) + 1)}
        found |= dict.fromkeys(sorted(spans & known, key=len, reverse=True))
    yield from list(found)[:TRIED]


def _classes(name: str, shapes: Shapes) -> int | None:
    """The number of classes for which the architecture has exactly these tensors; None if there is none."""
    import timm
    import torch

    matrices = [shape[0] for tensor, shape in shapes.items() if tensor.endswith("weight") and len(shape) == 2]
    first = next((shape for tensor, shape in shapes.items() if len(shape) == 4), None)
    for classes in dict.fromkeys(reversed(matrices)):
        arguments = {} if first is None or first[1] not in (1, 3) else {"in_chans": first[1]}
        try:
            with torch.device("meta"):
                made = timm.create_model(name, pretrained=False, num_classes=classes, **arguments)
        except Exception:  # each architecture refuses arguments in its own way
            return None
        if {tensor: tuple(value.shape) for tensor, value in made.state_dict().items()} == dict(shapes):
            return classes
    return None
