"""The newest events of one conversation, from Redis alone when its cache suffices."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from thermocline.errors import QueryRefused, TierUnavailable
from thermocline.tiers.block import Position
from thermocline.tiers.hot import Newest
from thermocline.tiers.opening import Tiers

from .coverage import EXACT, Coverage
from .covered import at
from .lines import SCHEMA, decoded
from .result import Result
from .run import Runner

RECENT_MAX: Final = 100_000
_COLUMNS: Final = tuple((name, EXACT) for name in SCHEMA.names)


class _Kept(NamedTuple):
    """The newest events of a conversation as they were read from the log, where what is written never changes."""

    rows: pa.RecordBatch
    first: Position
    """Of the oldest block that rows are of, or before it: when it is trimmed away, they are no longer cached."""
    last: Position
    shard_state: tuple[bytes | None, bytes | None]
    bytes: int

    def answers(self, limit: int) -> bool:
        """Whether it has as many, or all there were."""
        return self.rows.num_rows >= limit or bool(self.rows.column("seq")[0].as_py() == 1)

    def followed_by(self, newest: Newest) -> bool:
        """Whether all of it is still in Redis, and what was read just now comes next."""
        return newest.joined and newest.shard_state == self.shard_state and newest.trimmed < self.first


class Recent:
    """Thread-safe. Decoded events are kept for the next call: of those who ask again and again, only what is new is read."""

    def __init__(self, tiers: Tiers, runner: Runner) -> None:
        self._hot = tiers.hot
        self._runner = runner
        self._bytes_max = tiers.settings.query.recent_bytes_max
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Of the events that are kept."""
        return self._kept_bytes

    def recent(self, conversation_id: str, limit: int) -> Result:
        """The newest `limit` events of a conversation, columns as in `events`, ordered by seq.

        Redis answers when it holds `limit` events without a gap up to the conversation's last seq, or all of them; otherwise
        the same is asked of `events`, which has every event in one place.
        """
        if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= RECENT_MAX:
            raise QueryRefused(f"limit must be an integer from 1 to {RECENT_MAX}, not {limit!r}")
        found = self._cached(conversation_id, limit)
        if found is not None:
            return found
        newest = "SELECT * FROM events WHERE conversation_id = ? ORDER BY seq DESC LIMIT ?"
        return self._runner.sql(f"SELECT * FROM ({newest}) ORDER BY seq", [conversation_id, limit])

    def _cached(self, conversation_id: str, limit: int) -> Result | None:
        """The answer of Redis alone; None when it does not have it."""
        taken_us = time.time_ns() // 1000
        try:
            kept, newest = self._newest(conversation_id, limit)
        except TierUnavailable:
            return None  # the long way brings Redis back, or says what is wrong with it
        rows = decoded(newest.blocks, placed=False)
        if rows is None:
            return None
        if kept is not None:
            rows = _last(pa.concat_batches([kept.rows, rows]), max(limit, kept.rows.num_rows)) if rows.num_rows else kept.rows
        answer = _last(rows, limit)
        seqs = answer.column("seq").to_numpy()
        if not len(seqs) or not np.array_equal(seqs, np.arange(newest.head - len(seqs) + 1, newest.head + 1)):
            return None  # something is missing, or was rejected
        if len(seqs) < limit and newest.head != len(seqs):
            return None
        self._keep(conversation_id, rows, kept, newest)
        return Result(pa.Table.from_batches([answer]), _coverage(taken_us, answer, sum(map(len, newest.blocks["payload"]))))

    def _newest(self, conversation_id: str, limit: int) -> tuple[_Kept | None, Newest]:
        """What is kept of the conversation, if it can be used, and what is to follow it."""
        with self._lock:
            kept = self._kept.get(conversation_id)
            if kept is not None:
                self._kept.move_to_end(conversation_id)
        if kept is not None and kept.answers(limit):
            newest = self._hot.recent(conversation_id, limit, kept.last)
            if kept.followed_by(newest):
                return kept, newest
        return None, self._hot.recent(conversation_id, limit)

    def _keep(self, conversation_id: str, rows: pa.Table, kept: _Kept | None, newest: Newest) -> None:
        blocks = newest.blocks
        if not blocks["payload"]:
            return
        first, last = (Position(blocks["position_ms"][place], blocks["position_seq"][place]) for place in (0, -1))
        found = _Kept(rows, kept.first if kept else first, last, newest.shard_state, rows.get_total_buffer_size())
        with self._lock:
            self._drop(conversation_id)
            if found.bytes > self._bytes_max:
                return
            self._kept[conversation_id] = found
            self._kept_bytes += found.bytes
            while self._kept_bytes > self._bytes_max:
                self._drop(next(iter(self._kept)))

    def _drop(self, conversation_id: str) -> None:
        gone = self._kept.pop(conversation_id, None)
        self._kept_bytes -= gone.bytes if gone else 0


def _last(rows: pa.RecordBatch, count: int) -> pa.RecordBatch:
    return rows if rows.num_rows <= count else rows.slice(rows.num_rows - count)


def _coverage(taken_us: int, rows: pa.RecordBatch, payload_bytes: int) -> Coverage:
    return Coverage(
        taken_at=at(taken_us),
        relations={"events": EXACT},
        cached_rows=rows.num_rows,
        cached_bytes=payload_bytes,
        columns=_COLUMNS,
        hot_rows=0,
        hot_newest_at=at(rows.column("ingested_at")[-1].value),
        warm_rows=0,
        cold_rows=0,
        sampled_rows=0,
        segments_read=0,
        segments_pruned=0,
        files_read=0,
        files_pruned=0,
        rejected=0,
        lost=0,
        retries=0,
    )
