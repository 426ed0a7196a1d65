"""A body that torch compiles: it has to learn as it is written."""

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

APART = 0.05  # of a parameter's gradient: float32 in another order stays below, since a rounded input may pass a ReLU
SMALL = 1e-3  # of the norm of all gradients: of parameters below it, as of a bias before BatchNorm, rounding is all
Gradients = Mapping[str, Tensor]


def compile_body(student: Student, backend: str) -> None:
    """Have the body compiled when it is first called. Its parameters, their names and what is saved stay as they are;
    heads are one matrix product, and copies of the student, its moving average too, run as they were written.

    Raises:
        EdistillError: torch knows no such backend.
    """
    if backend not in torch.compiler.list_backends(exclude_tags=()):  # those for debugging, too
        known = ", ".join(torch.compiler.list_backends())
        raise EdistillError(
            f"train.torchcompile is {backend!r}, and the backends that torch knows here are {known}. Write one of "
            "these, or leave the key out."
        )
    student.body.compile(backend=backend)


def refuse_other_gradients(student: Student, x: Tensor, forward: Forward) -> None:
    """Raise EdistillError where a compiled body has other gradients than the body as it is written.

    Compilers compute some values twice, in ways that round differently: what was the largest value is not found again,
    and its gradient is 0 ÷ 0 or lost (of `amax`, github.com/pytorch/pytorch/issues/186799). In lower precision nothing
    is exact, and twice the error of the body as written is allowed beside `APART`. Of a body that draws random numbers,
    compilers draw others; its gradients have to be finite.

    Args:
        student: in training mode, its body compiled. Parameters, buffers and torch's generators (on a CPU and CUDA) are
            left as they were.
        x: rows (B, …) of a step, whose number the body is compiled for.
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
        return  # the loss will tell
    least = SMALL * float(torch.stack([one.norm() for one in wanted.values()]).norm())
    size = {name: max(float(one.norm()), least) for name, one in wanted.items()}
    # by more than rounding, which on CUDA differs from run to run
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
    """Of a fixed mix of features (B, ...), by the parameter, 0 of one that has none; those of the student are left
    unset."""
    torch.manual_seed(seed)
    features = forward.features(student, x)
    if features.requires_grad:
        # another mix for each row: whatever a normalization makes equal over rows has no gradient
        mix = torch.randn(features.shape, generator=torch.Generator().manual_seed(0)).to(features.device)
        (features * mix).sum().backward()  # type: ignore[no-untyped-call]
    learned = {name: one for name, one in student.body.named_parameters() if one.requires_grad}
    found = {name: torch.zeros_like(one) if one.grad is None else one.grad for name, one in learned.items()}
    student.zero_grad(set_to_none=True)
    return found


def _all_finite(gradients: Gradients) -> bool:
    return all(bool(torch.isfinite(one).all()) for one in gradients.values())
