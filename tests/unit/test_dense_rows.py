"""Where a vector may hold more than fits, and where not."""

from __future__ import annotations

import random

import numpy as np
import pytest

from thermocline.config import WarmSettings
from thermocline.tiers.dense_rows import dense_bytes, dense_bytes_max

VECTOR = 2048
MAX = 1_000_000


def dense(conversations: list[list[int]], bytes_max: int = MAX) -> list[int]:
    """What `dense_bytes` says of conversations, each given as the sizes of its rows."""
    found = dense_bytes(
        np.array([len(one) for one in conversations]),
        np.array([sum(one) for one in conversations]),
        np.array([max(one) for one in conversations]),
        bytes_max,
    )
    return [int(one) for one in found]


def test_small_rows_are_not_dense_however_many() -> None:
    assert dense([[300] * 5000, [100] * 100_000, [1]]) == [0, 0, 0]


def test_many_large_rows_are_dense_and_what_is_far_from_them_is_not() -> None:
    assert dense([[1] * 5000, [10_000] * 200, [1] * 5000, [1]]) == [5000, 2_000_000, 5000, 0]
    assert dense([[1] * 5000, [1] * 5000, [10_000] * 200, [1] * 5000, [1] * 5000]) == [0, 5000, 2_000_000, 5000, 0]


def test_many_conversations_of_one_large_row_are_dense_together() -> None:
    assert dense([[10_000]] * 100) == [0] * 100
    assert dense([[10_000]] * 101) == [10_000] * 101


@pytest.mark.parametrize("seed", range(6))
def test_no_vector_without_dense_rows_has_more_bytes_than_allowed(seed: int) -> None:
    rng = random.Random(seed)
    conversations = [
        [rng.choice((1, 100, large)) for _ in range(rng.choice((1, 10, 1000, 6000)))]
        for large in (rng.choice((100, 1000, 10_000)) for _ in range(60))
    ]
    found = dense(conversations)
    assert all(one in (0, sum(rows)) for one, rows in zip(found, conversations, strict=True))
    sizes = np.concatenate([np.array(rows) for rows in conversations])
    calm = np.concatenate([np.full(len(rows), one == 0) for one, rows in zip(found, conversations, strict=True)])
    vectors = np.convolve(sizes, np.ones(VECTOR, dtype=np.int64), "valid")
    all_calm = np.convolve(calm, np.ones(VECTOR, dtype=np.int64), "valid") == VECTOR
    assert len(sizes) > VECTOR
    assert (vectors[all_calm] <= MAX).all()
    assert (vectors > MAX).any()


def test_more_memory_allows_more_dense_rows() -> None:
    few, many = (WarmSettings.model_validate({"memory_bytes_max": size << 20}) for size in (1024, 2048))
    assert dense_bytes_max(many) == pytest.approx(2 * dense_bytes_max(few), rel=0.01)
    assert 4 * dense_bytes_max(many) < 2048 << 20
