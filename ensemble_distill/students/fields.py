"""Networks that take a table of named arrays: what travels as one tensor, a row a field, is named where they take it.

A hook names it, and no module around the network: so its weights keep the names that a member's file has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ensemble_distill.facts import AnyPreprocessing, Tokenization

MASK = "attention_mask"


def named(x: Tensor, fields: tuple[str, ...]) -> dict[str, Tensor]:
    """Inputs (B, fields, L) as a table of (B, L), cut to the longest row that the attention mask tells.

    What is cut away is padding in all rows. A network that honors the mask says the same without it, sooner.
    """
    if MASK in fields and not torch.compiler.is_compiling():
        used = x[:, fields.index(MASK)].any(0).nonzero()
        x = x[..., : int(used[-1]) + 1 if len(used) else 1]
    return dict(zip(fields, x.unbind(1), strict=True))


class _Names:
    """A forward pre-hook; an object, so that copies of the module have it too."""

    def __init__(self, fields: tuple[str, ...]) -> None:
        self.fields = fields

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        (x,) = args
        return (), named(x, self.fields)


def takes_fields(network: nn.Module, fields: tuple[str, ...]) -> nn.Module:
    """The network itself, `forward(input_ids, attention_mask)`, which from now on is called with (B, fields, L)."""
    network.register_forward_pre_hook(_Names(fields), with_kwargs=True)
    return network


def shown(network: nn.Module, to: AnyPreprocessing | None) -> nn.Module:
    """The network as it is called with what this preprocessing gives."""
    return takes_fields(network, to.fields) if isinstance(to, Tokenization) else network


def nothing(rows: int, shape: tuple[int, ...], ids: bool) -> Tensor:
    """Inputs of no row: zeros, or of ids the first token over and over."""
    return torch.zeros(rows, *shape, dtype=torch.int64 if ids else torch.float32)
