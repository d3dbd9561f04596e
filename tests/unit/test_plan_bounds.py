"""How many segments there are and how often an event is rewritten, at any rate: the plan run against a simulated clock.

Nothing is written here: a segment is its ledger row and how many events of which day it holds. Settles follow the thresholds of
the settings at a steady rate; a merge is planned when enough of level 0 is there, and every 15 minutes, and done at once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from functools import cache
from itertools import count

import msgspec
import pytest

from tests.segments import segment
from thermocline.archiver.plan import LEVEL_MAX, due_merges, is_closed, is_full, settle_due
from thermocline.config import WarmSettings
from thermocline.tiers.ledger import Segment

SETTINGS = WarmSettings()  # type: ignore[call-arg]
EVENT_BYTES = 496
ROW_BYTES = 150
HOUR_S = 3600
DAY_S = 24 * HOUR_S
START_DAY = 20_758  # days since the epoch: 2026-11-01
PLAN_EVERY_S = 900
SMALL_MAX = 24 + 8
"""Small segments beyond three for every day being filled and one for every day that is sealed."""


@cache
def day_name(number: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=number)).isoformat()


class Simulation:
    """The segments of a warm tier at one simulated moment, the most there were, and what was rewritten."""

    def __init__(self, *, start_s: float = START_DAY * DAY_S) -> None:
        self.now_s = start_s
        self.live: dict[str, Segment] = {}
        self.small: dict[str, Segment] = {}
        self.days: dict[str, Counter[str]] = {}
        self.rewrites: dict[str, int] = {}
        self.settled = 0
        self.level0 = 0
        self.rewrites_most = 0
        self.above_bound_most = -SMALL_MAX
        self.unfinished_above_most = -SMALL_MAX
        self._numbers = count()
        self._planned_s = self.now_s
        self._unplanned = 0

    def settle(self, rows: Counter[str]) -> None:
        total = sum(rows.values())
        self._put(rows, level=0, day=None, rewrites=0, low=0.0, high=1.0)
        self.settled += total
        if self.level0 >= SETTINGS.fan_in or self.now_s - self._planned_s >= PLAN_EVERY_S:
            self.merge()
        else:
            self._unplanned += 1
            if self._unplanned % 101 == 0:
                assert due_merges(list(self.live.values()), int(self._planned_s * 1e6), SETTINGS) == []
        self.check()

    def merge(self) -> None:
        """Do everything that is due, until nothing is."""
        self._planned_s = self.now_s
        while merges := due_merges(list(self.live.values()), int(self.now_s * 1e6), SETTINGS):
            for merge in merges:
                assert len({part.segment_id for part in merge.inputs}) == len(merge.inputs) >= 2
                assert merge.level == max(part.level for part in merge.inputs) + 1 <= LEVEL_MAX
                self._rewrite(merge.inputs, merge.level)

    def check(self) -> None:
        """Note how far the small segments are above the bound: all of them, and those that may still merge."""
        by_day = Counter(part.day for part in self.small.values() if part.day is not None)
        now_us = int(self.now_s * 1e6)
        sealed = sum(number == 1 and is_closed(day, now_us, SETTINGS) for day, number in by_day.items())
        allowed = SMALL_MAX + 3 * (len(by_day) - sealed) + sealed
        unfinished = sum(part.level < LEVEL_MAX for part in self.small.values())
        self.above_bound_most = max(self.above_bound_most, len(self.small) - allowed)
        self.unfinished_above_most = max(self.unfinished_above_most, unfinished - allowed)
        assert len(self.live) - len(self.small) <= self.settled / (SETTINGS.segment_rows_max / 2)

    def _rewrite(self, inputs: Iterable[Segment], level: int) -> None:
        rows: Counter[str] = Counter()
        rewrites = 0
        low, high = 1.0, 0.0
        for part in inputs:
            del self.live[part.segment_id]
            self.small.pop(part.segment_id, None)
            self.level0 -= part.level == 0
            rows.update(self.days.pop(part.segment_id))
            rewrites = max(rewrites, self.rewrites.pop(part.segment_id) + 1)
            low, high = min(low, float(part.conversation_min)), max(high, float(part.conversation_max))
        self.rewrites_most = max(self.rewrites_most, rewrites)
        mixed = Counter({day: events for day, events in rows.items() if events < SETTINGS.day_rows_min})
        for day in sorted(rows.keys() - mixed.keys()):
            self._put(Counter({day: rows[day]}), level=level, day=day, rewrites=rewrites, low=low, high=high)
        if mixed:
            self._put(mixed, level=level, day=None, rewrites=rewrites, low=low, high=high)

    def _put(self, rows: Counter[str], *, level: int, day: str | None, rewrites: int, low: float, high: float) -> None:
        """List one segment, or several even parts by conversation when the rows are too many for one."""
        total = sum(rows.values())
        parts = -(-total // SETTINGS.segment_rows_max)
        for part in range(parts):
            held = Counter({name: (part + 1) * events // parts - part * events // parts for name, events in rows.items()})
            events = sum(held.values())
            made = segment(
                rows=events,
                level=level,
                day=day,
                segment_id=f"{next(self._numbers):012x}",
                file_bytes=events * ROW_BYTES,
                created_us=int(self.now_s * 1e6),
            )
            width = (high - low) / parts
            ends = {"conversation_min": f"{low + part * width:.9f}1", "conversation_max": f"{low + (part + 1) * width:.9f}0"}
            made = msgspec.structs.replace(made, **ends)
            self.live[made.segment_id] = made
            self.days[made.segment_id] = held
            self.rewrites[made.segment_id] = rewrites
            self.level0 += level == 0
            if not is_full(made, SETTINGS):
                self.small[made.segment_id] = made


def settles(rate: float) -> tuple[float, int]:
    """(s between settles, events in one) at a steady rate, found by asking `settle_due` every second."""
    waited_s = 0
    while True:
        waited_s += 1
        waiting = int(rate * waited_s)
        if settle_due(waiting, waiting * EVENT_BYTES, waited_s, SETTINGS):
            return waited_s, min(waiting, SETTINGS.settle_batch_events)


def live_traffic(store: Simulation, *, rate: float, days: float, late_ratio: float = 0.0) -> None:
    """Append at a steady rate; `late_ratio` of it happened on one of the five days before."""
    step_s, events = settles(rate)
    draw = random.Random(1)
    end_s = store.now_s + days * DAY_S
    while store.now_s < end_s:
        began_s, store.now_s = store.now_s, store.now_s + step_s
        today = int(store.now_s // DAY_S)
        of_today = min(events, int(events * (store.now_s - today * DAY_S) / step_s))
        rows = Counter({day_name(today): of_today, day_name(int(began_s // DAY_S)): events - of_today})
        if int(began_s // DAY_S) == today:
            rows = Counter({day_name(today): events})
        if late_ratio:
            late = int(events * late_ratio)
            rows[day_name(today)] -= min(rows[day_name(today)], late)
            for back in range(1, 6):
                rows[day_name(today - back)] += late // 5 + (draw.random() < 0.5)
        store.settle(+rows)
    store.merge()


@pytest.mark.parametrize(("rate", "days"), [(0.01, 20), (1, 12), (33, 10), (1000, 10)])
def test_small_segments_and_rewrites_are_bounded_at_any_rate(rate: float, days: float) -> None:
    """33 events/s makes the most settles: just over settle_after_events every settle_after_s."""
    store = Simulation()
    live_traffic(store, rate=rate, days=days)
    assert store.settled == pytest.approx(rate * days * DAY_S, rel=0.02)
    assert store.above_bound_most <= 0
    assert store.rewrites_most <= 3


def test_they_are_bounded_at_100_000_events_a_second() -> None:
    """Two and a half hours over midnight, which include the sealing of the day: 900 million events."""
    store = Simulation(start_s=START_DAY * DAY_S + 22.75 * HOUR_S)
    live_traffic(store, rate=100_000, days=2.5 / 24)
    assert store.settled == pytest.approx(9e8, rel=0.01)
    assert store.above_bound_most <= 0
    assert store.rewrites_most <= 3
    yesterday = [part for part in store.live.values() if part.day == day_name(START_DAY)]
    assert {part.level for part in yesterday} == {2}


def scattered(draw: random.Random) -> Iterator[Counter[str]]:
    """Three years at random: every settle has events of every day."""
    for _ in range(500):
        yield Counter({day_name(START_DAY - back): max(0, int(draw.gauss(18.3, 4.3))) for back in range(1, 1096)})


def in_order(_: random.Random) -> Iterator[Counter[str]]:
    """Three years, day after day, 20,000 events each."""
    for number in range(1095):
        yield Counter({day_name(START_DAY - 1095 + number): 20_000})


def in_bursts(draw: random.Random) -> Iterator[Counter[str]]:
    """A few thousand events of one or another of 30 days, day by day in random order."""
    for _ in range(60):
        day = day_name(START_DAY - draw.randrange(1, 31))
        for _ in range(20):
            yield Counter({day: 1500})


@pytest.mark.parametrize("backfill", [scattered, in_order, in_bursts])
def test_small_segments_and_rewrites_are_bounded_while_three_years_are_filled_in(backfill) -> None:  # type: ignore[no-untyped-def]
    store = Simulation()
    for rows in backfill(random.Random(7)):
        store.now_s += 4 if backfill is not in_bursts else 300
        store.settle(+rows)
    store.now_s += 2 * HOUR_S
    store.merge()
    store.check()
    assert store.above_bound_most <= 0
    assert store.rewrites_most <= 3


@pytest.mark.parametrize(("rate", "late_ratio"), [(33, 0.02), (300, 0.3)])
def test_with_late_events_all_the_time_what_may_still_merge_is_bounded(rate: float, late_ratio: float) -> None:
    """Every late day leaves small final segments now and then: an event is never rewritten a fourth time to avoid that."""
    store = Simulation()
    live_traffic(store, rate=rate, days=3, late_ratio=late_ratio)
    assert store.unfinished_above_most <= 0
    assert store.rewrites_most <= 3


def test_a_backlog_after_a_day_without_a_worker_is_bounded_too() -> None:
    store = Simulation()
    live_traffic(store, rate=33, days=0.5)
    store.now_s += DAY_S
    for _ in range(15):
        store.now_s += 1
        store.settle(Counter({day_name(START_DAY): 100_000, day_name(START_DAY + 1): 100_000}))
    live_traffic(store, rate=33, days=1)
    assert store.above_bound_most <= 0
    assert store.rewrites_most <= 3
