"""Equal parts of whole conversations."""

from __future__ import annotations

import random

import pytest

from thermocline.tiers.merge_split import equal_ranges


def sums(weights: list[float]) -> list[float]:
    ranges = equal_ranges(weights)
    assert [first for first, _ in ranges] == [0, *(last for _, last in ranges[:-1])]
    assert ranges[-1][1] == len(weights)
    return [sum(weights[first:last]) for first, last in ranges]


def test_what_is_evenly_spread_becomes_equal_parts() -> None:
    assert sums([0.01] * 250) == pytest.approx([0.84, 0.83, 0.83], abs=0.011)


def test_what_fits_stays_together() -> None:
    assert equal_ranges([0.5, 0.5]) == [(0, 2)]
    assert equal_ranges([0.2]) == [(0, 1)]


def test_one_conversation_beyond_the_limit_stays_whole_and_alone() -> None:
    assert equal_ranges([0.4, 2.5, 0.4]) == [(0, 1), (1, 2), (2, 3)]
    assert equal_ranges([3.0]) == [(0, 1)]


@pytest.mark.parametrize("seed", range(200))
def test_no_part_of_several_conversations_passes_the_limit(seed: int) -> None:
    rng = random.Random(seed)
    weights = [rng.random() * rng.choice([0.01, 0.1, 1.2]) for _ in range(rng.randrange(1, 200))]
    parts = equal_ranges(weights)
    assert [first for first, _ in parts] == [0, *(last for _, last in parts[:-1])]
    assert parts[-1][1] == len(weights)
    assert all(last - first == 1 or sum(weights[first:last]) <= 1 + 1e-6 for first, last in parts)
    assert len(parts) <= 2 * sum(weights) + 2
