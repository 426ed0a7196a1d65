"""Networks that take several named arrays: the single tensor that travels is split into these where they are called.

A hook does this rather than a wrapping module, so that the weights keep the names that a member's file has.
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
    """Inputs by name: texts (B, fields, L) as (B, L) each, several arrays (B, n) each in its own shape.

    Tokens are cut to the longest row in the attention mask, so that only padding of all rows is lost. A network that
    honors the mask gives the same result, faster.
    """
    if isinstance(to, Several):
        whole = apart(x, to)
        texts = [part.preprocessing.fields for part in to.parts if isinstance(part.preprocessing, Tokenization)]
        return whole | {name: cut for fields in texts for name, cut in _cut({f: whole[f] for f in fields}).items()}
    return _cut(dict(zip(to.fields, x.unbind(1), strict=True)))


def apart(x: Tensor, to: Several) -> dict[str, Tensor]:
    """Rows (B, n) as arrays by name, each in its own shape, with ids as int64."""
    found = {}
    for slot in to.slots:
        values = torch.unflatten(x[:, slot.start : slot.stop], 1, slot.shape)
        found[slot.name] = values.to(torch.int64) if slot.ids else values
    return found


def together(arrays: Sequence[Tensor], to: Named) -> Tensor:
    """Inverse of `named` without its cut: texts (B, L) to (B, fields, L), several arrays to (B, n) float32."""
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
    """A forward pre-hook. It is an object, so that copies of the module have it too."""

    def __init__(self, to: Named) -> None:
        self.to = to

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        (x,) = args
        return (), named(x, self.to)


def shown(network: nn.Module, to: AnyPreprocessing | None) -> nn.Module:
    """Let a network with named arguments, as in `forward(input_ids, attention_mask)`, be called with one tensor.

    The network itself is returned, with a hook that splits the tensor by this preprocessing. Without several arrays it
    is unchanged.
    """
    if (several := named_in(to)) is not None:
        network.register_forward_pre_hook(_Names(several), with_kwargs=True)
    return network


def refuse_other_names(network: nn.Module, to: AnyPreprocessing | None, who: str, mend: str) -> None:
    """Raise EdistillError if the forward of a network of several arrays lacks one by name, or requires another.

    Args:
        who: what the message calls the network.
        mend: another remedy, as a sentence.
    """
    if (several := named_in(to)) is None:
        return
    try:
        taken = inspect.signature(network.forward).parameters
    except (TypeError, ValueError):  # compiled code has no signature
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
    """Placeholder inputs: zeros, or for ids the first token throughout."""
    return torch.zeros(rows, *shape, dtype=torch.int64 if ids else torch.float32)
