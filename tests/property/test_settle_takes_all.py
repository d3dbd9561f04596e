"""Append accepts what docs/formats.md allows and nothing else, and settle turns it into a row with the same values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.odd_events import AHEAD_US, LAST_US, ODD_REALS, ODD_TEXTS, TEXT_COLUMNS, faults, row_of, unlike
from thermocline.errors import InvalidEvent
from thermocline.event import COLUMN_NAMES, EVENT_BYTES_MAX, Event
from thermocline.ingest.encode import blocks_of
from thermocline.ingest.line import Line, line_of
from thermocline.ingest.validate import fields_of
from thermocline.tiers.block import derived_event_id
from thermocline.tiers.duck import Connection, connect
from thermocline.tiers.hot import BLOCKS_SCHEMA
from thermocline.tiers.rows import parse_blocks

NOW_US = 1_780_000_000_000_000
CONVERSATION = "conversation"

text = st.text(max_size=30) | st.sampled_from(ODD_TEXTS)
hostile_text = text | st.just("\ud800") | st.text(st.characters(categories=["Cs", "Cc"]), min_size=1, max_size=3)
names = (
    st.none()
    | st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20)
    | st.sampled_from(["", "x" * 256, '":"', "\\"])
)
reals = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70) | st.sampled_from(ODD_REALS)
counts = st.none() | st.integers(-(2**63), 2**63 - 1)


def trees(texts: st.SearchStrategy[str], numbers: st.SearchStrategy[float]) -> st.SearchStrategy[dict[str, Any]]:
    leaves = st.none() | st.booleans() | numbers | texts
    inner = st.recursive(
        leaves, lambda below: st.lists(below, max_size=4) | st.dictionaries(texts, below, max_size=4), max_leaves=12
    )
    return st.dictionaries(texts, inner, max_size=5)


objects = trees(text, st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False))
hostile_objects = trees(hostile_text, st.integers(-(2**66), 2**66) | st.floats())
spaced = st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\n:  ")])


@st.composite
def json_texts(draw: st.DrawFn, trees: st.SearchStrategy[dict[str, Any]], *, broken: bool) -> str | bytes:
    """Objects in any notation that json writes, or with something in it broken."""
    tree = draw(trees)
    made = json.dumps(tree, ensure_ascii=draw(st.booleans()), separators=draw(spaced))
    made = draw(st.sampled_from(["", " ", "\n"])) + made + draw(st.sampled_from(["", "", "\t"]))
    if broken:
        place = draw(st.integers(0, len(made) - 1))
        made = made[:place] + draw(st.sampled_from(["", ",", "}", "\\", '"', "1e999", "\x00", "9" * 25, "x"])) + made[place + 1 :]
    return made if draw(st.booleans()) else made.encode("utf-8", "surrogatepass")


good = st.builds(
    Event,
    conversation_id=st.just(CONVERSATION),
    event_type=st.sampled_from(["t", "tool.call", "a-b.C_9"]),
    content=st.none() | text,
    **dict.fromkeys(TEXT_COLUMNS, names),
    duration_ms=reals,
    cost_usd=reals,
    input_tokens=counts,
    output_tokens=counts,
    metadata=st.none() | objects | json_texts(objects, broken=False),
    timestamp=st.integers(946_684_800_000_000, 253_402_300_799_999_999),
    event_id=st.none() | st.uuids(),
)
hostile_metadata = hostile_objects | json_texts(hostile_objects, broken=False) | json_texts(objects, broken=True)
hostile = st.one_of(
    st.tuples(st.sampled_from(["content", *TEXT_COLUMNS]), hostile_text),
    st.tuples(st.sampled_from(["duration_ms", "cost_usd"]), st.floats() | st.integers(-(2**2000), 2**2000) | st.booleans()),
    st.tuples(st.sampled_from(["input_tokens", "output_tokens"]), st.integers(-(2**64), 2**64) | st.booleans()),
    st.tuples(
        st.just("metadata"), hostile_objects | json_texts(hostile_objects, broken=False) | json_texts(objects, broken=True)
    ),
    st.tuples(st.just("timestamp"), st.integers(-(2**63), 2**63)),
)
spoiled = st.builds(lambda event, change: msgspec.structs.replace(event, **{change[0]: change[1]}), good, hostile)
events = good | good | spoiled


@pytest.fixture(scope="module")
def con() -> Iterator[Connection]:
    with connect(memory_bytes=256 << 20, threads=1) as connection:
        yield connection


def rows_of(con: Connection, lines: list[Line]) -> tuple[list[dict[str, Any]], list[Any]]:
    """The rows that settle makes of one block of these lines, by seq, and what it rejects."""
    (block,) = blocks_of(CONVERSATION, lines, shards=16, events_max=500, bytes_max=500 * EVENT_BYTES_MAX)
    header = {
        "shard": block.shard,
        "position_ms": 1,
        "position_seq": 0,
        "conversation_id": CONVERSATION,
        "seq_first": 1,
        "events": block.lines,
        "events_total": block.lines,
        "bytes_total": len(block.payload),
        "ingested_us": NOW_US,
        "block_id": block.block_id,
        "sizes": [int(part) for part in block.sizes.split(",")],
        "skip": None,
        "payload": block.payload.decode(),
        "fault": None,
    }
    con.execute("DROP TABLE IF EXISTS made")
    rejected = parse_blocks(con, pa.Table.from_pylist([header], BLOCKS_SCHEMA), "made")
    columns = ", ".join(
        {"timestamp": "epoch_us(timestamp) AS timestamp", "event_id": "event_id::VARCHAR AS event_id"}.get(name, name)
        for name in COLUMN_NAMES
        if name != "ingested_at"
    )
    rows = con.sql(f"SELECT {columns} FROM made ORDER BY seq").to_arrow_table().to_pylist()
    for ordinal, row in enumerate(rows):
        assert row["event_id"] == (lines[ordinal].event_id or derived_event_id(block.block_id, ordinal))
    return rows, rejected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(candidates=st.lists(events, min_size=1, max_size=12))
def test_every_accepted_event_settles_with_its_values(con: Connection, candidates: list[Event]) -> None:
    accepted: list[tuple[Event, Line]] = []
    for event in candidates:
        wrong = faults(msgspec.structs.asdict(event), LAST_US - AHEAD_US)
        try:
            accepted.append((event, line_of(fields_of(event), NOW_US)))
            assert wrong == set()
        except InvalidEvent as exc:
            assert exc.field in wrong
    if not accepted:
        return
    rows, rejected = rows_of(con, [line for _, line in accepted])
    assert rejected == []
    assert [row["seq"] for row in rows] == list(range(1, len(accepted) + 1))
    for (event, _), row in zip(accepted, rows, strict=True):
        assert unlike(row_of(msgspec.structs.asdict(event)), row) == []


@pytest.mark.parametrize("depth", [1, 63, 64])
def test_metadata_as_deep_as_allowed_settles(con: Connection, depth: int) -> None:
    metadata = '{"a":' + "[" * (depth - 1) + "]" * (depth - 1) + "}" if depth > 1 else "{}"
    event = Event(conversation_id=CONVERSATION, event_type="t", metadata=metadata)
    rows, rejected = rows_of(con, [line_of(fields_of(event), NOW_US)])
    assert rejected == []
    assert rows[0]["metadata"] == metadata


def test_an_event_as_long_as_allowed_settles(con: Connection) -> None:
    content = "\x00" * ((EVENT_BYTES_MAX - 100) // 6)
    event = Event(conversation_id=CONVERSATION, event_type="t", content=content)
    rows, rejected = rows_of(con, [line_of(fields_of(event), NOW_US)])
    assert rejected == []
    assert rows[0]["content"] == content
