"""What a prediction costs: parameters, multiply-accumulates, and the latency of one row on one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ensemble_distill.tasks.figures import Figures
from ensemble_distill.teachers.answering import Answering

REPEATS = 30
BUDGET = 3.0  # seconds a model; large ones are timed less often, but three times at least

Model = tuple[Sequence[nn.Module], Sequence[Tensor]]  # modules, and an input (1, ...) for each


class Uncounted(nn.Module):
    """A member of another runtime, as a module that can be timed; what it holds and multiplies is not known."""

    def __init__(self, asked: Answering) -> None:
        super().__init__()
        self.asked = asked

    def forward(self, x: Tensor) -> NDArray[np.float32]:
        return self.asked.answers("a row to be timed", range(len(x)), x)


def costs(models: Sequence[Model], budget: float = BUDGET) -> list[Figures]:
    """Of running all modules of a model, each on its own input, one after the other on the CPU.

    The models are timed in turn, over and over, so that what else the machine does falls on all of them alike.
    """
    latencies: list[list[float]] = [[] for _ in models]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            counted = [_counted(*model) for model in models]
            begun, most = time.perf_counter(), budget * len(models)
            while models and (len(latencies[0]) < 3 or _goes_on(latencies, begun, most)):
                for (modules, inputs), times in zip(models, latencies, strict=True):
                    times.append(_timed(modules, inputs))
    finally:
        torch.set_num_threads(threads)
    return [
        figures | {"latency_ms": statistics.median(times)} for figures, times in zip(counted, latencies, strict=True)
    ]


def cost(modules: Sequence[nn.Module], inputs: Sequence[Tensor], budget: float = BUDGET) -> Figures:
    """Of one model alone; see `costs`."""
    return costs([(modules, inputs)], budget)[0]


def mean_member(ensemble: Figures, members: int) -> Figures:
    """What one of its members costs, on average."""
    found: Figures = {}
    for name, value in ensemble.items():
        each = None if value is None else value / members
        found[name] = int(each) if each is not None and isinstance(value, int) and each.is_integer() else each
    return found


def _counted(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> Figures:
    if any(isinstance(module, Uncounted) for module in modules):
        for module, x in zip(modules, inputs, strict=True):
            module(x.clone())  # so that the first time is not the one that counts
        return {"parameters": None, "macs": None}
    macs = 0
    for module, x in zip(modules, inputs, strict=True):
        with _unfused(), FlopCounterMode(display=False) as counter:
            module(x.clone())
        macs += counter.get_total_flops() // 2
    return {"parameters": sum(p.numel() for module in modules for p in module.parameters()), "macs": macs}


def _timed(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> float:
    """Milliseconds."""
    own = [x.clone() for x in inputs]  # modules may work in place, over and over
    started = time.perf_counter()
    for module, x in zip(modules, own, strict=True):
        module(x)
    return 1000 * (time.perf_counter() - started)


def _goes_on(latencies: Sequence[Sequence[float]], begun: float, most: float) -> bool:
    return len(latencies[0]) < REPEATS and time.perf_counter() - begun < most


@contextmanager
def _unfused() -> Iterator[None]:
    """Attention and recurrence as plain products: the counter takes their fused CPU kernels for free."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # torch types it as its descriptor
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.enabled = onednn
