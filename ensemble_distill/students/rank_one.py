"""Members that share every weight except for rank-one factors: member m has W ∘ (r_m s_mᵀ).

BatchEnsemble (Wen et al. 2020, arXiv:2002.06715). A layer costs M·(in + 2·out) parameters on top of the shared ones,
and M times the multiplications of a single member.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.students.heads import BatchedLinear, Heads

_Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
# these read their children's weights instead of calling them, and would bypass the factors
_WHOLE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


class _UnfitError(EdistillError, AttributeError):
    """An AttributeError too, so that `hasattr` returns False for what is refused."""


def _refuse(what: str) -> NoReturn:
    raise _UnfitError(
        f"student.model {what}, so batch-ensemble cannot give each member its own factors there. Use another body, or "
        "--method hydra."
    )


@dataclass
class _Rows:
    """The number of rows a body is run on, B·count; None outside of its forward pass."""

    now: int | None = None


class RankOne(nn.Module):
    """A linear or convolutional layer shared by `count` members, between their factors.

    Input and output (B·count, …), the members of a row side by side; channels are dimension `at`. The layer's bias
    moves to the members.

    Attributes:
        s, r: factors of the input, (count, in), and of the output, (count, out).
        bias: each member's own, (count, out); None if the layer had none.

    Raises:
        EdistillError: the forward pass gets another number of rows than the body, so that their members are unknown; or
            the body reads the layer's weight, which belongs to no member.
    """

    bias: nn.Parameter | None

    def __init__(self, shared: _Layer, count: int, spread: float, rows: _Rows) -> None:
        super().__init__()
        if isinstance(shared, nn.Linear):
            inputs, outputs, self.at = shared.in_features, shared.out_features, -1
        else:
            inputs, outputs, self.at = shared.in_channels, shared.out_channels, 1
        self.s, self.r = _factors(count, inputs, spread), _factors(count, outputs, spread)
        bias = shared.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().repeat(count, 1), bias.requires_grad)
        shared.register_parameter("bias", None)
        self.shared, self.count, self.rows = shared, count, rows
        self.to(shared.weight)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and self.rows.now not in (None, x.shape[0]):
            _refuse(f"calls a {type(self.shared).__name__} on {x.shape[0]} rows where its batch has {self.rows.now}")
        y: Tensor = self.shared(x * self._each(self.s, x))
        y = y * self._each(self.r, y)
        return y if self.bias is None else y + self._each(self.bias, y)

    def _each(self, factor: Tensor, like: Tensor) -> Tensor:
        """(count, C) for every row of `like` (B·count, …), along its channels."""
        shape = [1] * like.dim()
        shape[0], shape[self.at] = -1, factor.shape[1]
        return factor.repeat(like.shape[0] // self.count, 1).view(shape)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            shared = super().__getattr__("shared")
        found = getattr(shared, name)  # settings such as sizes are the same for every member
        if isinstance(found, Tensor):
            _refuse(f"reads the {name} of a {type(shared).__name__} instead of calling it")
        return found


class RankOneBody(nn.Module):
    """x (B, ...) to features (B, count, F), each member through its own factors.

    Normalization by batch statistics is shared: it sees the rows of all members together.
    """

    def __init__(self, inner: nn.Module, count: int, rows: _Rows) -> None:
        super().__init__()
        self.inner, self.count, self.rows = inner, count, rows

    def forward(self, x: Tensor) -> Tensor:
        each = x.unsqueeze(1).expand(-1, self.count, *x.shape[1:]).flatten(0, 1)
        self.rows.now = each.shape[0]
        try:
            features: Tensor = self.inner(each)
        finally:
            self.rows.now = None
        return features.view(-1, self.count, features.shape[1])


class RankOneLayer(nn.Module):
    """A `BatchedLinear` of one head as `count` members; (B, in) or (B, count, in) to (B, count, out)."""

    def __init__(self, layer: BatchedLinear, count: int, spread: float) -> None:
        super().__init__()
        _, inputs, outputs = layer.weight.shape
        self.weight = nn.Parameter(layer.weight.detach()[0].clone())
        self.bias = nn.Parameter(layer.bias.detach()[:1].repeat(count, 1))
        self.s, self.r = _factors(count, inputs, spread), _factors(count, outputs, spread)
        self.to(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        each = x.unsqueeze(1) if x.dim() == 2 else x
        return (each * self.s) @ self.weight * self.r + self.bias


class RankOneHeads(Heads):
    """One head as `count` members that share its weights."""

    def __init__(self, layers: list[RankOneLayer]) -> None:
        nn.Module.__init__(self)
        self.own_body = False
        self.layers = nn.ModuleList(layers)

    @property
    def count(self) -> int:
        layer = self.layers[0]
        assert isinstance(layer, RankOneLayer)
        return int(layer.s.shape[0])

    def copied(self, count: int) -> Heads:
        raise TypeError("rank-one heads have no head 0 to copy")


def rank_one_heads(heads: Heads, count: int, spread: float) -> RankOneHeads:
    """Head 0 as `count` members. Raises TypeError for rank-one heads, which have none."""
    if isinstance(heads, RankOneHeads):
        raise TypeError("rank-one heads have no head 0 to share")
    layers = [RankOneLayer(layer, count, spread) for layer in heads.layers if isinstance(layer, BatchedLinear)]
    return RankOneHeads(layers)


def rank_one_body(body: nn.Module, count: int, spread: float) -> RankOneBody:
    """Share every linear and convolutional layer of `body` among `count` members; `body` is changed.

    Layers inside torch's own attention and transformer layers stay as they are, the same for all members.

    Raises:
        EdistillError: there is no layer to share.
    """
    rows = _Rows()
    body = _convert(body, count, spread, rows, {})
    if not any(isinstance(module, RankOne) for module in body.modules()):
        raise EdistillError(
            f"student.model is a {type(body).__name__} without linear or convolutional layers of its own, and "
            "batch-ensemble gives those to its members. Use another body, or --method hydra."
        )
    return RankOneBody(body, count, rows)


def _convert(module: nn.Module, count: int, spread: float, rows: _Rows, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """The module, or its replacement; a module that is used in two places stays one."""
    if module not in done:
        done[module] = module
        if isinstance(module, _Layer):
            done[module] = RankOne(module, count, spread, rows)
        elif not isinstance(module, _WHOLE):
            for name, child in list(module._modules.items()):  # named_children() leaves out a second name
                if child is not None:
                    module._modules[name] = _convert(child, count, spread, rows, done)
    return done[module]


def _factors(count: int, size: int, spread: float) -> nn.Parameter:
    return nn.Parameter(torch.empty(count, size).normal_(1.0, spread))
