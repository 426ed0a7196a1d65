"""Training one student in several processes, each with its share of a step's rows.

Gradients and BatchNorm statistics are those of all rows.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from ensemble_distill.runtime import ranks
from ensemble_distill.students.per_head import normalizes_batches

Through = Callable[[Tensor], Tensor]


def shared(student: nn.Module, device: torch.device) -> Through:
    """The student's forward pass, after which every process gets the mean of all processes' gradients.

    Weights that a pass does not use have no gradient, as in one process. With one process, returns the student itself.
    """
    if not ranks.several():
        return student
    # harmless: a kernel's gradient may have other strides, which cost next to nothing
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    named = inspect.signature(DistributedDataParallel).parameters
    key = "forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers"  # as torch before 2.14
    buffers: dict[str, Any] = {key: False}  # they agree in all processes, since BatchNorm is over all rows
    wrapped = DistributedDataParallel(
        _Spare(student, device),
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=True,
        **buffers,
    )

    def through(x: Tensor) -> Tensor:
        normalizes = any(module.training and normalizes_batches(module) for module in student.modules())
        with _BatchNormOfAll() if normalizes else nullcontext():
            result: Tensor = wrapped(x)
        return result

    return through


class _Spare(nn.Module):
    """A student with an additional unused weight.

    Without one, torch logs in every process that all weights were used.
    """

    def __init__(self, student: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.student, self.unused = student, nn.Parameter(torch.zeros((), device=device))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.student(x)
        return result


class _BatchNormOfAll(TorchFunctionMode):
    """Makes every batch_norm in training mode use the statistics of all processes' rows, on any device.

    torch's own SyncBatchNorm refuses CPUs, and replaces modules whose class other code checks.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if function is functional.batch_norm:
            named = inspect.signature(functional.batch_norm).bind(*args, **given)
            named.apply_defaults()
            if named.arguments["training"]:
                return batch_norm_of_all(*named.args)
        return function(*args, **given)


def batch_norm_of_all(
    given: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """torch's batch_norm in training mode, for (B, C, …) over the rows of all processes."""
    x = given if given.dtype == torch.float64 else given.float()
    over, of_channel = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
    rows = x.new_full((1,), x.numel() / x.shape[1])
    sums = _sum_of_all(torch.cat([x.sum(over), rows]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centered = x - mean.view(of_channel)
    variance = _sum_of_all(centered.square().sum(over)) / count
    with torch.no_grad():
        if running_mean is not None:
            running_mean.mul_(1 - momentum).add_(mean.to(running_mean), alpha=momentum)
        if running_var is not None:
            unbiased = variance * count / (count - 1)
            running_var.mul_(1 - momentum).add_(unbiased.to(running_var), alpha=momentum)
    y = centered * (variance + eps).rsqrt().view(of_channel)
    if weight is not None:
        y = y * weight.view(of_channel)
    return (y if bias is None else y + bias.view(of_channel)).to(given.dtype)


class _SumOfAll(torch.autograd.Function):
    """The sum of all processes' tensors. Its gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return ranks.sum_of_all(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return ranks.sum_of_all(gradients[0])


_sum_of_all: Callable[[Tensor], Tensor] = _SumOfAll.apply
