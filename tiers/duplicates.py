"""Find events that stand in the warm tier more than once: for `verify --deep`, which names them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from thermocline.config import WarmSettings

from .duck import connect, duckdb_errors
from .ledger import Segment
from .segment_file import attached
from .warm import Warm

ROWS_AT_ONCE = 4_000_000
"""Events compared in one go: what bounds the memory."""


class Duplicate(msgspec.Struct, frozen=True, kw_only=True):
    """One (conversation_id, seq) that has several rows."""

    conversation_id: str
    seq: int
    segment_ids: tuple[str, ...]
    """Of every row, sorted."""


def duplicates(warm: Warm, segments: Sequence[Segment], settings: WarmSettings, *, limit: int) -> list[Duplicate]:
    """Events stored more than once in `segments`, by conversation and seq, at most `limit`.

    Goes through the conversations in slices. TierUnavailable when a file is gone meanwhile, TierCorrupt when one cannot be read.
    """
    found: list[Duplicate] = []
    slices = 1 + sum(segment.rows for segment in segments) // ROWS_AT_ONCE
    with ExitStack() as stack:
        stack.enter_context(duckdb_errors("looking for duplicates"))
        con = connect(memory_bytes=settings.memory_bytes_max, threads=settings.threads)
        stack.callback(con.close)
        sources = []
        for segment in segments:
            path = Path(warm.path(segment.segment_id))
            with duckdb_errors(f"segment {path}", reading=True):
                alias = stack.enter_context(attached(con, path))
            sources.append(f"SELECT conversation_id, seq, '{segment.segment_id}' AS segment_id FROM {alias}.events")
        union = " UNION ALL ".join(sources)
        for number in range(slices if segments else 0):
            con.execute(
                f"CREATE OR REPLACE TEMP TABLE doubled AS SELECT conversation_id, seq FROM ({union})"
                f" WHERE hash(conversation_id) % {slices} = {number}"
                f" GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT {limit - len(found)}"
            )
            rows = con.execute(
                f"SELECT conversation_id, seq, list(segment_id ORDER BY segment_id) FROM ({union})"
                " SEMI JOIN doubled USING (conversation_id, seq) GROUP BY ALL ORDER BY ALL"
            ).fetchall()
            found += [Duplicate(conversation_id=row[0], seq=row[1], segment_ids=tuple(row[2])) for row in rows]
            if len(found) >= limit:
                break
    return sorted(found, key=lambda one: (one.conversation_id, one.seq))
