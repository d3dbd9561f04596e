"""Decoding a few blocks in Python gives what the SQL of settle gives, or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thermocline.event import COLUMNS
from thermocline.ingest.encode import blocks_of
from thermocline.ingest.line import line_of
from thermocline.ingest.validate import event_of, fields_of
from thermocline.query.lines import LINES_MAX, PLACES, SCHEMA, decoded, few
from thermocline.query.relations import COLUMNS_SQL
from thermocline.tiers.duck import Connection, connect
from thermocline.tiers.hot import BLOCKS_SCHEMA
from thermocline.tiers.rows import parse_blocks

NOW_US = 1_731_456_000_000_000

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.text(st.characters(exclude_categories=["C"]), max_size=8)
integers = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | integers | floats | texts, lambda inner: st.lists(inner, max_size=2), max_leaves=3
)
optional: dict[str, st.SearchStrategy[Any]] = dict.fromkeys(("agent_id", "task_id", "parent_id", "tool_name", "status"), names)
optional |= {"duration_ms": floats, "cost_usd": floats, "input_tokens": integers, "output_tokens": integers}
optional |= {"content": texts | st.none(), "metadata": st.dictionaries(texts, values, max_size=3) | st.just('{ "a" : 1.00 }')}
optional |= {"event_id": st.uuids().map(str)}
events = st.fixed_dictionaries(
    {"event_type": st.sampled_from(["a", "tool.call", "x-y_z"]), "timestamp": st.integers(946_684_800_000_000, NOW_US)},
    optional=optional,
)


@pytest.fixture(scope="module")
def con() -> Iterator[Connection]:
    con = connect(memory_bytes=256 << 20, threads=1)
    yield con
    con.close()


def row_of(payload: bytes, **fields: Any) -> dict[str, Any]:
    base = {"shard": 3, "position_ms": 17, "position_seq": 2, "conversation_id": "c", "seq_first": 5, "events_total": 0}
    return {**base, "bytes_total": 0, "ingested_us": NOW_US, "skip": None, "fault": None, "payload": payload.decode(), **fields}


def blocks_table(given: list[dict[str, Any]], *, skip: list[int] | None = None) -> pa.Table:
    lines = [line_of(fields_of(event_of({"conversation_id": "c", **event})), NOW_US) for event in given]
    [block] = blocks_of("c", lines, shards=16, events_max=500, bytes_max=1 << 20)
    sizes = [int(size) for size in block.sizes.split(",")]
    events_count = block.lines - len(skip or ())
    row = row_of(block.payload, block_id=block.block_id, sizes=sizes, skip=skip, events=events_count)
    return pa.Table.from_pylist([row], schema=BLOCKS_SCHEMA)


def by_sql(con: Connection, blocks: pa.Table) -> tuple[pa.Table, int]:
    """(rows, rejected events) as settle sees them."""
    try:
        rejected = parse_blocks(con, blocks, "parsed")
        columns = f"{COLUMNS_SQL}, {', '.join(PLACES.names)}"
        return con.sql(f"SELECT {columns} FROM parsed ORDER BY seq").to_arrow_table(), sum(line.events for line in rejected)
    finally:
        con.execute("DROP TABLE IF EXISTS parsed")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(given=st.lists(events, min_size=1, max_size=6), data=st.data())
def test_what_is_decoded_is_what_settle_would_store(con: Connection, given: list[dict[str, Any]], data: st.DataObject) -> None:
    skip = sorted(data.draw(st.sets(st.integers(0, len(given) - 1), max_size=len(given) - 1))) or None
    blocks = blocks_table(given, skip=skip)
    rows = decoded(blocks.to_pydict())
    expected, rejected = by_sql(con, blocks)
    assert rejected == 0
    assert rows is None or pa.Table.from_batches([rows]).equals(expected)
    assert rows is not None or "\\u0000" in blocks.column("payload")[0].as_py()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(given=st.lists(events, min_size=1, max_size=3), data=st.data())
def test_of_damaged_lines_nothing_is_decoded_that_settle_would_reject(
    con: Connection, given: list[dict[str, Any]], data: st.DataObject
) -> None:
    blocks = blocks_table(given)
    payload = blocks.column("payload")[0].as_py()
    at = data.draw(st.integers(0, len(payload) - 1))
    piece = data.draw(
        st.sampled_from(['"', "0", "1", "}", "{", ",", "null", "\\", "x", "", " ", '"content":"z",', "\n", "-", ".5"])
    )
    broken = payload[:at] + piece + payload[at + data.draw(st.integers(0, 2)) :]
    row = {**blocks.to_pylist()[0], "payload": broken}
    blocks = pa.Table.from_pylist([row], schema=BLOCKS_SCHEMA)
    rows = decoded(blocks.to_pydict())
    if rows is not None:
        expected, rejected = by_sql(con, blocks)
        assert rejected == 0
        assert pa.Table.from_batches([rows]).equals(expected)


@pytest.mark.parametrize(
    "line",
    [
        {"event_type": "a"},
        {"event_type": "", "timestamp": NOW_US},
        {"event_type": "a", "timestamp": 5},
        {"event_type": "a", "timestamp": NOW_US + 0.5},
        {"event_type": "a", "timestamp": NOW_US, "metadata": "[1]"},
        {"event_type": "a", "timestamp": NOW_US, "metadata": "{]"},
        {"event_type": "a", "timestamp": NOW_US, "event_id": "nope"},
        {"event_type": "a", "timestamp": NOW_US, "event_id": "}0191f3a0-0000-7000-8000-000000000000"},
        {"event_type": "a", "timestamp": NOW_US, "event_id": "urn:0191f3a0000070008000000000000000"},
        {"event_type": "a", "timestamp": NOW_US, "input_tokens": 2**70},
        {"event_type": "a", "timestamp": NOW_US, "unknown": 1},
    ],
)
def test_lines_that_are_not_ours_are_left_to_settles_rule(line: dict[str, Any]) -> None:
    metadata = line.get("metadata", "")
    nulls = [int(line.get(column.name) is None) for column in COLUMNS if column.nullable]
    payload = json.dumps(line, separators=(",", ":")).encode()
    block_id = "0191f3a0-0000-7000-8000-000000000000"
    row = row_of(payload, block_id=block_id, sizes=[0, len(metadata), *nulls], events=1)
    assert decoded(pa.Table.from_pylist([row], schema=BLOCKS_SCHEMA).to_pydict()) is None


def test_only_few_lines_are_decoded_here() -> None:
    assert few(blocks_table([{"event_type": "a"}] * LINES_MAX))
    assert few(BLOCKS_SCHEMA.empty_table())
    assert not few(pa.concat_tables([blocks_table([{"event_type": "a"}] * 300)] * 2))
    empty = decoded(BLOCKS_SCHEMA.empty_table().to_pydict())
    assert empty is not None
    assert empty.schema.equals(pa.schema([*SCHEMA, *PLACES]))
