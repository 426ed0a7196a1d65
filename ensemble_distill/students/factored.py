"""Layers as products of thinner ones: a convolution in three factors (Tucker-2: Kim et al. 2016, arXiv:1511.06530), a
linear layer in two."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeGuard

from torch import Tensor, nn

from ensemble_distill.errors import EdistillError

Ranks = tuple[int, int]  # channels between the factors: after the first and before the last; a linear layer has one
PUT_BACK = "Put back the body it was trained with."
Layer = nn.Conv2d | nn.Linear


def is_factorable(module: nn.Module) -> TypeGuard[Layer]:
    """Whether it is torch's own linear or ungrouped 2-D convolution, and not a kind of it with ways of its own."""
    if hasattr(module, "parametrizations"):
        return False
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear


def is_spatial(layer: Layer) -> bool:
    """Whether it has a kernel of several positions, and so a core between two factors."""
    return isinstance(layer, nn.Conv2d) and math.prod(layer.kernel_size) > 1


def channels(layer: Layer) -> tuple[int, int]:
    """How many it reads and gives."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def most(layer: Layer) -> Ranks:
    """The highest ranks that its factors may have."""
    inputs, outputs = channels(layer)
    return (inputs, outputs) if is_spatial(layer) else (min(inputs, outputs),) * 2


def weights_of(layer: Layer, ranks: Ranks) -> int:
    """How many weights its factors have, biases aside; those of the layer where factors would have more."""
    inputs, outputs = channels(layer)
    inner, outer = ranks
    whole = layer.weight.numel()
    if not is_spatial(layer):
        return min(whole, inner * (inputs + outputs))
    reduce, expand = (inputs * inner if inner < inputs else 0), (outer * outputs if outer < outputs else 0)
    return min(whole, reduce + whole // (inputs * outputs) * inner * outer + expand)


def factored(layer: Layer, ranks: Ranks) -> nn.Sequential:
    """Fresh factors of a layer, on its device: `reduce`, `core` and `expand`, of which those of full rank are left out;
    without a kernel of several positions `core` is a thin layer and there is no `reduce`.

    x to the same shape as the layer's. Only the last of them has a bias, so that padding stays zero to the core.
    """
    inputs, outputs = channels(layer)
    inner, outer = ranks
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if isinstance(layer, nn.Linear):
        parts["core"], parts["expand"] = nn.Linear(inputs, outer, bias=False), nn.Linear(outer, outputs)
    else:
        if is_spatial(layer) and inner < inputs:
            parts["reduce"], inputs = nn.Conv2d(inputs, inner, 1, bias=False), inner
        expanded = outer < outputs or not is_spatial(layer)
        ways: Any = {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding", "dilation")}
        parts["core"] = nn.Conv2d(inputs, outer, **ways, bias=not expanded)
        if expanded:
            parts["expand"] = nn.Conv2d(outer, outputs, 1)
    return nn.Sequential(parts).to(layer.weight).train(layer.training)


def factor(body: nn.Module, ranks: Mapping[str, Ranks]) -> None:
    """Put fresh factors in the place of a body's layers; those of `ranks` alone.

    Raises:
        EdistillError: there is no such layer, or it has no factors of these ranks.
    """
    layers = dict(body.named_modules())
    for name, wanted in ranks.items():
        layer = layers.get(name)
        if layer is None or not is_factorable(layer):
            there = "is not there" if layer is None else f"is a {type(layer).__name__}, which has none"
            raise EdistillError(f"The student has factors of its body's {name}, and that {there}. {PUT_BACK}")
        if not all(0 < rank <= limit for rank, limit in zip(wanted, most(layer), strict=True)):
            raise EdistillError(
                f"The student has factors of rank {wanted} of its body's {name}, and they can have no more than "
                f"{most(layer)}. {PUT_BACK}"
            )
        replace(body, name, factored(layer, wanted))


def replace(body: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, child = name.rpartition(".")
    body.get_submodule(parent)._modules[child] = module


def flat(x: Tensor, layer: Layer) -> Tensor:
    """A layer's input or output as (positions, channels)."""
    return (x.movedim(1, -1) if isinstance(layer, nn.Conv2d) else x).flatten(0, -2)
