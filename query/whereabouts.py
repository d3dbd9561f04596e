"""Which tier each event of a conversation is in: hot, not settled; warm, in a segment; cold, archived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from thermocline.tiers.duck import quoted

from .attached import alias
from .bounds import Bounds, Texts
from .prune import Reading
from .relations import Place, tail_sql
from .result import Result
from .run import Plan, Runner

_WHERE: Final = "conversation_id = $conversation AND seq BETWEEN $from_seq AND $to_seq"
_RUNS: Final = """
SELECT min(seq) AS from_seq, max(seq) AS to_seq, tier
FROM (SELECT seq, tier, seq - row_number() OVER (PARTITION BY tier ORDER BY seq) AS run FROM ({seqs}))
GROUP BY tier, run ORDER BY from_seq"""
_SPREAD: Final = """
SELECT ((seq - $from_seq) * {parts} // ($to_seq - $from_seq + 1))::BIGINT AS part, tier, count(*) AS events
FROM ({seqs}) GROUP BY ALL ORDER BY ALL"""


def whereabouts(runner: Runner, conversation_id: str, from_seq: int, to_seq: int) -> Result:
    """Columns from_seq, to_seq, tier: runs of seqs that are in one tier, in order. What is in none has no row."""
    return _asked(runner, _RUNS, conversation_id, from_seq, to_seq)


def tier_of(runs: Sequence[tuple[int, int, str]], seq: int) -> str:
    """The tier of an event by the rows of `whereabouts`; "" when it is in none of these. Pure."""
    return next((tier for first, last, tier in runs if first <= seq <= last), "")


def spread(runner: Runner, conversation_id: str, to_seq: int, parts: int) -> Result:
    """Columns part, tier, events: how many events of the seqs 1 to `to_seq`, cut into equal parts, are in which tier."""
    return _asked(runner, _SPREAD.replace("{parts}", str(int(parts))), conversation_id, 1, to_seq)


def _asked(runner: Runner, sql: str, conversation_id: str, from_seq: int, to_seq: int) -> Result:
    reading = Reading({"events": Bounds(conversations=Texts.of([conversation_id]))})
    values = {"conversation": conversation_id, "from_seq": from_seq, "to_seq": to_seq}
    return runner.built(reading, lambda plan, place: sql.replace("{seqs}", _seqs(plan, place)), values)


def _seqs(plan: Plan, place: Place) -> str:
    """The SELECT of seq and tier."""
    sources = plan.sources["events"]
    parts = [f"SELECT seq, 'hot' AS tier FROM ({tail_sql(plan.cut.tail.chunks)}) WHERE {_WHERE}"]
    parts += [f"SELECT seq, 'warm' AS tier FROM {alias(one.segment_id)}.events WHERE {_WHERE}" for one in sources.segments]
    if sources.files:
        places = ", ".join(quoted(place(file)) for file in sources.files)
        parts.append(f"SELECT seq, 'cold' AS tier FROM read_parquet([{places}], hive_partitioning = false) WHERE {_WHERE}")
    return " UNION ALL ".join(parts)
