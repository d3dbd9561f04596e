"""Rollups: statistics a segment carries about exactly its own rows, as SQL text. Pure: nothing is run here.

They add up: tables of several segments are combined by summing over their keys, and what has none (a small level-0 segment,
the hot tail) is rolled up on the fly. Hours are computed from µs, so that no session's time zone can shift them.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final, NamedTuple

QUANTILE_GAMMA: Final = 1.01 / 0.99
"""Ratio of neighbouring buckets: 1 % relative error (docs/formats.md, "Segment")."""
QUANTILE_ZERO_BUCKET: Final = -32768
"""The bucket of x ≤ 0."""

_HOUR_US: Final = 3_600_000_000
HOUR: Final = f"make_timestamptz(epoch_us(timestamp) // {_HOUR_US} * {_HOUR_US})"
_IS_ERROR: Final = "(event_type = 'error' OR suffix(event_type, '.error') OR coalesce(status = 'error', false))"
_IS_INTERVENTION: Final = "(event_type = 'intervention' OR prefix(event_type, 'intervention.'))"


def _sum_in_order(name: str) -> str:
    # Lists are what DuckDB cannot spill while it groups: most events have no cost, and 0 changes no sum.
    return f"list_sum(list_sort(list({name}) FILTER ({name} <> 0)))"


class Rollup(NamedTuple):
    """One rollup table."""

    name: str
    keys: tuple[str, ...]
    values: tuple[str, ...]
    """Columns beside the keys."""
    select: str
    """SELECT over `{rows}`, a relation with the columns of events; columns are keys, then values."""
    inexact: tuple[str, ...] = ()
    """DOUBLE sums: their last bits depend on the order of addition."""

    def text(self, rows: str, *, repeatable: bool = False) -> str:
        """The SELECT that makes this table from `rows`, a table or a parenthesized SELECT.

        repeatable  the same rows give the same bits, in whatever order threads add them up; takes a fifth longer
        """
        select = self.select
        for name in self.inexact if repeatable else ():
            select = select.replace(f"sum({name})", _sum_in_order(name))
        return select.format(rows=rows)


_HOURLY: Final = Rollup(
    name="rollup_hourly",
    keys=("hour", "conversation_id", "event_type", "agent_id", "model", "tool_name"),
    values=(
        "events",
        "content_bytes",
        "input_tokens",
        "output_tokens",
        "cost_usd",
        "errors",
        "duration_ms_sum",
        "duration_count",
        "timestamp_min",
        "timestamp_max",
    ),
    select=f"""
        SELECT {HOUR} AS hour, conversation_id, event_type, agent_id, model, tool_name, count(*) AS events,
               sum(strlen(content))::BIGINT AS content_bytes,
               coalesce(sum(input_tokens), 0)::HUGEINT AS input_tokens,
               coalesce(sum(output_tokens), 0)::HUGEINT AS output_tokens,
               coalesce(sum(cost_usd), 0) AS cost_usd, count_if({_IS_ERROR})::BIGINT AS errors,
               coalesce(sum(duration_ms), 0) AS duration_ms_sum, count(duration_ms) AS duration_count,
               min(timestamp) AS timestamp_min, max(timestamp) AS timestamp_max
        FROM {{rows}} GROUP BY ALL""",
    inexact=("cost_usd", "duration_ms_sum"),
)
_CONVERSATION: Final = Rollup(
    name="rollup_conversation",
    keys=("conversation_id",),
    values=("started_at", "ended_at", "events", "interventions", "errors", "seq_max"),
    select=f"""
        SELECT conversation_id, min(timestamp) AS started_at, max(timestamp) AS ended_at, count(*) AS events,
               count_if({_IS_INTERVENTION})::BIGINT AS interventions, count_if({_IS_ERROR})::BIGINT AS errors,
               max(seq) AS seq_max
        FROM {{rows}} GROUP BY conversation_id""",
)
_TASK: Final = Rollup(
    name="rollup_task",
    keys=("conversation_id", "task_id"),
    values=(),
    select="SELECT DISTINCT conversation_id, task_id FROM {rows} WHERE task_id IS NOT NULL",
)


def _quantile_part(measure: str) -> str:
    bucket = f"greatest(ceil(ln({measure}) / ln(1.01 / 0.99)), {QUANTILE_ZERO_BUCKET + 1})::INTEGER"
    return f"""
        SELECT {HOUR} AS hour, event_type, '{measure}' AS measure,
               CASE WHEN {measure} > 0 THEN {bucket} ELSE {QUANTILE_ZERO_BUCKET} END AS bucket, count(*) AS events
        FROM {{rows}} WHERE {measure} IS NOT NULL GROUP BY ALL"""


_QUANTILE: Final = Rollup(
    name="rollup_quantile",
    keys=("hour", "event_type", "measure", "bucket"),
    values=("events",),
    select=" UNION ALL ".join(_quantile_part(measure) for measure in ("duration_ms", "input_tokens", "output_tokens")),
)

_TOTAL: Final = Rollup(
    name="rollup_total",
    keys=("hour",),
    values=("events", "content_bytes"),
    select=f"""
        SELECT {HOUR} AS hour, count(*) AS events, sum(strlen(content))::BIGINT AS content_bytes FROM {{rows}} GROUP BY hour""",
)
TOTAL: Final = _TOTAL.name
"""The table every segment carries, however small; it is in no archive, whose hourly rollups are small themselves."""
ROLLUPS: Final[tuple[Rollup, ...]] = (_HOURLY, _CONVERSATION, _TASK, _QUANTILE)
"""The rollups every segment with `has_rollups` carries. (rollup_decision comes with the archive.)"""
_LEAST: Final = ("started_at", "timestamp_min")
_GREATEST: Final = ("ended_at", "timestamp_max", "seq_max")
_WIDE: Final = ("input_tokens", "output_tokens")
"""Of the values of rollups: those of which the least or the greatest is kept, and the sums that may pass 64 bits."""


def create_statements(schema: str, rows: str) -> list[str]:
    """Statements that make all of ROLLUPS in `schema` from `rows`, each sorted by its keys. None needs another."""
    return [_create(schema, rollup, rollup.text(rows)) for rollup in ROLLUPS]


def create_total(schema: str, rows: str | None) -> str:
    """The statement that makes TOTAL in `schema`: from `rows`, or when None from the hourly rollup there."""
    values = ", ".join(f"sum({value})::BIGINT AS {value}" for value in _TOTAL.values)
    added = f"SELECT hour, {values} FROM {schema}.{_HOURLY.name} GROUP BY hour"
    return _create(schema, _TOTAL, added if rows is None else _TOTAL.text(rows))


def _create(schema: str, rollup: Rollup, text: str) -> str:
    return f"CREATE TABLE {schema}.{rollup.name} AS SELECT * FROM ({text}) ORDER BY {', '.join(rollup.keys)}"


def hourly_stats(rolled: Sequence[str], raw: Sequence[str], totals: Sequence[str] = (), *, added_up: bool = True) -> str:
    """SELECT of (hour, conversation_id, event_count, total_bytes): one row per hour and conversation that has events.

    rolled    tables rollup_hourly, or what has its columns
    raw       relations with the columns of `events` that are in none of them: tables, views or parenthesized SELECTs
    totals    tables TOTAL, for who does not ask about conversations: their rows have none
    added_up  False: there may be several rows, which add up to one; takes a fraction of the time
    """
    values = "events AS event_count, content_bytes AS total_bytes"
    parts = [f"SELECT hour, conversation_id, {values} FROM {table}" for table in rolled]
    parts += [f"SELECT hour, NULL::VARCHAR AS conversation_id, {values} FROM {table}" for table in totals]
    event, text, groups = (
        ("count(*)", "sum(strlen(content))", "GROUP BY ALL") if added_up else ("1::BIGINT", "strlen(content)", "")
    )
    values = f"{event} AS event_count, {text} AS total_bytes"
    parts += [f"SELECT {HOUR} AS hour, conversation_id, {values} FROM {rows} {groups}" for rows in raw]
    parts = parts or ["SELECT NULL::TIMESTAMPTZ AS hour, '' AS conversation_id, 0 AS event_count, 0 AS total_bytes LIMIT 0"]
    if not added_up:
        return " UNION ALL ".join(parts)
    return (
        "SELECT hour, conversation_id, sum(event_count)::BIGINT AS event_count, sum(total_bytes)::BIGINT AS total_bytes"
        f" FROM ({' UNION ALL '.join(parts)}) GROUP BY hour, conversation_id"
    )


USAGE_KEYS: Final = {
    "usage": _HOURLY.keys,
    "agent_stats": ("hour", "event_type", "agent_id"),
    "model_stats": ("hour", "event_type", "model"),
    "tool_stats": ("hour", "event_type", "tool_name"),
}
"""Relation → its keys, of those of the hourly rollup."""
USAGE_VALUES: Final = {
    "events": "BIGINT",
    "content_bytes": "BIGINT",
    "input_tokens": "HUGEINT",
    "output_tokens": "HUGEINT",
    "cost_usd": "DOUBLE",
    "errors": "BIGINT",
    "duration_ms_sum": "DOUBLE",
    "duration_count": "BIGINT",
}


def usage(relation: str, rolled: Sequence[str], raw: Sequence[str]) -> str:
    """SELECT of one of USAGE_KEYS: its keys and USAGE_VALUES, one row for each key that has events.

    rolled  tables rollup_hourly, or what has its columns; raw as in `hourly_stats`, at least one
    """
    keys = ", ".join(USAGE_KEYS[relation])
    values = ", ".join(f"{name}::{kind} AS {name}" for name, kind in USAGE_VALUES.items())
    parts = [f"SELECT {keys}, {values} FROM {table}" for table in rolled]
    parts += [f"SELECT {keys}, {values} FROM ({_HOURLY.text(rows)})" for rows in raw]
    added = ", ".join(f"sum({name})::{kind} AS {name}" for name, kind in USAGE_VALUES.items())
    return f"SELECT {keys}, {added} FROM ({' UNION ALL '.join(parts)}) GROUP BY {keys}"


def conversation_summary(rolled: Sequence[str], tasks: Sequence[str], raw: Sequence[str]) -> str:
    """SELECT of (conversation_id, started_at, ended_at, total_events, task_count, interventions), one row per conversation.

    rolled  tables rollup_conversation, tasks: tables rollup_task, or what has their columns; raw as in `hourly_stats`.
    task_count is the number of distinct task_ids.
    """
    columns = ", ".join((*_CONVERSATION.keys, *_CONVERSATION.values))
    conversations = [f"(SELECT {columns} FROM {table})" for table in rolled]
    conversations += [f"({_CONVERSATION.text(rows)})" for rows in raw]
    of_tasks = [f"(SELECT conversation_id, task_id FROM {table})" for table in tasks]
    of_tasks += [f"({_TASK.text(rows)})" for rows in raw]
    if not conversations:
        return (
            "SELECT '' AS conversation_id, NULL::TIMESTAMPTZ AS started_at, NULL::TIMESTAMPTZ AS ended_at,"
            " 0::BIGINT AS total_events, 0::BIGINT AS task_count, 0::BIGINT AS interventions LIMIT 0"
        )
    return f"""
        SELECT conversation_id, started_at, ended_at, total_events, coalesce(task_count, 0) AS task_count, interventions
        FROM (SELECT conversation_id, min(started_at) AS started_at, max(ended_at) AS ended_at,
                     sum(events)::BIGINT AS total_events, sum(interventions)::BIGINT AS interventions
              FROM ({" UNION ALL ".join(conversations)}) GROUP BY conversation_id)
        LEFT JOIN (SELECT conversation_id, count(DISTINCT task_id) AS task_count
                   FROM ({" UNION ALL ".join(of_tasks)}) GROUP BY conversation_id) USING (conversation_id)"""


def combined(name: str, rolled: Sequence[str], raw: Sequence[str], *, repeatable: bool = False) -> str:
    """SELECT of one rollup table over many tables of that kind and raw relations, unmerged: keys repeat, values add up."""
    rollup = _named(name)
    columns = ", ".join((*rollup.keys, *rollup.values))
    parts = [f"SELECT {columns} FROM {table}" for table in rolled]
    parts += [f"SELECT {columns} FROM ({rollup.text(rows, repeatable=repeatable)})" for rows in raw]
    return " UNION ALL ".join(parts)


def totals(name: str, rolled: Sequence[str], raw: str | None) -> str:
    """SELECT of one rollup table over tables of that kind and one raw relation, one row for each key. Same rows, same bits."""
    if raw is not None and not rolled:
        return _named(name).text(raw, repeatable=True)
    return added_up(name, f"({combined(name, rolled, [raw] if raw is not None else [], repeatable=True)})")


def added_up(name: str, source: str) -> str:
    """SELECT of one rollup table from `source`, a relation with its columns whose keys repeat. Same rows, same bits."""
    rollup = _named(name)
    keys = ", ".join(rollup.keys)
    values = [f"{_added(rollup, value)} AS {value}" for value in rollup.values]
    return f"SELECT {', '.join([keys, *values])} FROM {source} GROUP BY {keys}"


def _added(rollup: Rollup, value: str) -> str:
    if value in _LEAST:
        return f"min({value})"
    if value in _GREATEST:
        return f"max({value})"
    if value in rollup.inexact:
        return f"coalesce({_sum_in_order(value)}, 0)"
    return f"sum({value})::{'HUGEINT' if value in _WIDE else 'BIGINT'}"


def _named(name: str) -> Rollup:
    [rollup] = [rollup for rollup in ROLLUPS if rollup.name == name]
    return rollup


def agreements(schema: str, tables: Container[str]) -> list[tuple[str, str]]:
    """(table, SELECT that gives true if it is what the schema's `events` add up to) of those in `tables`, for a deep check."""
    checks = []
    for rollup in (*ROLLUPS, _TOTAL):
        if rollup.name not in tables:
            continue
        exact = ", ".join(name for name in (*rollup.keys, *rollup.values) if name not in rollup.inexact)
        stored, fresh = f"{schema}.{rollup.name}", f"({rollup.text(f'{schema}.events')})"
        same = (
            f"NOT EXISTS (SELECT {exact} FROM {stored} EXCEPT ALL SELECT {exact} FROM {fresh})"
            f" AND NOT EXISTS (SELECT {exact} FROM {fresh} EXCEPT ALL SELECT {exact} FROM {stored})"
        )
        for name in rollup.inexact:
            sums = f"(SELECT sum({name}) FROM {stored}) AS s, (SELECT sum({name}) FROM {fresh}) AS f"
            same += (
                f" AND (SELECT s IS NOT DISTINCT FROM f OR abs(s - f) <= 1e-9 * greatest(abs(s), abs(f), 1) FROM (SELECT {sums}))"
            )
        checks.append((rollup.name, f"SELECT {same}"))
    return checks
