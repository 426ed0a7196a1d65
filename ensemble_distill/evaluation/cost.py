"""What a prediction costs: parameters, multiply-accumulates, and the latency of one row on one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ensemble_distill.tasks.figures import Figures

REPEATS = 30
BUDGET = 3.0  # seconds; a large ensemble is timed less often, but three times at least


def cost(modules: Sequence[nn.Module], inputs: Sequence[Tensor], budget: float = BUDGET) -> Figures:
    """Of running all `modules`, each on its own input (1, ...), one after the other on the CPU."""
    macs = 0
    latencies: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for module, x in zip(modules, inputs, strict=True):
                with _unfused(), FlopCounterMode(display=False) as counter:
                    module(x.clone())
                macs += counter.get_total_flops() // 2
            begun = time.perf_counter()
            while len(latencies) < 3 or (len(latencies) < REPEATS and time.perf_counter() - begun < budget):
                own = [x.clone() for x in inputs]  # modules may work in place, over and over
                started = time.perf_counter()
                for module, x in zip(modules, own, strict=True):
                    module(x)
                latencies.append(1000 * (time.perf_counter() - started))
    finally:
        torch.set_num_threads(threads)
    parameters = sum(p.numel() for module in modules for p in module.parameters())
    return {"parameters": parameters, "macs": macs, "latency_ms": statistics.median(latencies)}


def mean_cost(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> Figures:
    """The mean over `modules` of each one's own cost."""
    each = [cost([module], [x], BUDGET / len(modules)) for module, x in zip(modules, inputs, strict=True)]
    # of whole numbers the mean is whole where it can be
    return {name: statistics.mean(figures[name] or 0 for figures in each) for name in each[0]}


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
