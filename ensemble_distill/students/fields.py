"""Networks that take several named arrays: what travels as one tensor is named where they take it.

A hook names it, and no module around the network: so its weights keep the names that a member's file has.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import AnyPreprocessing, Named, Several, Tokenization, named_in

MASK = "attention_mask"


def named(x: Tensor, to: Named) -> dict[str, Tensor]:
    """Inputs as a table: of texts (B, fields, L) as (B, L) each, of several arrays (B, n) each in its own shape.

    Tokens are cut to the longest row that the attention mask tells. What is cut away is padding in all rows. A network
    that honors the mask says the same without it, sooner.
    """
    if isinstance(to, Several):
        whole = apart(x, to)
        texts = [part.preprocessing.fields for part in to.parts if isinstance(part.preprocessing, Tokenization)]
        return whole | {name: cut for fields in texts for name, cut in _cut({f: whole[f] for f in fields}).items()}
    return _cut(dict(zip(to.fields, x.unbind(1), strict=True)))


def apart(x: Tensor, to: Several) -> dict[str, Tensor]:
    """Rows (B, n) as a table of the arrays, each in its own shape, whole numbers as int64."""
    found = {}
    for slot in to.slots:
        values = torch.unflatten(x[:, slot.start : slot.stop], 1, slot.shape)
        found[slot.name] = values.to(torch.int64) if slot.ids else values
    return found


def together(arrays: Sequence[Tensor], to: Named) -> Tensor:
    """Inverse of what each becomes: (B, L) of texts to (B, fields, L), several arrays to (B, n) float32."""
    if isinstance(to, Tokenization):
        return torch.stack(list(arrays), dim=1)
    return torch.cat([array.flatten(1).to(torch.float32) for array in arrays], dim=1)


def _cut(fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if MASK not in fields or torch.compiler.is_compiling():
        return dict(fields)
    used = fields[MASK].any(0).nonzero()
    length = int(used[-1]) + 1 if len(used) else 1
    return {name: values[:, :length] for name, values in fields.items()}


class _Names:
    """A forward pre-hook; an object, so that copies of the module have it too."""

    def __init__(self, to: Named) -> None:
        self.to = to

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        (x,) = args
        return (), named(x, self.to)


def shown(network: nn.Module, to: AnyPreprocessing | None) -> nn.Module:
    """The network itself as it is called with what this preprocessing gives: `forward(input_ids, attention_mask)`, or
    `forward(pixel_values, x)`, which from now on is called with one tensor."""
    if (several := named_in(to)) is not None:
        network.register_forward_pre_hook(_Names(several), with_kwargs=True)
    return network


def refuse_other_names(network: nn.Module, to: AnyPreprocessing | None, who: str, mend: str) -> None:
    """Raise EdistillError for a network of several arrays whose forward does not take one of them by its name, or wants
    another.

    Args:
        who: it is, for the message.
        mend: what else to do, a sentence.
    """
    if (several := named_in(to)) is None:
        return
    try:
        taken = inspect.signature(network.forward).parameters
    except (TypeError, ValueError):  # of compiled code, which says nothing of it
        return
    kinds = inspect.Parameter
    named = [name for name, one in taken.items() if one.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    any_name = any(one.kind is kinds.VAR_KEYWORD for one in taken.values())
    lacking = [name for name in several.fields if name not in named and not any_name]
    needed = [name for name in named if taken[name].default is kinds.empty and name not in several.fields]
    if lacking or needed:
        why = f"does not take {' and '.join(lacking)}" if lacking else f"also wants {' and '.join(needed)}"
        raise EdistillError(
            f"{who} is called with {', '.join(several.fields)} by these names, and its forward({', '.join(taken)}) "
            f"{why}. Name its arguments so. {mend}"
        )


def nothing(rows: int, shape: tuple[int, ...], ids: bool) -> Tensor:
    """Inputs of no row: zeros, or of ids the first token over and over."""
    return torch.zeros(rows, *shape, dtype=torch.int64 if ids else torch.float32)
