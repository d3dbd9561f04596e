"""What counts as growth in a soak."""

from __future__ import annotations

import random

import pytest

from tests.soak.flat import Bound, bound_of, growth, judge
from tests.soak.sample import BOUNDS

BOUND = Bound(prefix="rss ", share=0.1, slack=5)


def grew(series: list[float], bound: Bound = BOUND, *, days: float = 0) -> bool:
    return growth(series, bound, days=days).grew


def test_what_fills_up_and_stays_did_not_grow() -> None:
    assert not grew([float(min(3 * at, 100)) for at in range(90)])


def test_what_rises_all_the_time_grew() -> None:
    assert grew([float(at) for at in range(90)])


def test_what_rises_in_the_last_third_only_grew() -> None:
    assert grew([100.0] * 60 + [100.0 + 2 * at for at in range(30)])


def test_a_saw_did_not_grow() -> None:
    assert not grew([100.0 + at % 13 * 8 for at in range(180)])


@pytest.mark.parametrize("seed", range(20))
def test_noise_did_not_grow_and_a_leak_in_noise_did(seed: int) -> None:
    dice = random.Random(seed)
    noise = [100 + dice.uniform(-20, 20) for _ in range(180)]
    assert not grew(noise)
    assert grew([value + at * 0.5 for at, value in enumerate(noise)])


def test_a_peak_did_not_grow() -> None:
    assert not grew([100.0] * 80 + [10_000.0] * 3 + [100.0] * 7)


def test_what_grows_by_the_day_is_held_to_what_a_day_may_bring() -> None:
    by_day = Bound(prefix="rows ", slack=0, per_day=3)
    assert not grew([2.0 * at for at in range(90)], by_day, days=30)
    assert grew([4.0 * at for at in range(90)], by_day, days=30)


def test_every_series_is_judged_and_one_without_a_bound_is_an_error() -> None:
    found = judge([{"rss worker": 1.0}, *[{"rss worker": 1.0, "fds worker": 3.0}] * 8], BOUNDS, days=1)
    assert [(name, one.grew) for name, one in found.items()] == [("fds worker", False), ("rss worker", False)]
    with pytest.raises(AssertionError, match="no bound"):
        judge([{"what is this": 1.0}] * 9, BOUNDS, days=1)


def test_the_longest_prefix_counts() -> None:
    assert bound_of("files cold/rollup_hourly", BOUNDS).per_day is not None
    assert bound_of("files cold/events", BOUNDS).per_day is None
