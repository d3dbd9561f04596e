"""What was used: events, tokens, cost and errors by month and model, from rollups, which sampling does not change."""

from __future__ import annotations

from thermocline.tiers import rollups
from thermocline.tiers.duck import quoted

from .attached import alias
from .bounds import Bounds, Texts
from .prune import Reading
from .relations import Place
from .result import Result
from .run import TAIL, Plan, Runner


def usage(runner: Runner, conversation_id: str | None = None) -> Result:
    """Columns month, model, events, content_bytes, input_tokens, output_tokens, cost_usd, errors; the newest month first.

    Exact for everything ever appended that has not expired. conversation_id: of that conversation only
    """
    bounds = Bounds() if conversation_id is None else Bounds(conversations=Texts.of([conversation_id]))
    return runner.built(Reading({"hourly_stats": bounds}), _sql, {"conversation": conversation_id})


def _sql(plan: Plan, place: Place) -> str:
    sources = plan.sources["hourly_stats"]
    rolled = [f"{alias(one.segment_id)}.rollup_hourly" for one in sources.segments if one.has_rollups]
    raw = [TAIL, *(f"{alias(one.segment_id)}.events" for one in sources.segments if not one.has_rollups)]
    if sources.files:
        places = ", ".join(quoted(place(file)) for file in sources.files)
        rolled.append(f"read_parquet([{places}], hive_partitioning = false)")
    return f"""
        SELECT date_trunc('month', hour) AS month, model, sum(events)::BIGINT AS events,
               sum(content_bytes)::BIGINT AS content_bytes, sum(input_tokens)::BIGINT AS input_tokens,
               sum(output_tokens)::BIGINT AS output_tokens, sum(cost_usd) AS cost_usd, sum(errors)::BIGINT AS errors
        FROM ({rollups.combined("rollup_hourly", rolled, raw)})
        WHERE $conversation IS NULL OR conversation_id = $conversation
        GROUP BY month, model ORDER BY month DESC, cost_usd DESC, model"""
