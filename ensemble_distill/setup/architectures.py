"""Which of timm's architectures weights alone are of, by the words of their names and then by every shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from ensemble_distill.setup.members import Found, Shapes

TRIED = 12  # architectures that are built for a group of members; each takes about a tenth of a second


def architecture_of(group: Sequence[Found]) -> tuple[str, int] | None:
    """A name of timm's and how many classes it gives, whose tensors are those of a group of members; None where the
    members' names say none that is."""
    first = group[0]
    for name in _named([*(one.name for one in group[:3]), first.path.parent.name]):
        if (classes := _classes(name, first.shapes)) is not None:
            return name, classes
    return None


def timm_names(names: Iterable[str]) -> list[str]:
    """Those of some names that timm can build; a member's own may be that of its file."""
    import timm

    return [name for name in names if name and timm.is_model(name)]


def _named(texts: Sequence[str]) -> Iterator[str]:
    """The architectures that texts name, the longest names first."""
    import timm

    known, found = set(timm.list_models()), dict[str, None]()
    for text in texts:
        parts = [part for part in re.split(r"[^a-z0-9]+", text.lower()) if part]
        spans = {"_".join(parts[a:b]) for a in range(len(parts)) for b in range(a + 1, len(parts) + 1)}
        found |= dict.fromkeys(sorted(spans & known, key=len, reverse=True))
    yield from list(found)[:TRIED]


def _classes(name: str, shapes: Shapes) -> int | None:
    """How many classes the architecture gives, where its tensors are these."""
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
