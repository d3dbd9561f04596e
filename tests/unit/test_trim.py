"""Up to where the logs are dropped: what settled gives way, the oldest first, never what a reader may still page through."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.blocks import cut_of, rows_in_order
from thermocline.archiver.trim import NOTES_MAX, Note, Trimmer, due_positions
from thermocline.config import HotSettings
from thermocline.tiers.block import ORIGIN, Position
from thermocline.tiers.hot import ShardCut
from thermocline.tiers.ledger import ShardState

SETTINGS = HotSettings(  # type: ignore[call-arg]
    log_grace_s=5, cache_window_s=100, log_bytes_max=1 << 20, unsettled_bytes_max=1 << 20, unsettled_blocks_max=1000
)
MIB = 1 << 20
NOW_S = 1000.0


def note(age_s: float, position: int, size: int = 0, *, shards: int = 1) -> Note:
    return Note(at_s=NOW_S - age_s, positions=(Position(position, 0),) * shards, bytes=(size,) * shards)


def cut(*, total: int = 0, trimmed: int = 0, **more: Any) -> ShardCut:
    return cut_of(rows_in_order([1] * 50), bytes_total=total, trimmed=Position(trimmed, 0), trimmed_bytes=trimmed, **more)


def due(notes: list[Note], *cuts: ShardCut) -> list[int | None]:
    return [None if one is None else one.ms for one in due_positions(notes, cuts, NOW_S, SETTINGS)]


def test_a_worker_that_just_started_trims_nothing() -> None:
    assert due([], cut()) == [None]
    assert due([note(4.9, 10)], cut(total=9 * MIB)) == [None]


def test_what_settled_longer_than_the_cache_window_ago_is_dropped() -> None:
    assert due([note(200, 10), note(100, 20), note(99, 30), note(1, 40)], cut()) == [20]


def test_within_the_cache_window_everything_stays_while_the_budget_lasts() -> None:
    assert due([note(99, 10), note(50, 20)], cut(total=MIB)) == [None]


def test_beyond_the_budget_the_oldest_settled_gives_way_and_no_more_than_needed() -> None:
    notes = [note(90, 10, 1 * MIB), note(60, 20, 2 * MIB), note(30, 30, 3 * MIB)]
    assert due(notes, cut(total=2 * MIB)) == [10]
    assert due(notes, cut(total=3 * MIB)) == [20]
    assert due(notes, cut(total=3 * MIB + 1)) == [30]


def test_beyond_the_budget_what_settled_within_the_log_grace_stays_all_the_same() -> None:
    notes = [note(90, 10, 1 * MIB), note(6, 20, 2 * MIB), note(4, 30, 9 * MIB)]
    assert due(notes, cut(total=10 * MIB)) == [20]


def test_the_budget_is_that_of_all_logs_together() -> None:
    notes = [note(90, 10, MIB // 2, shards=2)]
    assert due(notes, cut(total=MIB), cut(shard=1, total=MIB)) == [10, 10]
    assert due(notes, cut(total=MIB // 2), cut(shard=1, total=MIB // 2)) == [None, None]


def test_a_shard_with_too_many_blocks_drops_all_it_may() -> None:
    notes = [note(90, 10, shards=2), note(30, 20, shards=2), note(1, 30, shards=2)]
    assert due(notes, cut(entries=499), cut(shard=1, entries=500)) == [None, 20]


def test_what_is_trimmed_already_is_not_trimmed_again() -> None:
    assert due([note(200, 10)], cut(trimmed=10)) == [None]
    assert due([note(200, 0)], cut(trimmed=ORIGIN.ms)) == [None]


def test_notes_stay_few_however_long_the_worker_runs_and_old_ones_thin_out() -> None:
    now_s = [0.0]
    settings = SimpleNamespace(hot=SETTINGS)
    trimmer = Trimmer(SimpleNamespace(settings=settings), monotonic=lambda: now_s[0])  # type: ignore[arg-type]
    for number in range(5000):
        now_s[0] += 1
        trimmer._note([ShardState(shard=0, position=Position(number, 0))])
        trimmer._note([ShardState(shard=0, position=Position(number, 0))])
        assert len(trimmer._notes) <= NOTES_MAX
    ages = [now_s[0] - note.at_s for note in trimmer._notes]
    assert ages == sorted(ages, reverse=True)
    assert ages[0] > 1000
    assert ages[-2:] == [1, 0]
