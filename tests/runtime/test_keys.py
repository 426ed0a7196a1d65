"""Keyed random numbers: streams that can never change silently, distributed as they say, and pure."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from ensemble_distill.runtime.keys import normals, permutation, uniforms

# Written down from the first release: caches on disk were made from these streams.
PINNED_UNIFORMS = {
    (1,): (0.7058483037031942,),
    (3, "a", 1): (0.2952834002872704, 0.06843149520157399, 0.12061601920289589),
}
PINNED_NORMALS = [0.48636785, 0.4575600, -1.9222313, -0.1253746, -0.7804079]
PINNED_PERMUTATION = [9, 1, 7, 0, 8, 5, 4, 2, 6, 3]


@pytest.mark.parametrize("call", PINNED_UNIFORMS)
def test_uniforms_are_pinned(call: tuple[int, *tuple[int | str, ...]]) -> None:
    assert uniforms(*call) == PINNED_UNIFORMS[call]


def test_eight_uniforms_is_the_most_and_keys_may_be_any_text_or_number() -> None:
    assert uniforms(8, 0, -1, "é")[7] == 0.10742108492677493
    with pytest.raises(ValueError, match="64 bytes"):
        uniforms(9, "a")


def test_normals_are_pinned() -> None:
    # the words are exact everywhere; cosine and logarithm may differ in the last bit from one libm to another
    assert_allclose(normals((5,), "noise", 7), PINNED_NORMALS, rtol=1e-6)
    assert_allclose(normals((2, 2), 0), [[-0.8732970, 0.2643654], [-1.0225648, 0.7025276]], rtol=1e-6)


def test_permutations_are_pinned() -> None:
    assert permutation(10, "rows", 3).tolist() == PINNED_PERMUTATION


def test_uniforms_are_uniform_over_keys_and_over_places() -> None:
    drawn = np.array([uniforms(4, "view", row) for row in range(2000)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    for column in drawn.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(np.c_[drawn[:-1], drawn[1:]].T)  # between places, and between neighboring keys
    assert np.abs(correlation - np.eye(8)).max() < 0.1


def test_normals_are_standard_and_independent() -> None:
    x = normals((200, 501), "moments").astype(np.float64)
    count = x.size
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 4 * np.sqrt(variance / count)
    assert stats.kstest(x.ravel()[:20_000], "norm").pvalue > 1e-3
    cosines, sines = np.split(x.ravel()[: count // 2 * 2], 2)  # the two halves of Box-Muller share their radius
    assert abs((cosines * sines).mean()) < 4 / np.sqrt(count / 2)
    assert abs((x[:, :-1] * x[:, 1:]).mean()) < 4 / np.sqrt(count)


def test_normals_have_the_shape_asked_for() -> None:
    for shape in [(), (1,), (0, 3), (3, 5, 7)]:
        drawn = normals(shape, "shape")
        assert drawn.shape == shape
        assert drawn.dtype == np.float32
        assert np.isfinite(drawn).all()


def test_a_permutation_is_one() -> None:
    for count in [0, 1, 2, 1000]:
        drawn = permutation(count, "rows")
        assert drawn.dtype == np.int64
        assert_array_equal(np.sort(drawn), np.arange(count))


def test_every_permutation_is_as_likely() -> None:
    counts = Counter(tuple(permutation(4, "epoch", key).tolist()) for key in range(4800))
    assert set(counts) == set(itertools.permutations(range(4)))
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_draws_depend_on_the_key_and_on_nothing_else() -> None:
    def draw(key: int) -> tuple[object, ...]:
        return uniforms(3, "k", key), normals((5,), "k", key).tobytes(), permutation(9, "k", key).tobytes()

    first = {key: draw(key) for key in range(20)}
    assert len(set(first.values())) == 20
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    torch.manual_seed(1)
    assert {key: draw(key) for key in reversed(range(20))} == first
