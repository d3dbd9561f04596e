"""What compacting makes of cold files, as SQL: the same events sorted, or rollups whose rows are added up by their keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from thermocline.config import WarmSettings
from thermocline.tiers import rollups
from thermocline.tiers.checksum import row_hash
from thermocline.tiers.cold_schema import SORT
from thermocline.tiers.duck import Connection, quoted
from thermocline.tiers.merge_split import shares

_SUMS: Final = {
    "events": f"count(*), sum({row_hash('events')}::HUGEINT)",
    "rollup_hourly": "sum(events), sum(content_bytes), sum(errors), min(timestamp_min), max(timestamp_max)",
    "rollup_conversation": "sum(events), sum(interventions), sum(errors), min(started_at), max(ended_at), max(seq_max)",
    "rollup_task": "count(DISTINCT (conversation_id, task_id))",
    "rollup_quantile": "sum(events), min(hour), max(hour)",
    "rollup_decision": "count(DISTINCT (conversation_id, rule)), max(rate)",
    "rollup_user": f"count(*), sum({row_hash('rollup_user')}::HUGEINT)",
}
"""Kind → aggregates that are the same before and after; of events a sum over rows, good within one process."""


def selects(con: Connection, kind: str, rows: str, settings: WarmSettings) -> list[str]:
    """SELECTs of the rows that take the place of `rows`, each small enough to be sorted in memory, in the order of SORT.

    rows  a relation with the columns of the kind
    """
    if kind == "events":
        return [f"SELECT * FROM {rows} WHERE {step}" for share in shares(con, rows, settings) for step in share.steps]
    return [_added_up(kind, f"(SELECT * FROM {rows} WHERE {step})") for step in _steps(con, kind, rows, settings)]


def sums(con: Connection, kind: str, rows: str) -> tuple[Any, ...]:
    """What compacting may not change."""
    [found] = con.execute(f"SELECT {_SUMS[kind]} FROM {rows}").fetchall()
    return tuple(found)


def _added_up(kind: str, rows: str) -> str:
    """One row for each key. Of several decisions those of the highest rate count, and among them that of the current policy,
    whichever that is when they are read (sampler.py): so one is kept of each policy that has it."""
    if kind == "rollup_user":
        return f"SELECT * FROM {rows}"  # only a definition knows how its rows add up, and it may be an old one
    if kind != "rollup_decision":
        return rollups.added_up(kind, rows)
    highest = f"SELECT *, max(rate) OVER (PARTITION BY conversation_id, rule) AS highest FROM {rows}"
    return (
        "SELECT conversation_id, rule, rate, min(started_at) AS started_at, policy_hash"
        f" FROM ({highest}) WHERE rate = highest GROUP BY conversation_id, rule, rate, policy_hash"
    )


def _steps(con: Connection, kind: str, rows: str, settings: WarmSettings) -> Iterator[str]:
    """Conditions that cut rollups into ranges of settle_batch_events rows or so by the first column they are sorted by."""
    first = SORT[kind][0]
    found = con.sql(
        f"SELECT {first}::VARCHAR AS value, count(*) AS rows FROM {rows} GROUP BY {first} ORDER BY {first}"
    ).to_arrow_table()
    ends = np.cumsum(found["rows"].to_numpy())
    cuts = np.searchsorted(ends, np.arange(settings.settle_batch_events, int(ends[-1]), settings.settle_batch_events))
    values: Sequence[str] = [quoted(found["value"][int(place)].as_py()) for place in sorted({int(one) for one in cuts} - {0})]
    for low, high in zip(["", *values], [*values, ""], strict=True):
        limits = [f"{first} >= {low}"] if low else []
        limits += [f"{first} < {high}"] if high else []
        yield " AND ".join(limits) or "true"
