"""Moving a batch of inputs, each along the gradient of one member, as drawn by the views `ods` and `confods`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ensemble_distill.data.push import Push
from ensemble_distill.data.rows import as_taken
from ensemble_distill.data.source import Array, Kind
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.tasks.checks.logits import refuse_not_finite
from ensemble_distill.teachers.answering import Answering


def moved(
    x: Array,
    pushes: Sequence[Push],
    kind: Kind,
    members: Sequence[Answering],
    device: torch.device,
    split: str,
    rows: Sequence[int],
) -> Array:
    """Inputs x (B, C, H, W), each moved by its own push; pixels stay in [0, 1].

    Args:
        members: the members that pushes draw from, in the order that the draws count.
        split, rows: which inputs these are, for messages.

    Raises:
        EdistillError: a member fails, its output does not follow from its input by gradients, or a gradient is not
            finite.
    """
    return all_moved([(x, pushes, members)], kind, device, split, rows)[0]


def all_moved(
    views: Sequence[tuple[Array, Sequence[Push], Sequence[Answering]]],
    kind: Kind,
    device: torch.device,
    split: str,
    rows: Sequence[int],
) -> list[Array]:
    """Inputs of several views of these rows, each moved along the gradient of the member that its push names.

    Each member moves its inputs of all views before the next one does, so that not all members need be in memory.

    Args:
        views: for each view its inputs, their pushes, and the members that these draw from.
    """
    results = [x.copy() for x, _, _ in views]
    asked = [[members[push.member(len(members))] for push in pushes] for _, pushes, members in views]
    for member in dict.fromkeys(one for _, _, members in views for one in members):
        for result, of_rows, (x, pushes, _) in zip(results, asked, views, strict=True):
            at = [place for place, one in enumerate(of_rows) if one is member]
            if at:
                mine, own = [pushes[place] for place in at], [rows[place] for place in at]
                result[at] = _along(member, x[at], mine, kind, device, split, own)
    return results


def _along(
    member: Answering,
    x: Array,
    pushes: Sequence[Push],
    kind: Kind,
    device: torch.device,
    split: str,
    rows: Sequence[int],
) -> Array:
    """Inputs that are all moved along the gradient of one member."""
    to = member.member.preprocessing
    shown = np.stack([as_taken(one, kind, to) for one in x])
    direction, confidence = gradient(member, torch.from_numpy(shown).to(device), pushes, split, rows)
    if kind == "pixels" and isinstance(to, Preprocessing):
        direction /= np.array(to.std)[:, None, None]  # from normalized inputs to those in [0, 1]
    norm = np.sqrt((direction**2).sum(axis=tuple(range(1, x.ndim)), keepdims=True))
    steps = np.array([p.step * (c if p.by_confidence else 1) for p, c in zip(pushes, confidence, strict=True)])
    size = steps.reshape(norm.shape) * math.sqrt(x[0].size)
    there: Array = x + size * np.divide(direction, norm, out=np.zeros_like(direction), where=norm > 0)
    return there.clip(0, 1) if kind == "pixels" else there


def gradient(
    asked: Answering, x: Tensor, pushes: Sequence[Push], split: str, rows: Sequence[int]
) -> tuple[Array, Array]:
    """∇_x w·softmax(z), up to a positive factor per row, in float64 and x's shape; and max softmax(z), (B,).

    The softmax of a confident member has gradients that vanish in single precision. Only their direction counts, so the
    gradient with respect to the logits is computed in float64 and scaled to unit length before it goes back through the
    network.

    Args:
        x: inputs (B, C, H, W) as the member takes them.
        pushes: one per row; they draw w for the classes of the data.

    Raises:
        EdistillError: see `moved`.
    """
    where, member, module = f"at row {rows[0]} of {split}", asked.member, asked.module
    assert module is not None  # see `refuse_no_gradients`
    module.requires_grad_(False)  # gradients of the inputs only
    leaf = x.requires_grad_()
    try:
        with torch.enable_grad():
            raw = module(leaf.clone())  # a module may write into its input, which torch forbids for a leaf
            values = asked.task.joined(raw, len(x), member).double().cpu().numpy()
            raw = raw.to_dense() if raw.is_sparse else raw
            refuse_not_finite(values, member, split, rows)
            back, confidence = _of_outputs(values, member, pushes)
            found = (
                torch.autograd.grad(raw, leaf, torch.from_numpy(back).to(raw), allow_unused=True)[0]
                if raw.requires_grad
                else None
            )
    except EdistillError:
        raise
    except torch.OutOfMemoryError as error:
        raise EdistillError(
            f"Member {member.name} runs out of memory at its gradient {where} with {len(x)} rows at once. Lower "
            "cache.batch-size."
        ) from error
    except Exception as error:  # the module is anyone's code
        raise _no_gradient(member, where, str(error), "") from error
    if found is None:
        how = " (no .detach(), no numpy, no torch.no_grad)"
        raise _no_gradient(member, where, "its output does not follow from its input in torch", how)
    slopes = found.double().cpu().numpy() if x.device.type != "mps" else found.cpu().double().numpy()
    refuse_not_finite(slopes.reshape(len(slopes), -1), member, split, rows)
    return slopes, confidence


def _no_gradient(member: Member, where: str, reason: str, how: str) -> EdistillError:
    return EdistillError(
        f"Member {member.name} gives no gradient {where}: {reason}. The views ods and confods need one of every "
        f"member: take them out of views.transform, or fix its module{how}."
    )


def _of_outputs(values: Array, member: Member, pushes: Sequence[Push]) -> tuple[Array, Array]:
    """The vector to send back through a member from its raw outputs (B, K), and its largest probabilities (B,)."""
    weights = np.stack([push.weights(values.shape[1]) for push in pushes])
    if member.class_order is not None:
        weights = weights[:, list(member.class_order)]
    # probabilities sum to 1, so w may be relative to its value at the likeliest class. Without this, only rounding
    # error would be left near p = 1
    u = weights - np.take_along_axis(weights, values.argmax(axis=1)[:, None], axis=1)
    if member.output == "probabilities":
        return u, values.max(axis=1)
    p = np.exp(values - values.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    slope = p * (u - (u * p).sum(axis=1, keepdims=True))
    norm = np.sqrt((slope**2).sum(axis=1, keepdims=True))
    return np.divide(slope, norm, out=np.zeros_like(slope), where=norm > 0), p.max(axis=1)
