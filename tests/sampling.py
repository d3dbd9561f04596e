"""Events to sample, what the sampler's SQL decides about them, and the same said in plain Python."""

from __future__ import annotations

import hashlib
import math
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from thermocline.archiver import sampler
from thermocline.event import COLUMNS
from thermocline.policy import COLUMN_OF, UNMATCHED, Policy, Rule, rules_of
from thermocline.tiers import rollups
from thermocline.tiers.duck import Connection, registered

T0_US = 1_760_000_000_000_000
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US

Row = dict[str, Any]
_ARROW = {"BIGINT": pa.int64(), "DOUBLE": pa.float64(), "TIMESTAMPTZ": pa.timestamp("us", tz="UTC")}
_EVENTS = pa.schema([(column.name, _ARROW.get(column.sql_type, pa.string())) for column in COLUMNS])
_STORED = pa.schema(
    [
        ("conversation_id", pa.string()),
        ("rule", pa.string()),
        ("rate", pa.float64()),
        ("started_at", pa.timestamp("us", tz="UTC")),
        ("policy_hash", pa.string()),
    ]
)


class Decision(NamedTuple):
    """A row of rollup_decision, its time in µs."""

    conversation_id: str
    rule: str
    rate: float
    started_us: int
    policy_hash: str


class Sampled(NamedTuple):
    """What the sampler made of a batch."""

    decisions: dict[tuple[str, str], Decision]
    """All of the batch, by conversation and rule."""
    changed: set[tuple[str, str]]
    """Those that have to be written."""
    rules: dict[str, str]
    """Event id → rule."""
    rates: dict[str, float]
    kept: set[str]
    rows: list[Row]
    """What `kept` gives."""
    dry_run: list[Row]


def policy(*rules: Mapping[str, Any], window_days: int = 7) -> Policy:
    return Policy(rules_of(list(rules)), window_days)


def event(number: int, **columns: Any) -> Row:
    """An event of conversation "c" with an id of its own; timestamp in µs."""
    base = {"conversation_id": "c", "seq": number, "event_type": "output.chunk", "timestamp": T0_US, "content": "text"}
    identity = str(uuid.UUID(bytes=hashlib.sha256(str(number).encode()).digest()[:16]))
    return {"event_id": identity, "ingested_at": T0_US, "sample_rate": 1.0, **base, **columns}


def archived(
    con: Connection,
    chosen: Policy,
    events: Sequence[Row],
    *,
    stored: Iterable[Decision] = (),
    elsewhere: Sequence[Row] = (),
    dry_run: bool = False,
) -> Sampled:
    """Sample the events as one batch.

    stored     decisions of earlier batches
    elsewhere  events of the same conversations in other tiers or days
    dry_run    whether to ask for that as well
    """
    decided = [dict(zip(_STORED.names, row, strict=True)) for row in stored]
    tables = (
        pa.Table.from_pylist(list(events), _EVENTS),
        pa.Table.from_pylist([*events, *elsewhere], _EVENTS),
        pa.Table.from_pylist(decided, _STORED),
    )
    with registered(con, tables[0]) as batch, registered(con, tables[1]) as everything, registered(con, tables[2]) as before:
        rows = f"(SELECT * REPLACE (event_id::UUID AS event_id, metadata::JSON AS metadata) FROM {batch})"
        hourly = f"({rollups.combined('rollup_hourly', [], [everything])})"
        con.execute(f"CREATE OR REPLACE TEMP TABLE conversations AS {sampler.conversations(hourly, rows)}")
        given = {"rows": rows, "conversations": "conversations"}
        con.execute(f"CREATE OR REPLACE TEMP TABLE decisions AS {sampler.decisions(chosen, stored=before, **given)}")
        given["decisions"] = "decisions"
        decisions = _rows(con, "SELECT * REPLACE (epoch_us(started_at) AS started_at) FROM decisions")
        found = _rows(con, f"SELECT event_id::VARCHAR AS id, rule, sample_rate, kept FROM ({sampler.decided(chosen, **given)})")
        rows_kept = _rows(con, f"SELECT * FROM ({sampler.kept(chosen, **given)}) ORDER BY event_id")
        told = _rows(con, sampler.dry_run(chosen, **given)) if dry_run else []
    assert len(found) == len(events)
    return Sampled(
        decisions={(row["conversation_id"], row["rule"]): Decision(*list(row.values())[:5]) for row in decisions},
        changed={(row["conversation_id"], row["rule"]) for row in decisions if row["changed"]},
        rules={row["id"]: row["rule"] for row in found},
        rates={row["id"]: row["sample_rate"] for row in found},
        kept={row["id"] for row in found if row["kept"]},
        rows=rows_kept,
        dry_run=told,
    )


def _rows(con: Connection, sql: str) -> list[Row]:
    answer = con.execute(sql)
    names = [name for name, *_ in answer.description or ()]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


def share(text: str) -> float:
    """The number from 0 to 1 an id stands for."""
    return int.from_bytes(hashlib.md5(text.encode()).digest()[8:], "little") / 2**64


def age_rate(started_us: int, timestamp_us: int, window_days: int) -> float:
    end_us = (timestamp_us // DAY_US + 1 + window_days) * DAY_US
    return 1 / math.log2(max((end_us - started_us) // HOUR_US, 0) + 2)


def rule_of(chosen: Policy, row: Row, totals: Mapping[str, float]) -> Rule | None:
    """The first rule that takes the row of a conversation with these totals."""
    for rule in chosen.rules:
        lists = ((row.get(column), getattr(rule, name)) for name, column in COLUMN_OF.items())
        if all(patterns is None or _matches(value, patterns) for value, patterns in lists) and _meets(rule, totals):
            return rule
    return None


def name_of(rule: Rule | None) -> str:
    return UNMATCHED if rule is None else rule.name


def _matches(value: str | None, patterns: Sequence[str]) -> bool:
    expressions = (".*".join(re.escape(part) for part in pattern.split("*")) for pattern in patterns)
    return value is not None and any(re.fullmatch(expression, value, re.DOTALL) for expression in expressions)


def _meets(rule: Rule, totals: Mapping[str, float]) -> bool:
    for measure, total in totals.items():
        least, most = rule.when.bounds(measure)
        if (least is not None and total < least) or (most is not None and total > most):
            return False
    return True
