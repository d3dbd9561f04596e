"""The newest events of one conversation, from Redis alone when its cache suffices."""

from __future__ import annotations

import time
from typing import Final

import numpy as np
import pyarrow as pa

from thermocline.errors import QueryRefused, TierUnavailable
from thermocline.tiers.opening import Tiers

from .coverage import EXACT, Coverage
from .covered import at
from .lines import SCHEMA, decoded
from .result import Result
from .run import Runner

RECENT_MAX: Final = 100_000


class Recent:
    """Thread-safe."""

    def __init__(self, tiers: Tiers, runner: Runner) -> None:
        self._hot = tiers.hot
        self._runner = runner

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
            head, blocks = self._hot.recent(conversation_id, limit)
        except TierUnavailable:
            return None  # the long way brings Redis back, or says what is wrong with it
        if head is None or not blocks["payload"]:
            return None
        rows = decoded(blocks, SCHEMA)
        if rows is None:
            return None
        rows = rows.slice(max(0, rows.num_rows - limit))
        seqs = rows.column("seq").to_numpy()
        if not np.array_equal(seqs, np.arange(head - len(seqs) + 1, head + 1)):
            return None  # something is missing, or was rejected
        if len(seqs) < limit and head != len(seqs):
            return None
        return Result(rows, _coverage(taken_us, rows, sum(map(len, blocks["payload"]))))


def _coverage(taken_us: int, rows: pa.Table, payload_bytes: int) -> Coverage:
    return Coverage(
        taken_at=at(taken_us),
        relations={"events": EXACT},
        cached_rows=rows.num_rows,
        cached_bytes=payload_bytes,
        columns=tuple((name, EXACT) for name in rows.column_names),
        hot_rows=0,
        hot_newest_at=rows.column("ingested_at")[-1].as_py(),
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
