"""Which few of many classes a record keeps, so that what is summed over them is unbiased for every member.

From the members' mean q, n different ids are drawn without replacement: the likeliest class always, and any other class
c with the probability π_c = min(1, q_c ÷ t), where t makes these sum to n. An id that was drawn counts 1 ÷ π_c of what
a member says of it, so Σ over ids of p_m(c) f(c) ÷ π_c has the expectation Σ_c p_m(c) f(c), for every member and any f.

Independent draws from q with replacement, counted, are unbiased too (Anshumann et al. 2025, arXiv:2503.16870). They
spend most of a record on repeats of the likeliest class: 50 draws are about 12 ids. These inclusion probabilities have,
of all with n ids, the least variance of q itself (Fearnhead and Clifford 2003); systematic sampling has exactly these.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.runtime.keys import uniform_row

Numbers = NDArray[np.float64]
LEAST = 1e-30  # of q: a class that all members say is impossible can be drawn still, for one that comes later


def thresholds(q: Numbers, n: int) -> Numbers:
    """t (L,) of distributions q (L, K), for 2 ≤ n < K."""
    classes = q.shape[-1]
    parted = np.partition(q, classes - n, axis=-1)
    top = -np.sort(-parted[:, classes - n :], axis=-1)  # descending
    rest = parted[:, : classes - n].sum(-1, keepdims=True)
    certain = np.arange(1, n)  # so many of the likeliest are certain
    # what is left behind each of them: summed from its small end, which a difference from 1 would round away
    behind = (rest + np.cumsum(top[:, ::-1], axis=-1))[:, ::-1][:, 1:]
    t = behind / (n - certain)
    first = (top[:, 1:] <= t).argmax(-1)  # of the counts for which the next class is not certain: the last always is
    chosen: Numbers = np.take_along_axis(t, first[:, None], axis=-1)[:, 0]
    return chosen


def inclusion(q: Numbers, n: int) -> Numbers:
    """π (L, K), which sum to n."""
    pi = np.minimum(1.0, q / thresholds(q, n)[:, None])
    np.put_along_axis(pi, q.argmax(-1)[:, None], 1.0, axis=-1)
    return pi


def drawn_ids(q: Numbers, n: int, uniforms: Numbers) -> NDArray[np.int64]:
    """n different ids (L, n) of each of the distributions q (L, K), the likeliest first and the others in their order.

    Args:
        uniforms: (L,) in [0, 1), one a distribution.
    """
    pi, first = inclusion(q, n), q.argmax(-1)
    ids = np.empty((len(q), n), np.int64)
    ids[:, 0] = first
    np.put_along_axis(pi, first[:, None], 0.0, axis=-1)
    sums = pi.cumsum(-1)
    for at, (u, summed) in enumerate(zip(uniforms, sums, strict=True)):
        # points one apart fall at most once into a class, whose probability is its share of the line
        points = (u + np.arange(n - 1)) * (summed[-1] / (n - 1))
        ids[at, 1:] = _different(np.searchsorted(summed, points, side="right"), pi[at], int(first[at]))
    return ids


def _different(found: NDArray[np.int64], pi: Numbers, first: int) -> NDArray[np.int64]:
    """The ids, or, where rounding at the ends of the line made two of them one, others in place of the repeats."""
    kept = np.unique(found[(found < len(pi)) & (found != first)])
    if len(kept) == len(found):
        return found
    spare = [c for c in np.argsort(-pi, kind="stable") if c != first and c not in kept]
    return np.sort(np.concatenate([kept, spare[: len(found) - len(kept)]]))


def uniforms_of(seed: int, split: str, view: int, row: int, positions: int) -> Numbers:
    """What the ids of each position of a row are drawn by, (L,)."""
    return uniform_row(positions, "ids", seed, split, view, row)


def probabilities(logits: NDArray[np.float32]) -> Numbers:
    """(…, K) in double precision."""
    values = logits.astype(np.float64)
    values -= values.max(-1, keepdims=True)
    np.exp(values, out=values)
    values /= values.sum(-1, keepdims=True)
    return values


def pooled(each: Numbers) -> Numbers:
    """q (…, K) of members' probabilities (M, …, K); nothing is impossible."""
    q: Numbers = np.maximum(each.mean(0), LEAST)
    return q


def ratios(p: Numbers, ids: NDArray[np.int64], q: Numbers) -> Numbers:
    """What a `sampled` record holds of a member's p (L, K): p ÷ q at the ids (L, n), whose q is given; then max p."""
    at = np.take_along_axis(p, ids, axis=-1) / q
    return np.concatenate([at, p.max(-1, keepdims=True)], axis=-1)


def by_position(answers: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, K) as (B, 1, K); (B, L, K) as it is."""
    return answers[:, None] if answers.ndim == 2 else answers


def unpacked(
    values: NDArray[np.float32],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """What a `drawn` record holds, (B, 2n + 1) or (B, L, 2n + 1), as ids and q (B, L, n) and t (B, L)."""
    values = by_position(values)
    n = values.shape[-1] // 2
    q, t = values[..., n : 2 * n].astype(np.float64), values[..., -1].astype(np.float64)
    return values[..., :n].astype(np.int64), q, t
