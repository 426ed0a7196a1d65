"""Layers with one set of weights per head, run side by side in single tensors.

The tail of a network, made for one head, runs here on rows (B·count, …), the heads of a row side by side. Operations
between layers see rows of one head each and need no change; the layers themselves are replaced by ones that hold
`count` sets of weights.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ensemble_distill.errors import EdistillError

_CONVOLUTIONS = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}


class PerHead(nn.Module):
    """`count` copies of a layer; input and output (B·count, …).

    Its parameters and buffers have the layer's names, with the heads as first dimension: (count, …).

    Attributes:
        layer: the layer's settings, without its tensors.
        count: number of heads.
    """

    layer: Any
    weight: Any
    bias: Any

    def __init__(self, layer: nn.Module, count: int) -> None:
        super().__init__()
        object.__setattr__(self, "layer", _bare(layer))  # not a submodule: it has nothing to train
        self.count = count
        for name, parameter in layer.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(_repeated(parameter, count), parameter.requires_grad))
        for name, buffer in layer.named_buffers(recurse=False):
            if name != "num_batches_tracked":
                self.register_buffer(name, _repeated(buffer, count))
        for name, child in layer.named_children():
            self.add_module(name, child)
        for name in ("weight", "bias"):
            if not hasattr(self, name):
                self.register_parameter(name, None)

    def resized(self, count: int) -> PerHead:
        """`count` copies of head 0."""
        other = type(self)(self.layer, count)
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            if isinstance(tensor, nn.Parameter):
                setattr(other, name, nn.Parameter(_repeated(tensor[0], count), tensor.requires_grad))
            else:
                other.register_buffer(name, _repeated(tensor[0], count))
        return other.train(self.training)

    def _side_by_side(self, x: Tensor) -> Tensor:
        """Rows (B·count, C, …) as channels (B, count·C, …)."""
        return x.reshape(-1, self.count * x.shape[1], *x.shape[2:])  # `view` would fail on channels-last memory

    def _by_row(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[1] // self.count, *x.shape[2:])

    def extra_repr(self) -> str:
        return f"{self.count} × {type(self.layer).__name__}"


class PerHeadLinear(PerHead):
    def forward(self, x: Tensor) -> Tensor:
        positions = x.shape[1:-1].numel()
        each = x.reshape(-1, self.count, positions, x.shape[-1])
        each = each.transpose(0, 1).flatten(1, 2)  # (count, B · positions, in)
        y: Tensor = each @ self.weight.transpose(1, 2)  # no einsum, see `BatchedLinear`
        if self.bias is not None:
            y = y + self.bias.unsqueeze(1)
        y = y.view(self.count, -1, positions, y.shape[-1]).transpose(0, 1)
        return y.reshape(-1, *x.shape[1:-1], y.shape[-1])


class PerHeadConvolution(PerHead):
    def forward(self, x: Tensor) -> Tensor:
        layer: _ConvNd = self.layer
        bias = None if self.bias is None else self.bias.flatten()
        padding = layer.padding
        if layer.padding_mode != "zeros":
            x = functional.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
            padding = (0,) * (x.dim() - 2)
        y = _CONVOLUTIONS[x.dim()](
            self._side_by_side(x),
            self.weight.flatten(0, 1),
            bias,
            layer.stride,
            padding,
            layer.dilation,
            self.count * layer.groups,
        )
        return self._by_row(y)


class PerHeadBatchNorm(PerHead):
    def forward(self, x: Tensor) -> Tensor:
        layer: _BatchNorm = self.layer
        names = ("running_mean", "running_var", "weight", "bias")
        mean, variance, weight, bias = (
            None if t is None else t.flatten() for t in (getattr(self, n, None) for n in names)
        )
        y = functional.batch_norm(
            self._side_by_side(x),
            mean,
            variance,
            weight,
            bias,
            self.training or mean is None,
            0.1 if layer.momentum is None else layer.momentum,
            layer.eps,
        )
        y = self._by_row(y)
        for behind in self.children():  # timm's dropout and activation
            y = behind(y)
        return y


class PerHeadLayerNorm(PerHead):
    def forward(self, x: Tensor) -> Tensor:
        layer: nn.LayerNorm = self.layer
        y = functional.layer_norm(x, layer.normalized_shape, None, None, layer.eps)
        return _scaled(y, self.weight, self.bias, self.count, x.dim() - len(layer.normalized_shape) - 1)


class PerHeadGroupNorm(PerHead):
    def forward(self, x: Tensor) -> Tensor:
        layer: nn.GroupNorm = self.layer
        y = functional.group_norm(x, layer.num_groups, None, None, layer.eps)
        weight, bias = (
            None if t is None else t.view(*t.shape, *(1,) * (x.dim() - 2)) for t in (self.weight, self.bias)
        )
        return _scaled(y, weight, bias, self.count, 0)


def per_head(tail: nn.Module, count: int) -> nn.Module:
    """Convert a tail for one head into one for `count` equal heads; `tail` itself is not changed.

    Raises:
        EdistillError: a layer other than torch's linear, convolutional and normalization layers holds weights, or one
            layer is used in two places.
    """
    for name, module in tail.named_modules():
        _refuse_unfit(module, name)
    converted = _convert(copy.deepcopy(tail), count, "", set())
    named = [parameter for _, parameter in tail.named_parameters(remove_duplicate=False)]
    if len(named) > len(set(named)):
        raise EdistillError("Layers of the last stage share weights, which each head's copies would not. Untie them.")
    return converted


def resized(tail: nn.Module, count: int) -> nn.Module:
    """A converted tail with `count` copies of head 0."""
    tail = copy.deepcopy(tail)
    for parent in list(tail.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PerHead):
                setattr(parent, name, child.resized(count))
    return tail.resized(count) if isinstance(tail, PerHead) else tail


@torch.no_grad()
def give(tail: nn.Module, head: int, weights: nn.Module) -> None:
    """Give head `head` of a converted tail the weights of a tail made for one head."""
    theirs = weights.state_dict()
    for name, tensor in tail.state_dict().items():
        tensor[head].copy_(theirs[name])


def in_one_batch(networks: Sequence[nn.Module]) -> nn.Module | None:
    """Networks of one architecture as one network, in eval mode.

    It maps (B·count, …) to (B·count, …), with the networks of a row side by side. None if a layer of theirs cannot be
    batched. The caller has to check that the results agree, since the networks' code may differ in what no weight
    holds.
    """
    try:
        batch = per_head(networks[0], len(networks)).eval()
    except EdistillError:
        return None
    for at, network in enumerate(networks):
        give(batch, at, network)
    return batch


def one_architecture(networks: Sequence[nn.Module]) -> bool:
    """Whether networks are of one class, print alike and hold tensors of the same names, shapes and dtypes."""
    return len({architecture(network) for network in networks}) == 1


def architecture(network: nn.Module) -> Hashable:
    """What networks that may run in one batch have in common."""
    tensors = tuple((name, tuple(t.shape), t.dtype) for name, t in network.state_dict().items())
    return type(network), repr(network), tensors


def _convert(module: nn.Module, count: int, name: str, seen: set[nn.Module]) -> nn.Module:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    layer = _per_head_layer(module)
    if layer is not None and own:
        if module in seen:
            raise EdistillError(f"The layer {name} stands at two places of the last stage. Give each its own.")
        seen.add(module)
        return layer(module, count)
    for child, inner in list(module._modules.items()):  # named_children() leaves out a second name
        if inner is not None:
            module._modules[child] = _convert(inner, count, f"{name}.{child}".lstrip("."), seen)
    return module


def _refuse_unfit(module: nn.Module, name: str) -> None:
    """Raise EdistillError for a module whose weights no per-head layer can hold."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    parametrized = hasattr(module, "parametrizations")
    if parametrized or (own and _per_head_layer(module) is None):
        held = own[0][0] if own else "a parametrization"
        raise EdistillError(
            f"The last stage holds {held} in {name or 'itself'} ({type(module).__name__}), and only torch's own "
            "linear, convolutional and normalization layers can be given to each head. Begin the last stage after "
            "it, or use heads = [] or [100]."
        )


def _per_head_layer(module: nn.Module) -> type[PerHead] | None:
    """The per-head class for a layer; None if none computes what the layer does, as with a forward of its own."""
    kind = next((kind for kind in _LAYERS if isinstance(module, kind)), None)
    if kind is None or hasattr(module, "parametrizations"):
        return None
    if {name for name, _ in module.named_parameters(recurse=False)} - {"weight", "bias"}:
        return None  # a weight computed from others, as by weight_norm
    if isinstance(module, _BatchNorm) and module.momentum is None:
        return None  # its statistics are means over all batches, so it counts batches
    if type(module).forward is kind.forward or _is_normalization_with_activation(module):
        return _LAYERS[kind]
    return None


def _is_normalization_with_activation(module: nn.Module) -> bool:
    """Whether this is timm's BatchNorm2d followed by dropout and an activation."""
    if not isinstance(module, nn.BatchNorm2d) or type(module) is nn.BatchNorm2d:
        return False
    from timm.layers import BatchNormAct2d

    return type(module) is BatchNormAct2d


_LAYERS: dict[type[nn.Module], type[PerHead]] = {
    nn.Linear: PerHeadLinear,
    nn.Conv1d: PerHeadConvolution,
    nn.Conv2d: PerHeadConvolution,
    nn.Conv3d: PerHeadConvolution,
    _BatchNorm: PerHeadBatchNorm,
    nn.LayerNorm: PerHeadLayerNorm,
    nn.GroupNorm: PerHeadGroupNorm,
}


def _bare(layer: nn.Module) -> nn.Module:
    """A layer's settings without its tensors."""
    bare = copy.copy(layer)
    bare._parameters, bare._buffers = dict.fromkeys(layer._parameters), {}
    bare._modules = dict(layer._modules)
    return bare


def _repeated(tensor: Tensor, count: int) -> Tensor:
    return tensor.detach().unsqueeze(0).repeat(count, *(1,) * tensor.dim())


def _scaled(y: Tensor, weight: Tensor | None, bias: Tensor | None, count: int, between: int) -> Tensor:
    """Scale and shift y (B·count, …) by each head's (count, …), which get `between` dimensions behind the first."""
    if weight is None:
        return y
    each = y.reshape(-1, count, *y.shape[1:])
    shape = (count, *(1,) * between, *weight.shape[1:])
    each = each * weight.view(shape)
    return (each if bias is None else each + bias.view(shape)).flatten(0, 1)


def normalizes_batches(module: nn.Module) -> bool:
    """Whether a module is BatchNorm, plain or per head: in training its output depends on the whole batch."""
    return isinstance(module, _BatchNorm | PerHeadBatchNorm)
