"""The newest events of one conversation, from Redis alone when its cache suffices."""

from __future__ import annotations

import threading
import time
from typing import Final

import pyarrow as pa

from thermocline.errors import QueryRefused, TierUnavailable
from thermocline.tiers.duck import Connection, DuckError, connect, fresh_name
from thermocline.tiers.opening import Tiers
from thermocline.tiers.rows import parse_blocks

from .coverage import EXACT, Coverage
from .relations import COLUMNS_SQL
from .result import Result
from .run import Runner, at

RECENT_MAX: Final = 100_000
_MEMORY_BYTES: Final = 256 << 20


class Recent:
    """Thread-safe."""

    def __init__(self, tiers: Tiers, runner: Runner) -> None:
        self._hot = tiers.hot
        self._runner = runner
        self._lock = threading.Lock()
        self._con: Connection | None = None

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

    def close(self) -> None:
        with self._lock:
            if self._con is not None:
                self._con.close()
                self._con = None

    def _cached(self, conversation_id: str, limit: int) -> Result | None:
        """The answer of Redis alone; None when it does not have it."""
        taken_us = time.time_ns() // 1000
        try:
            head, blocks = self._hot.recent(conversation_id, limit)
        except TierUnavailable:
            return None  # the long way brings Redis back, or says what is wrong with it
        if head is None or blocks.num_rows == 0:
            return None
        with self._lock:
            rows = self._parsed(blocks, limit)
        seqs = rows.column("seq").combine_chunks()
        if not seqs.equals(pa.array(range(head - len(seqs) + 1, head + 1), pa.int64())):
            return None  # something is missing, or was rejected
        if len(seqs) < limit and head != len(seqs):
            return None
        return Result(rows, _coverage(taken_us, len(seqs)))

    def _parsed(self, blocks: pa.Table, limit: int) -> pa.Table:
        if self._con is None:
            self._con = connect(memory_bytes=_MEMORY_BYTES, threads=1)
        table = fresh_name("recent")
        try:
            parse_blocks(self._con, blocks, table)
            newest = f"SELECT {COLUMNS_SQL} FROM {table} ORDER BY seq DESC LIMIT {limit}"
            return self._con.execute(f"SELECT * FROM ({newest}) ORDER BY seq").to_arrow_table()
        except DuckError as exc:
            raise TierUnavailable(f"recent events cannot be decoded ({exc}): ask for fewer") from exc
        finally:
            self._con.execute(f"DROP TABLE IF EXISTS {table}")


def _coverage(taken_us: int, rows: int) -> Coverage:
    return Coverage(
        taken_at=at(taken_us),
        relations={"events": EXACT},
        cached_rows=rows,
        hot_rows=0,
        hot_newest_at=None,
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
