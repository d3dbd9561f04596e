"""Each rule of the plan, one segment list at a time."""

from __future__ import annotations

import random

import msgspec
import pytest

from tests.segments import segment
from thermocline.archiver.plan import INPUTS_MAX, Merge, due_merges, is_closed, is_full, settle_due
from thermocline.config import WarmSettings
from thermocline.tiers.ledger import Segment

SETTINGS = WarmSettings(fan_in=4, segment_rows_max=1000, segment_bytes_max=1 << 20)  # type: ignore[call-arg]
DAY = "2026-11-13"
NEXT_DAY = "2026-11-14"
DAY_END_US = 1_794_614_400_000_000
HOUR_US = 3_600_000_000
DURING_US = DAY_END_US - HOUR_US
CLOSED_US = DAY_END_US + HOUR_US


def made(level: int, day: str | None = None, *, rows: int = 100, number: int = 0, **more: object) -> Segment:
    base = segment(rows=rows, level=level, day=day, segment_id=f"{number:04d}-{level}-{day}")
    return msgspec.structs.replace(base, **more)


def several(count: int, level: int, day: str | None = None, *, first: int = 0, **more: object) -> list[Segment]:
    return [made(level, day, number=first + number, **more) for number in range(count)]  # type: ignore[arg-type]


def plan(segments: list[Segment], now_us: int = DURING_US, **more: int) -> list[Merge]:
    return due_merges(segments, now_us, SETTINGS, **more)


def test_nothing_is_due_in_an_empty_store_or_below_the_fan_in() -> None:
    assert plan([]) == []
    assert plan(several(3, 0) + several(3, 1, first=10) + several(3, 2, first=20)) == []


def test_enough_of_level_0_becomes_level_1_whatever_their_days() -> None:
    segments = [*several(2, 0), *several(2, 0, DAY, first=2)]
    assert plan(segments) == [Merge(inputs=tuple(segments), level=1)]


def test_level_0_can_be_merged_earlier_on_demand_but_never_one_alone() -> None:
    assert plan(several(1, 0), level0_min=2) == []
    assert len(plan(several(2, 0), level0_min=2)[0].inputs) == 2


def test_large_segments_of_level_0_merge_all_the_same() -> None:
    assert len(plan(several(4, 0, rows=900))[0].inputs) == 4


@pytest.mark.parametrize("level", [1, 2])
def test_a_level_that_is_crowded_merges_its_largest_group(level: int) -> None:
    mixed, of_day = several(3, level), several(2, level, DAY, first=10)
    assert plan(mixed + of_day) == [Merge(inputs=tuple(mixed), level=level + 1)]


def test_groups_of_one_are_not_crowded_however_many_days_there_are() -> None:
    assert plan([made(1, f"2026-10-{day:02d}", number=day) for day in range(1, 31)], CLOSED_US) == []


def test_the_last_level_is_final() -> None:
    assert plan(several(50, 3) + several(50, 3, DAY, first=50), CLOSED_US) == []


@pytest.mark.parametrize("large", [{"rows": 500}, {"file_bytes": 1 << 19}, {"content_bytes": 64 << 20}])
def test_full_segments_are_left_alone_by_count(large: dict[str, int]) -> None:
    full = several(20, 1, **large)
    assert all(is_full(one, SETTINGS) for one in full)
    assert plan(full) == []


def test_a_closed_day_is_sealed_with_its_full_segments() -> None:
    segments = [made(1, DAY, number=1), made(1, DAY, number=2), made(2, DAY, number=3, rows=900)]
    assert plan(segments, DURING_US) == []
    assert plan(segments, CLOSED_US) == [Merge(inputs=tuple(segments), level=3)]


def test_a_day_is_closed_an_hour_after_its_end() -> None:
    assert not is_closed(DAY, CLOSED_US - 1, SETTINGS)
    assert is_closed(DAY, CLOSED_US, SETTINGS)


def test_one_segment_alone_is_sealed_already() -> None:
    assert plan([made(1, DAY), made(1, NEXT_DAY, number=1)], CLOSED_US) == []


def test_a_closed_day_that_is_being_filled_waits_until_it_is_quiet() -> None:
    segments = several(2, 1, DAY, created_us=CLOSED_US + HOUR_US)
    assert plan(segments, CLOSED_US + 2 * HOUR_US - 1) == []
    assert len(plan(segments, CLOSED_US + 2 * HOUR_US)) == 1


def test_a_day_sealed_to_the_last_level_is_not_sealed_again_for_stragglers() -> None:
    stragglers = several(2, 1, DAY)
    for final, merges in [
        (made(3, DAY, number=9, created_us=CLOSED_US), 0),
        (made(3, DAY, number=9, created_us=CLOSED_US - 1), 1),
        (made(3, DAY, number=9, created_us=CLOSED_US, rows=900), 1),
    ]:
        assert len(plan([*stragglers, final], CLOSED_US + HOUR_US)) == merges


def test_the_parts_of_one_merge_are_not_merged_again_just_because_there_are_two() -> None:
    ends = [("a", "f"), ("g", "m"), ("n", "z")]
    parts = [
        made(2, DAY, rows=900, number=number, conversation_min=low, conversation_max=high)
        for number, (low, high) in enumerate(ends)
    ]
    assert plan(parts, CLOSED_US) == []
    late = made(1, DAY, number=7, rows=900, conversation_min="e", conversation_max="g")
    assert len(plan([*parts, late], CLOSED_US)[0].inputs) == 4
    small = [msgspec.structs.replace(part, rows=10) for part in parts[:2]]
    assert len(plan(small, CLOSED_US)[0].inputs) == 2


def test_mixed_segments_are_never_sealed() -> None:
    assert plan(several(3, 1), CLOSED_US) == []


def test_a_merge_writes_a_bounded_number_of_rows_and_bytes() -> None:
    for size in ({"rows": 900}, {"file_bytes": 900_000}):
        merges = plan(several(10, 0, **size))
        assert [len(merge.inputs) for merge in merges] == [4, 4, 2]


def test_a_merge_reads_a_bounded_number_of_segments_and_leaves_a_single_rest() -> None:
    merges = plan(several(2 * INPUTS_MAX + 1, 0, rows=1))
    assert [len(merge.inputs) for merge in merges] == [INPUTS_MAX, INPUTS_MAX]


def test_two_segments_beyond_the_bound_still_merge() -> None:
    merges = plan(several(4, 0, rows=9000))
    assert [len(merge.inputs) for merge in merges] == [2, 2]


def test_seal_reads_those_that_share_conversations_together() -> None:
    low = several(4, 2, DAY, rows=900, conversation_min="a", conversation_max="f")
    high = several(4, 2, DAY, first=4, rows=900, conversation_min="g", conversation_max="z")
    mixed_order = [one for pair in zip(low, high, strict=True) for one in pair]
    assert [set(merge.inputs) for merge in plan(mixed_order, CLOSED_US)] == [set(low), set(high)]


def test_no_segment_is_in_two_merges_and_the_order_of_the_list_does_not_matter() -> None:
    segments = [
        *several(9, 0, DAY),
        *several(9, 0, first=20),
        *several(9, 1, DAY, first=40),
        *several(9, 1, first=60),
        *several(9, 2, first=80),
        *several(9, 2, NEXT_DAY, first=100),
    ]
    merges = plan(segments, CLOSED_US)
    used = [one.segment_id for merge in merges for one in merge.inputs]
    assert len(used) == len(set(used))
    shuffled = random.Random(3).sample(segments, len(segments))
    assert plan(shuffled, CLOSED_US) == merges
    assert plan(segments, CLOSED_US, merges_max=2) == merges[:2]


@pytest.mark.parametrize(
    ("events", "size", "wait_s", "due"),
    [
        (0, 0, 10_000, False),
        (20_000, 1, 0, True),
        (19_999, 1, 29, False),
        (5, 16 << 20, 0, True),
        (1000, 1, 30, True),
        (999, 1, 30, False),
        (1, 1, 899, False),
        (1, 1, 900, True),
    ],
)
def test_a_settle_is_due_by_events_bytes_or_age(events: int, size: int, wait_s: float, due: bool) -> None:
    assert settle_due(events, size, wait_s, WarmSettings()) is due  # type: ignore[call-arg]
