"""Decide which segments are archived next. Pure: no clock, no disk, no logging."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from thermocline.tiers.ledger import Segment

DAY_US = 86_400_000_000


def cutoff_us(now_us: int, *, days: int) -> int:
    """The end of the newest UTC day that is `days` days old: what lies before it may be archived. µs since the epoch."""
    return (now_us // DAY_US - days) * DAY_US


def due_segments(
    segments: Sequence[Segment], before_us: int, *, rest_rows_max: int, rows_max: int, taken: Collection[str] = ()
) -> list[Segment]:
    """The inputs of the next batch, oldest first; [] when nothing is due.

    before_us      events with an earlier timestamp are due
    rest_rows_max  a segment with younger events too is taken only if it has no more rows than this, because those are written
                   again; a larger one waits until merges have split it by day
    rows_max       of all inputs, about: at least one segment, whatever its size
    taken          ids of segments that must not be used
    """
    due = [
        one
        for one in segments
        if one.timestamp_min_us < before_us
        and one.segment_id not in taken
        and (one.timestamp_max_us < before_us or one.rows <= rest_rows_max)
    ]
    due.sort(key=lambda one: (one.timestamp_min_us // DAY_US, one.conversation_min, one.segment_id))
    chosen: list[Segment] = []
    rows = 0
    for one in due:
        if chosen and rows + one.rows > rows_max:
            break
        chosen.append(one)
        rows += one.rows
    return chosen
