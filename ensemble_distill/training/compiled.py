"""Compiling a student's body with torch, and checking that it still has the gradients of the eager body."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.students.student import Student
from ensemble_distill.training.forward import Forward

# relative error allowed in a parameter's gradient. Reordered float32 sums stay below it, even if rounding flips a ReLU
APART = 0.05
SMALL = 1e-3  # share of the total norm below which a gradient is mere rounding, as for a bias before BatchNorm
Gradients = Mapping[str, Tensor]


def compile_body(student: Student, backend: str) -> None:
    """Have torch compile the body at its first call.

    Parameters, their names and what is saved do not change. The heads, a single matrix product, are not compiled.
    Copies of the student, including its moving average, run eagerly.

    Raises:
        EdistillError: torch has no such backend.
    """
    if backend not in torch.compiler.list_backends(exclude_tags=()):  # include the debugging backends
        known = ", ".join(torch.compiler.list_backends())
        raise EdistillError(
            f"train.torchcompile is {backend!r}, and the backends that torch knows here are {known}. Write one of "
            "these, or leave the key out."
        )
    student.body.compile(backend=backend)


def refuse_other_gradients(student: Student, x: Tensor, forward: Forward) -> None:
    """Raise EdistillError if the gradients of the compiled body differ from those of the eager body.

    Compilers compute some values twice, with different rounding. A maximum may then not be found again, so its gradient
    becomes 0 ÷ 0 or is lost (for `amax`: github.com/pytorch/pytorch/issues/186799). Lower precision is never exact, so
    twice the error of the eager body is allowed on top of `APART`. If the body draws random numbers, a compiler draws
    different ones; its gradients then only have to be finite.

    Args:
        student: in training mode, with a compiled body. Its parameters and buffers, and torch's generators (CPU and
            CUDA), are restored.
        x: rows (B, …) of one step; the body is compiled for this B.
    """
    amp = forward.settings.amp
    exact = replace(forward, settings=forward.settings.model_copy(update={"amp": False})) if amp else forward
    cuda = [forward.device] if forward.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        wanted = _gradients(copy.deepcopy(student), x, exact, seed=0)
        written = _gradients(copy.deepcopy(student), x, forward, seed=0) if amp else wanted
        drawn = _gradients(copy.deepcopy(student), x, forward, seed=1)
        before = {name: buffer.clone() for name, buffer in student.named_buffers()}
        found = _gradients(student, x, forward, seed=0)
        with torch.no_grad():
            for name, buffer in student.named_buffers():
                buffer.copy_(before[name])
    if not found or not _all_finite(written):
        return  # the loss will show it
    least = SMALL * float(torch.stack([one.norm() for one in wanted.values()]).norm())
    size = {name: max(float(one.norm()), least) for name, one in wanted.items()}
    # compared with a tolerance: on CUDA rounding differs from run to run
    random = any(float((drawn[name] - written[name]).norm()) > APART * size[name] for name in size)
    for name, gradient in found.items():
        allowed = APART * size[name] + 2 * float((written[name] - wanted[name]).norm())
        apart = float((gradient - wanted[name]).norm())
        if not math.isfinite(apart) or (apart > allowed and not random):
            far = f", and is {apart:.3g} away from it" if math.isfinite(apart) else ""
            raise EdistillError(
                f"With train.torchcompile = {forward.settings.torchcompile!r} the student's body learns otherwise than "
                f"as it is written: the gradient of {name} has norm {gradient.norm():.3g} in place of "
                f"{wanted[name].norm():.3g}{far}. Leave out train.torchcompile, or write the body otherwise: torch "
                "errs in x.amax() behind a normalization, not in F.adaptive_max_pool2d(x, 1)."
            )


def _gradients(student: Student, x: Tensor, forward: Forward, seed: int) -> Gradients:
    """Gradients of a fixed random combination of the features (B, ...), by parameter name.

    A parameter without a gradient gets zeros. The student's own gradients are cleared.
    """
    torch.manual_seed(seed)
    features = forward.features(student, x)
    if features.requires_grad:
        # weights differ by row: a sum that a normalization holds constant over rows would have no gradient
        mix = torch.randn(features.shape, generator=torch.Generator().manual_seed(0)).to(features.device)
        (features * mix).sum().backward()  # type: ignore[no-untyped-call]
    learned = {name: one for name, one in student.body.named_parameters() if one.requires_grad}
    found = {name: torch.zeros_like(one) if one.grad is None else one.grad for name, one in learned.items()}
    student.zero_grad(set_to_none=True)
    return found


def _all_finite(gradients: Gradients) -> bool:
    return all(bool(torch.isfinite(one).all()) for one in gradients.values())
