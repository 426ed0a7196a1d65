"""The cost of a prediction: parameters, multiply-accumulates, and the latency of one row on one thread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ensemble_distill.students.per_head import in_one_batch, one_architecture
from ensemble_distill.tasks.figures import Figures
from ensemble_distill.teachers.answering import Answering

REPEATS = 30
LONG = 20.0  # milliseconds beyond which a pass is not made twice
BUDGET = 3.0  # seconds per model; large ones are timed less often, but at least three times
APART = 1e-4  # relative to the largest number: how far a batch's outputs may differ from the modules' own
LARGEST = 2**26  # parameters of all members: larger ones gain nothing from a batch, which copies them


def _as_batches(_: Any, first: Sequence[int], second: Sequence[int], **__: Any) -> int:
    return 2 * math.prod(first) * second[-1]


def _as_distances(rows: Sequence[int], others: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(rows) * others[-2]


def _as_triples(*of: Any, **__: Any) -> int:
    """Two floating-point operations for each product of three numbers.

    Args:
        of: three shapes, then for each of them the dimensions of size 1 that broadcasting adds to it.
    """
    sizes: list[int] = []
    for shape, added in zip(of[:3], of[3:6], strict=True):
        left = iter(shape)
        own = [1 if at in added else next(left) for at in range(len(shape) + len(added))]
        sizes = own if not sizes else [max(pair) for pair in zip(sizes, own, strict=True)]
    return 2 * math.prod(sizes)


# the floating-point operations of products that torch's counter takes to be free, from the shapes of their arguments
BESIDE: Mapping[Any, Callable[..., int]] = {
    torch.ops.aten.mv: lambda matrix, *_, **__: 2 * math.prod(matrix),
    torch.ops.aten.addmv: lambda _, matrix, *__, **___: 2 * math.prod(matrix),
    torch.ops.aten.dot: lambda vector, *_, **__: 2 * math.prod(vector),
    torch.ops.aten.vdot: lambda vector, *_, **__: 2 * math.prod(vector),
    torch.ops.aten.addbmm: _as_batches,
    torch.ops.aten._trilinear: _as_triples,  # bilinear layers
    torch.ops.aten._cdist_forward: _as_distances,
    torch.ops.aten._euclidean_dist: _as_distances,  # of many rows
}

Model = tuple[Sequence[nn.Module], Sequence[Tensor]]  # modules, and an input (1, ...) for each


class Elsewhere(nn.Module):
    """A module run by another runtime: it can be timed, but its parameters and operations are unknown."""


class Uncounted(Elsewhere):
    """A member run by another runtime, as a module that can be timed."""

    def __init__(self, asked: Answering) -> None:
        super().__init__()
        self.asked = asked

    def forward(self, x: Tensor) -> NDArray[np.float32]:
        return self.asked.answers("a row to be timed", range(len(x)), x)


@dataclass(frozen=True)
class Cost:
    """The cost of one row.

    Attributes:
        parameters, macs: of all modules together; None if another runtime runs one of them.
        latency_ms: the latency of all modules, run in the fastest way, on one thread.
        alone_ms: the sum of the latencies of modules that run alone. Running all in turn can take longer, if their
            weights do not fit into the processor's caches together.
    """

    parameters: int | None
    macs: int | None
    latency_ms: float
    alone_ms: float

    def figures(self) -> Figures:
        return {"parameters": self.parameters, "macs": self.macs, "latency_ms": self.latency_ms}

    def of_one(self, count: int) -> Figures:
        """The average cost of one of `count` modules alone."""
        parameters, macs = (_share(number, count) for number in (self.parameters, self.macs))
        return {"parameters": parameters, "macs": macs, "latency_ms": self.alone_ms / count}


def costs(models: Sequence[Model], budget: float = BUDGET) -> list[Cost]:
    """The cost of each model: of running all its modules on the CPU, each on its own input.

    Modules run one after the other or, if they share an architecture and an input, in one batch, whichever is faster,
    as a server of an ensemble would run them. The models are timed in turns, and the shortest time of each counts,
    since other work on the machine only adds time.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            counted = [_counted(*model) for model in models]
            ways = [_ways(*model) for model in models]
            timed = iter(_shortest([way for several in ways for way in several], budget * len(models)))
    finally:
        torch.set_num_threads(threads)
    found = []
    for (parameters, macs), several in zip(counted, ways, strict=True):
        alone, *together = [next(timed) for _ in several]
        found.append(Cost(parameters, macs, min(together, default=alone), alone))
    return found


def _ways(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> list[Callable[[], float]]:
    """Timers, in milliseconds: the sum over modules that run alone, then each way to run several modules together."""
    alone = partial(_timed_alone, modules, inputs)
    if len(modules) == 1:
        return [alone]
    return [alone, *(partial(_timed, *way) for way in [(modules, inputs), *batch_of(modules, inputs)])]


def _share(number: int | None, count: int) -> float | None:
    """`number` ÷ `count`, as an int if it is whole; None if unknown."""
    if number is None:
        return None
    return number // count if number % count == 0 else number / count


def cost(modules: Sequence[nn.Module], inputs: Sequence[Tensor], budget: float = BUDGET) -> Cost:
    """The cost of a single model; see `costs`."""
    return costs([(modules, inputs)], budget)[0]


@torch.no_grad()
def batch_of(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> list[Model]:
    """The modules as a single one that runs them in one batch with equal outputs; empty if that is impossible."""
    first = inputs[0]
    size = sum(p.numel() for module in modules for p in module.parameters())  # 0 if another runtime runs them
    if len(modules) < 2 or not 0 < size <= LARGEST or not one_architecture(modules):
        return []
    if not all(torch.equal(x, first) for x in inputs):
        return []
    rows = first.expand(len(modules), *first.shape[1:])
    try:
        batch = in_one_batch(modules)
        if batch is None:
            return []
        together, apart = batch(rows.clone()), torch.cat([module(first.clone()) for module in modules])
        same = bool(torch.isclose(together, apart, rtol=0, atol=APART * float(apart.abs().max())).all())
    except Exception:  # members are arbitrary code, not made for this
        return []
    return [([batch], [rows])] if same else []


def _shortest(ways: Sequence[Callable[[], float]], most: float) -> list[float]:
    """The shortest time of each timer, in milliseconds.

    Args:
        ways: timers; see `_ways`.
        most: seconds for all of them; at least three rounds are made.
    """
    rounds: list[list[float]] = []
    begun = time.perf_counter()
    while ways and (len(rounds) < 3 or (len(rounds) < REPEATS and time.perf_counter() - begun < most)):
        rounds.append([way() for way in ways])
    return [min(times) for times in zip(*rounds, strict=True)]


def _counted(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> tuple[int | None, int | None]:
    """Parameters and multiply-accumulates of all modules; None if another runtime runs one of them."""
    if any(isinstance(module, Elsewhere) for module in modules):
        for module, x in zip(modules, inputs, strict=True):
            module(x.clone())  # warms up, as counting does for other modules
        return None, None
    macs = 0
    for module, x in zip(modules, inputs, strict=True):
        with _unfused(), FlopCounterMode(display=False, custom_mapping=dict(BESIDE)) as counter:
            module(x.clone())
        macs += counter.get_total_flops() // 2
    return sum(p.numel() for module in modules for p in module.parameters()), macs


def _timed(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> float:
    """Milliseconds of running the modules one after the other.

    A module in service finds its weights in the caches, so a first pass is not timed, unless it takes so long that
    caches make no difference.
    """
    for _ in range(2):
        own = [x.clone() for x in inputs]  # modules may work in place
        started = time.perf_counter()
        for module, x in zip(modules, own, strict=True):
            module(x)
        taken = 1000 * (time.perf_counter() - started)
        if taken > LONG:
            break
    return taken


def _timed_alone(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> float:
    return sum(_timed([module], [x]) for module, x in zip(modules, inputs, strict=True))


@contextmanager
def _unfused() -> Iterator[None]:
    """Run attention and recurrence as plain products, since the counter takes fused CPU kernels to be free."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # torch types it as its descriptor
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.enabled = onednn
