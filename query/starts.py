"""Where a reader that follows begins. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Final

from thermocline.errors import QueryRefused, StoreReplaced
from thermocline.tiers.block import Position, shard_of
from thermocline.tiers.hot import ShardCut

from .cursor import Cursor, Place, parse_cursor

START_MARGIN_MS: Final = 60_000
"""A log's ids are ingestion times, but for what a clock that was set back adds."""
Start = str | int | dt.datetime
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def begun(conversation_id: str | None, start: Start, cut: Sequence[ShardCut]) -> Cursor:
    """The cursor that `start` means. QueryRefused: it is no place to start at. StoreReplaced: a position of another store."""
    if isinstance(start, str) and start not in ("now", "begin"):
        return _resumed(conversation_id, start, cut)
    mine = [cut[shard_of(conversation_id, len(cut))]] if conversation_id is not None else list(cut)
    return Cursor(
        incarnation=cut[0].incarnation,
        era=era_of(cut),
        conversation_id=conversation_id,
        places=places_of(start, mine) if conversation_id is None or not isinstance(start, int) else (Place(),),
        seq=_seq_before(start) if conversation_id is not None and isinstance(start, int) else 0,
        from_us=micros(start) if isinstance(start, dt.datetime) else 0,
    )


def places_of(start: Start, mine: Sequence[ShardCut]) -> tuple[Place, ...]:
    """How far each of these shards counts as read at `start`: "begin", "now" or a datetime of ingestion."""
    if start == "begin":
        return (Place(),) * len(mine)
    if start == "now":
        return tuple(Place(one.last, one.newest_us or _latest_us(one.last)) for one in mine)
    if isinstance(start, dt.datetime):
        us = micros(start)
        return (Place(Position(max(0, us // 1000 - START_MARGIN_MS), 0), max(0, us - 1)),) * len(mine)
    raise QueryRefused(
        f'start must be "now", "begin", an aware datetime, a position, or with a conversation a seq from 1 on, not {start!r}'
    )


def _latest_us(last: Position) -> int:
    """No block up to there has a later ingested_at, in a log from before shards noted it."""
    return 1000 * last.ms + 999 if last.ms else 0


def micros(start: dt.datetime) -> int:
    """µs since the epoch. QueryRefused without a time zone."""
    if start.tzinfo is None:
        raise QueryRefused("start must be an aware datetime: give its time zone")
    return max(0, (start - _EPOCH) // dt.timedelta(microseconds=1))


def require_same(cursor: Cursor, cut: Sequence[ShardCut]) -> None:
    """StoreReplaced when the cursor is of a Redis that was wiped since."""
    if not cursor.holds(cut[0].incarnation):
        again = f"start={cursor.seq + 1}" if cursor.conversation_id is not None else 'a datetime or "begin" as start'
        raise StoreReplaced(
            "Redis was wiped since this position was taken: events that had not settled are gone, and the ledger declares them "
            f"lost (`thermocline verify`); begin anew with {again}"
        )


def era_of(cut: Sequence[ShardCut]) -> int:
    """How often acknowledged events may have been lost."""
    return max(one.era for one in cut)


def _resumed(conversation_id: str | None, text: str, cut: Sequence[ShardCut]) -> Cursor:
    try:
        cursor = parse_cursor(text)
    except QueryRefused as exc:
        raise QueryRefused(f"start: {exc}, now, begin, a time with its zone, or with a conversation a seq") from exc
    if conversation_id is not None and cursor.conversation_id != conversation_id:
        raise QueryRefused(f"this position is not of a tail of conversation {conversation_id!r}: give none, or its own")
    shards = 1 if cursor.conversation_id is not None else len(cut)
    require_same(cursor, cut)
    if len(cursor.places) != shards:
        raise QueryRefused(f"this position is of {len(cursor.places)} shards, the store has {shards}")
    return cursor


def _seq_before(start: int) -> int:
    if isinstance(start, bool) or start < 1:
        raise QueryRefused(f"start must be a seq from 1 on, not {start!r}")
    return start - 1
