"""Which tier each event of a conversation is in: hot, not settled; warm, in a segment; cold, archived."""

from __future__ import annotations

from typing import Final

from thermocline.tiers.duck import quoted

from .attached import alias
from .bounds import Bounds, Texts
from .prune import Reading
from .relations import Place
from .result import Result
from .run import TAIL, Plan, Runner

_WHERE: Final = "conversation_id = $conversation AND seq BETWEEN $from_seq AND $to_seq"


def whereabouts(runner: Runner, conversation_id: str, from_seq: int, to_seq: int) -> Result:
    """Columns from_seq, to_seq, tier: runs of seqs that are in one tier, in order. What is in none has no row."""
    reading = Reading({"events": Bounds(conversations=Texts.of([conversation_id]))})
    return runner.built(reading, _sql, {"conversation": conversation_id, "from_seq": from_seq, "to_seq": to_seq})


def _sql(plan: Plan, place: Place) -> str:
    sources = plan.sources["events"]
    parts = [f"SELECT seq, 'hot' AS tier FROM {TAIL} WHERE {_WHERE}"]
    parts += [f"SELECT seq, 'warm' AS tier FROM {alias(one.segment_id)}.events WHERE {_WHERE}" for one in sources.segments]
    if sources.files:
        places = ", ".join(quoted(place(file)) for file in sources.files)
        parts.append(f"SELECT seq, 'cold' AS tier FROM read_parquet([{places}], hive_partitioning = false) WHERE {_WHERE}")
    return f"""
        SELECT min(seq) AS from_seq, max(seq) AS to_seq, tier
        FROM (SELECT seq, tier, seq - row_number() OVER (PARTITION BY tier ORDER BY seq) AS run
              FROM ({" UNION ALL ".join(parts)}))
        GROUP BY tier, run ORDER BY from_seq"""
