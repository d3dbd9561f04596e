"""Decide when to settle and which segments to merge next. Pure: no clock, no disk, no logging.

A merge takes its inputs one level up, and level 3 is final, so an event is rewritten at most 3 times at any rate. What merges
together is a *group*: at level 0 all segments, above it the segments of one day, or the mixed ones. Two rules:

count  A level whose small segments are `fan_in` - 1 more than its groups merges its largest groups.
seal   A day that ended a while ago merges what is below level 3, large segments included, so that a conversation's history of
       that day lies in few places.

A segment with half the rows, bytes or dense rows that one may have is *full*: the count rule leaves it alone. Then at any rate
small segments ≤ 3 x (fan_in - 1) + 2 + 3 x days being filled, plus one per sealed day (tests/unit/test_plan_bounds.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from functools import lru_cache
from operator import attrgetter

import msgspec

from thermocline.config import WarmSettings
from thermocline.tiers.dense_rows import dense_bytes_max, vector_bytes
from thermocline.tiers.ledger import Segment

LEVEL_MAX = 3
INPUTS_MAX = 64
"""Segments one merge reads: each is attached for as long as it runs."""
OUTPUTS_FULL_MAX = 4
"""Full segments one merge may write: it holds up settling while it runs, and a crash repeats it."""
_DAY_US = 86_400_000_000
_EPOCH_DAY = date(1970, 1, 1).toordinal()


class Merge(msgspec.Struct, frozen=True, kw_only=True):
    """Segments worth writing again as one move, and the level they get."""

    inputs: tuple[Segment, ...]
    level: int


def settle_due(waiting_events: int, waiting_bytes: int, oldest_wait_s: float, settings: WarmSettings) -> bool:
    """Whether enough waits, or something waits long enough, to be worth a segment."""
    if waiting_events == 0:
        return False
    if waiting_events >= settings.settle_events or waiting_bytes >= settings.settle_bytes:
        return True
    if waiting_events >= settings.settle_after_events and oldest_wait_s >= settings.settle_after_s:
        return True
    return oldest_wait_s >= settings.settle_latest_s


def due_merges(
    segments: Sequence[Segment], now_us: int, settings: WarmSettings, *, level0_min: int | None = None, merges_max: int = 1000
) -> list[Merge]:
    """Return the merges worth doing now, level 0 first, then the oldest day; [] when there is nothing to do.

    segments    what the ledger lists, any order
    now_us      µs since the epoch, UTC
    level0_min  segments of level 0 that become one of level 1; fan_in unless given
    merges_max  bound on the result; the scheduler simply calls again

    No segment is in two merges. Same arguments, same answer: safe to repeat after any crash.
    """
    movable = sorted([segment for segment in segments if segment.level < LEVEL_MAX], key=attrgetter("segment_id"))
    level0 = [segment for segment in movable if segment.level == 0]
    merges: list[Merge] = []
    if len(level0) >= (level0_min or settings.fan_in):
        merges += _jobs(level0, settings)
    taken = {segment.segment_id for merge in merges for segment in merge.inputs}
    for day in _days_to_seal(movable, segments, now_us, settings):
        jobs = list(_jobs([segment for segment in day if segment.segment_id not in taken], settings))
        taken.update(segment.segment_id for job in jobs for segment in job.inputs)
        merges += jobs
    small = [segment for segment in movable if segment.level > 0 and not is_full(segment, settings)]
    for level in range(1, LEVEL_MAX):
        merges += _crowded([one for one in small if one.level == level and one.segment_id not in taken], settings)
    return merges[:merges_max]


def is_full(segment: Segment, settings: WarmSettings) -> bool:
    """Whether a segment is large enough to be left alone. At level 0 none is: it is neither sorted by day nor has rollups."""
    if segment.level == 0:
        return False
    return (
        2 * segment.rows >= settings.segment_rows_max
        or 2 * segment.file_bytes >= settings.segment_bytes_max
        or 2 * vector_bytes(segment) >= dense_bytes_max(settings)
    )


def is_closed(day: str, now_us: int, settings: WarmSettings) -> bool:
    """Whether a UTC day ended so long ago that few more of its events are expected."""
    return now_us >= _end_us(day) + settings.seal_after_s * 1e6


def _days_to_seal(
    movable: Iterable[Segment], segments: Iterable[Segment], now_us: int, settings: WarmSettings
) -> Iterator[list[Segment]]:
    """For every day to seal now its segments below level 3, such that neighbours share conversations; oldest day first.

    A day still being filled (a backfill) waits until it is quiet. One that got a small final segment since it closed is not
    sealed again: what comes later merges by count, or every straggler would leave one more of those.
    """
    days: dict[str, list[Segment]] = {}
    for segment in movable:
        if segment.day is not None:
            days.setdefault(segment.day, []).append(segment)
    grace_us = settings.seal_after_s * 1e6
    for day, below in sorted(days.items()):
        if len(below) < 2 or not is_closed(day, now_us, settings):
            continue
        if max(segment.created_us for segment in below) > now_us - grace_us:
            continue
        final = (segment for segment in segments if segment.level == LEVEL_MAX and segment.day == day)
        sealed = any(segment.created_us >= _end_us(day) + grace_us and not is_full(segment, settings) for segment in final)
        below.sort(key=lambda segment: segment.conversation_min)
        if not sealed and _worth_sealing(below, settings):
            yield below


def _worth_sealing(segments: Sequence[Segment], settings: WarmSettings) -> bool:
    """False for the full parts of one merge, which split the conversations between them. Sorted by conversation_min."""
    reached = segments[0].conversation_max
    for segment in segments[1:]:
        if segment.conversation_min <= reached:
            return True
        reached = max(reached, segment.conversation_max)
    return sum(not is_full(segment, settings) for segment in segments) > 1


def _crowded(segments: Sequence[Segment], settings: WarmSettings) -> Iterator[Merge]:
    """Merges of the largest groups until this level's small segments are fewer than groups + fan_in - 1."""
    groups: dict[str | None, list[Segment]] = {}
    for segment in segments:
        groups.setdefault(segment.day, []).append(segment)
    excess = sum(len(group) - 1 for group in groups.values())
    for group in sorted(groups.values(), key=lambda group: (-len(group), group[0].segment_id)):
        if excess + 1 < settings.fan_in:
            return
        excess -= len(group) - 1
        yield from _jobs(group, settings)


def _jobs(segments: Iterable[Segment], settings: WarmSettings) -> Iterator[Merge]:
    """`segments` cut, in their order, into merges of a bounded size; a last one alone is left out."""
    rows_max = OUTPUTS_FULL_MAX * settings.segment_rows_max
    bytes_max = OUTPUTS_FULL_MAX * settings.segment_bytes_max
    inputs: list[Segment] = []
    rows = size = 0
    for segment in segments:
        too_large = rows + segment.rows > rows_max or size + segment.file_bytes > bytes_max or len(inputs) == INPUTS_MAX
        if too_large and len(inputs) > 1:
            yield _merge(inputs)
            inputs, rows, size = [], 0, 0
        inputs.append(segment)
        rows, size = rows + segment.rows, size + segment.file_bytes
    if len(inputs) > 1:
        yield _merge(inputs)


def _merge(inputs: Sequence[Segment]) -> Merge:
    return Merge(inputs=tuple(inputs), level=max(segment.level for segment in inputs) + 1)


@lru_cache(maxsize=4096)
def _end_us(day: str) -> int:
    return (date.fromisoformat(day).toordinal() + 1 - _EPOCH_DAY) * _DAY_US
