"""Which segments an archive batch takes."""

from __future__ import annotations

import msgspec

from tests.segments import segment
from thermocline.archiver.archive_plan import DAY_US, cutoff_us, due_segments
from thermocline.tiers.ledger import Segment

BEFORE_US = 10 * DAY_US


def made(number: int, day: int, *, days: int = 1, rows: int = 100) -> Segment:
    """A segment with events from the beginning of that day to the end of the last of so many."""
    base = segment(rows=rows, segment_id=f"s{number}")
    return msgspec.structs.replace(base, timestamp_min_us=day * DAY_US, timestamp_max_us=(day + days) * DAY_US - 1)


def due(segments: list[Segment], *, rest_rows_max: int = 0, rows_max: int = 1000, taken: tuple[str, ...] = ()) -> list[str]:
    found = due_segments(segments, BEFORE_US, rest_rows_max=rest_rows_max, rows_max=rows_max, taken=taken)
    return [one.segment_id for one in found]


def test_days_are_due_when_they_are_over_for_as_long_as_the_window() -> None:
    now_us = 10 * DAY_US + 5
    assert cutoff_us(now_us, days=7) == 3 * DAY_US
    assert cutoff_us(10 * DAY_US - 1, days=7) == 2 * DAY_US


def test_old_segments_are_due_and_the_oldest_comes_first() -> None:
    assert due([made(1, 9), made(2, 3), made(3, 10)]) == ["s2", "s1"]
    assert due([made(3, 10)]) == due([]) == []


def test_a_segment_with_young_events_too_is_taken_when_it_is_small() -> None:
    mixed = made(1, 9, days=2)
    assert due([mixed], rest_rows_max=100) == ["s1"]
    assert due([mixed], rest_rows_max=99) == []


def test_a_batch_ends_before_the_segment_that_passes_its_rows_and_takes_one_of_any_size() -> None:
    several = [made(1, 1, rows=600), made(2, 2, rows=400), made(3, 3, rows=1)]
    assert due(several, rows_max=1000) == ["s1", "s2"]
    assert due(several, rows_max=999) == ["s1"]
    assert due(several, rows_max=1) == ["s1"]


def test_a_segment_that_is_set_aside_is_not_taken() -> None:
    assert due([made(1, 1), made(2, 2)], taken=("s1",)) == ["s2"]
