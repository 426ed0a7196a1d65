"""Which few of many classes a record keeps, so that sums over them are unbiased for every member.

From the members' mean q, n different ids are drawn without replacement: always the likeliest class, and any other class
c with the probability π_c = min(1, q_c ÷ t), where t makes these sum to n. A drawn id counts 1 ÷ π_c times what a
member says of it, so Σ over ids of p_m(c) f(c) ÷ π_c has the expectation Σ_c p_m(c) f(c), for every member and any f.

Independent draws from q with replacement, counted, are unbiased too (Anshumann et al. 2025, arXiv:2503.16870), but
spend most of a record on repeats of the likeliest class: 50 draws give about 12 ids. Among all schemes with n ids,
these inclusion probabilities have the least variance for q itself (Fearnhead and Clifford 2003); systematic sampling
realizes them exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.runtime.keys import uniform_row

Numbers = NDArray[np.float64]
LEAST = 1e-30  # minimum q: a class that is impossible to all members can still be drawn, for members added later


def thresholds(q: Numbers, n: int) -> Numbers:
    """t (L,) for distributions q (L, K), with 2 ≤ n < K."""
    classes = q.shape[-1]
    parted = np.partition(q, classes - n, axis=-1)
    top = -np.sort(-parted[:, classes - n :], axis=-1)  # descending
    rest = parted[:, : classes - n].sum(-1, keepdims=True)
    certain = np.arange(1, n)  # candidates for the number of likeliest classes with π = 1
    # the mass that remains after these, summed from its small end: 1 minus their sum would round it away
    behind = (rest + np.cumsum(top[:, ::-1], axis=-1))[:, ::-1][:, 1:]
    t = behind / (n - certain)
    first = (top[:, 1:] <= t).argmax(-1)  # the smallest number after which π ≤ 1, as after the last one
    chosen: Numbers = np.take_along_axis(t, first[:, None], axis=-1)[:, 0]
    return chosen


def inclusion(q: Numbers, n: int) -> Numbers:
    """π (L, K); each row sums to n."""
    pi = np.minimum(1.0, q / thresholds(q, n)[:, None])
    np.put_along_axis(pi, q.argmax(-1)[:, None], 1.0, axis=-1)
    return pi


def drawn_ids(q: Numbers, n: int, uniforms: Numbers) -> NDArray[np.int64]:
    """n different ids (L, n) for each of the distributions q (L, K).

    The likeliest comes first, the others follow in ascending order.

    Args:
        uniforms: (L,) in [0, 1), one per distribution.
    """
    pi, first = inclusion(q, n), q.argmax(-1)
    ids = np.empty((len(q), n), np.int64)
    ids[:, 0] = first
    np.put_along_axis(pi, first[:, None], 0.0, axis=-1)
    sums = pi.cumsum(-1)
    for at, (u, summed) in enumerate(zip(uniforms, sums, strict=True)):
        # points spaced by 1 hit each class at most once, with the probability that is its length on the line
        points = (u + np.arange(n - 1)) * (summed[-1] / (n - 1))
        ids[at, 1:] = _different(np.searchsorted(summed, points, side="right"), pi[at], int(first[at]))
    return ids


def _different(found: NDArray[np.int64], pi: Numbers, first: int) -> NDArray[np.int64]:
    """The ids, with repeats replaced by other ids: rounding at the ends of the line can make two of them equal."""
    kept = np.unique(found[(found < len(pi)) & (found != first)])
    if len(kept) == len(found):
        return found
    spare = [c for c in np.argsort(-pi, kind="stable") if c != first and c not in kept]
    return np.sort(np.concatenate([kept, spare[: len(found) - len(kept)]]))


def uniforms_of(seed: int, split: str, view: int, row: int, positions: int) -> Numbers:
    """The random numbers that the ids of a row's positions are drawn with, (L,)."""
    return uniform_row(positions, "ids", seed, split, view, row)


def probabilities(logits: NDArray[np.float32]) -> Numbers:
    """Softmax of logits (…, K), in double precision."""
    values = logits.astype(np.float64)
    values -= values.max(-1, keepdims=True)
    np.exp(values, out=values)
    values /= values.sum(-1, keepdims=True)
    return values


def pooled(each: Numbers) -> Numbers:
    """q (…, K), the mean of members' probabilities (M, …, K), at least `LEAST`."""
    q: Numbers = np.maximum(each.mean(0), LEAST)
    return q


def ratios(p: Numbers, ids: NDArray[np.int64], q: Numbers) -> Numbers:
    """A member's values in a `sampled` record: p ÷ q at the ids, then max p, (L, n + 1).

    Args:
        p: the member's probabilities, (L, K).
        ids: (L, n).
        q: mean probabilities at these ids, (L, n).
    """
    at = np.take_along_axis(p, ids, axis=-1) / q
    return np.concatenate([at, p.max(-1, keepdims=True)], axis=-1)


def by_position(answers: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, K) as (B, 1, K); (B, L, K) as it is."""
    return answers[:, None] if answers.ndim == 2 else answers


def unpacked(
    values: NDArray[np.float32],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Ids (B, L, n), q (B, L, n) and t (B, L) from the values of a `drawn` record, (B, 2n + 1) or (B, L, 2n + 1)."""
    values = by_position(values)
    n = values.shape[-1] // 2
    q, t = values[..., n : 2 * n].astype(np.float64), values[..., -1].astype(np.float64)
    return values[..., :n].astype(np.int64), q, t
