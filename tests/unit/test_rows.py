"""Blocks become rows: exact values, and one bad line or block never costs another."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import orjson
import pyarrow as pa
import pytest

from tests.block_tables import BLOCK_ID, T0_US, block, event, sizes_of, table
from thermocline.event import COLUMN_NAMES, COLUMNS
from thermocline.tiers.block import derived_event_id
from thermocline.tiers.duck import Connection, connect
from thermocline.tiers.rows import parse_blocks
from thermocline.tiers.warm import Rejected

GIVEN_ID = "0198f3a0-5b7c-7e11-9f00-1234567890ab"


@pytest.fixture
def con() -> Iterator[Connection]:
    made = connect(memory_bytes=256 << 20, threads=2)
    yield made
    made.close()


def parsed(con: Connection, blocks: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Rejected]]:
    """(rows by conversation and seq, metadata as text and times as µs; what was rejected)."""
    rejected = parse_blocks(con, table(blocks), "parsed")
    rows = con.sql(
        "SELECT * REPLACE (event_id::VARCHAR AS event_id, metadata::VARCHAR AS metadata, epoch_us(timestamp) AS timestamp,"
        " epoch_us(ingested_at) AS ingested_at) FROM parsed ORDER BY conversation_id, seq"
    ).to_arrow_table()
    con.execute("DROP TABLE parsed")
    return rows.to_pylist(), rejected


def test_every_column_comes_back_as_it_was_written(con: Connection) -> None:
    full = event(
        event_id=GIVEN_ID,
        agent_id="agent",
        task_id="",
        correlation_id="ü" * 128,
        parent_id="p",
        model="m",
        tool_name="t",
        status="ok",
        duration_ms=0.1,
        cost_usd=-0.0,
        input_tokens=(1 << 63) - 1,
        output_tokens=-(1 << 63),
        content="one\ntwo\r\u2028\u0000\\n \U0001f9ca",
        metadata='{"a": 1.00, "b":"\\u0000\\\\n", "c":{"d":[1,2.50e3]},"e":123456789012345678}',
    )
    [row], rejected = parsed(con, [block([full], number=7, conversation_id="c é", seq_first=41)])
    assert rejected == []
    assert row == {
        **full,
        "conversation_id": "c é",
        "seq": 41,
        "ingested_at": T0_US + 10_000_007,
        "sample_rate": 1.0,
        "shard": row["shard"],
        "position_ms": 7,
        "position_seq": 0,
    }
    assert str(row["cost_usd"]) == "-0.0"


def test_the_table_has_the_columns_of_events_and_the_place_of_the_block(con: Connection) -> None:
    parse_blocks(con, table([block([event()])]), "parsed")
    found = [(name, kind) for name, kind, *_ in con.execute("DESCRIBE parsed").fetchall()]
    kinds = {"TIMESTAMPTZ": "TIMESTAMP WITH TIME ZONE"}
    assert found[: len(COLUMNS)] == [(column.name, kinds.get(column.sql_type, column.sql_type)) for column in COLUMNS]
    assert found[len(COLUMNS) :] == [("shard", "INTEGER"), ("position_ms", "BIGINT"), ("position_seq", "BIGINT")]


def test_absent_keys_are_null_but_content_is_empty(con: Connection) -> None:
    [row], rejected = parsed(con, [block([event()])])
    assert rejected == []
    assert row["content"] == ""
    assert [name for name in COLUMN_NAMES if row[name] is None] == [column.name for column in COLUMNS if column.nullable]


def test_ids_derive_from_the_block_and_the_line_unless_given(con: Connection) -> None:
    lines = [event(index, **({"event_id": GIVEN_ID} if index == 2 else {})) for index in range(300)]
    rows, rejected = parsed(con, [block(lines, number=9)])
    assert rejected == []
    block_id = BLOCK_ID.format(9)[:32] + "0000"
    expected = [str(UUID(derived_event_id(block_id, index))) for index in range(300)]
    expected[2] = GIVEN_ID
    assert [row["event_id"] for row in rows] == expected


def test_doubles_keep_every_bit(con: Connection) -> None:
    rng = random.Random(7)
    drawn = (struct.unpack("<d", rng.randbytes(8))[0] for _ in range(3000))
    doubles = [one for one in drawn if one - one == 0] + [5e-324, 1.7976931348623157e308, 1e22, 1e16, 123456789.123456789, 3.0]
    blocks = [
        block([event(duration_ms=one) for one in doubles[start : start + 500]], number=start + 1, seq_first=start + 1)
        for start in range(0, len(doubles), 500)
    ]
    rows, rejected = parsed(con, blocks)
    assert rejected == []
    assert [struct.pack("<d", row["duration_ms"]) for row in rows] == [struct.pack("<d", one) for one in doubles]


def test_many_blocks_number_their_events_on(con: Connection) -> None:
    blocks = [
        block(
            [event(index) for index in range(7)], number=number, conversation_id=f"c{number % 5}", seq_first=1 + 7 * (number // 5)
        )
        for number in range(500)
    ]
    rows, rejected = parsed(con, blocks)
    assert rejected == []
    assert [(row["conversation_id"], row["seq"]) for row in rows] == [(f"c{c}", s) for c in range(5) for s in range(1, 701)]


def test_skipped_lines_make_no_row_and_take_no_number(con: Connection) -> None:
    lines = [event(index, content=str(index), event_id=GIVEN_ID[:-2] + f"{index:02x}") for index in range(6)]
    rows, rejected = parsed(con, [block(lines, skip=[0, 3], seq_first=10), block([event(content="x")], number=2, seq_first=14)])
    assert rejected == []
    assert [(row["seq"], row["content"]) for row in rows] == [(10, "1"), (11, "2"), (12, "4"), (13, "5"), (14, "x")]
    assert rows[1]["event_id"] == GIVEN_ID[:-2] + "02"


def test_a_block_whose_lines_are_all_skipped_makes_no_row(con: Connection) -> None:
    rows, rejected = parsed(con, [block([event(), event()], skip=[0, 1])])
    assert (rows, rejected) == ([], [])


def test_no_blocks_make_an_empty_table(con: Connection) -> None:
    assert parsed(con, []) == ([], [])


OTHER_SHAPES = [
    b'{ "timestamp" : 1760000000000000 , "event_type" : "a.b", "content" : "spaced" }',
    b'{"event_type":"a.b","timestamp":1760000000000000,"content":"spaced","later":{"x":"y"}}',
    b'{"event_type":"a.b","timestamp":1760000000000000,"content":"spaced","agent_id":null,"metadata":null}',
    b'{"event_type":"a.b","timestamp":1760000000000000,"content":"spaced"}\r',
    b'{"\\u0065vent_type":"a.b","timestamp":1760000000000000,"content":"spaced"}',
]


@pytest.mark.parametrize("line", OTHER_SHAPES)
def test_a_good_line_of_another_encoder_is_an_event(con: Connection, line: bytes) -> None:
    rows, rejected = parsed(con, [block([line])])
    assert rejected == []
    assert [(row["event_type"], row["content"]) for row in rows] == [("a.b", "spaced")]


def test_content_that_is_given_but_empty_is_an_event(con: Connection) -> None:
    rows, rejected = parsed(con, [block([event(content=""), event(content=None), event(metadata='  {"a":1}')])])
    assert rejected == []
    assert [row["content"] for row in rows] == ["", "", ""]
    assert rows[2]["metadata"] == '  {"a":1}'


def test_values_of_nothing_but_a_colon_are_events(con: Connection) -> None:
    texts = [":", "::", ":,", '":"', "event_id"]
    given = [event(status=text, content=text, tool_name=":", event_id=GIVEN_ID) for text in texts]
    rows, rejected = parsed(con, [block(given)])
    assert rejected == []
    assert [(row["status"], row["content"], row["tool_name"]) for row in rows] == [(text, text, ":") for text in texts]


def good(**fields: Any) -> bytes:
    return orjson.dumps(event(**fields))


def raw(text: str) -> bytes:
    """A good line with `text` added before its end."""
    return good()[:-1] + b"," + text.encode() + b"}"


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not a JSON object"),
    "garbage": (b"garbage", "not a JSON object"),
    "half": (good()[:-3], "not a JSON object"),
    "null": (b"null", "not a JSON object"),
    "array": (b"[1]", "not a JSON object"),
    "number": (b"5", "not a JSON object"),
    "string": (b'"x"', "not a JSON object"),
    "two objects": (good() + b" " + good(), "not a JSON object"),
    "NUL byte": (b"\x00", "not a JSON object"),
    "raw control character": (raw('"content":"\x01"'), "not a JSON object"),
    "byte order mark": (b"\xef\xbb\xbf" + good(), "not a JSON object"),
    "brackets without end": (b"[" * 20_000, "not a JSON object"),
    "nested too deep to matter": (b'{"a":' * 5000 + b"1" + b"}" * 5000, "event_type is missing"),
    "lone surrogate, escaped": (raw('"content":"\\ud800"'), "not a JSON object"),
    "lone surrogate in a key": (raw('"\\udc00":1'), "not a JSON object"),
    "no event_type": (b'{"timestamp":1760000000000000}', "event_type is missing"),
    "event_type null": (b'{"event_type":null,"timestamp":1760000000000000}', "event_type is missing"),
    "event_type empty": (good(event_type=""), "event_type is missing"),
    "event_type a number": (good(event_type=5), "event_type is not a string"),
    "no timestamp": (b'{"event_type":"a"}', "timestamp is missing"),
    "timestamp in text": (good(timestamp=str(T0_US)), "timestamp is not a 64-bit integer"),
    "timestamp with a fraction": (good(timestamp=T0_US + 0.5), "timestamp is not a 64-bit integer"),
    "timestamp true": (good(timestamp=True), "timestamp is not a 64-bit integer"),
    "timestamp in seconds": (good(timestamp=T0_US // 1_000_000), "timestamp is not an integer from"),
    "timestamp beyond time": (good(timestamp=(1 << 63) - 1), "timestamp is not an integer from"),
    "timestamp not an int64": (good(timestamp=1 << 63), "timestamp is not an integer from"),
    "content a number": (good(content=5), "content is not a string"),
    "content an object": (good(content={"a": 1}), "content is not a string"),
    "agent a number": (good(agent_id=7), "agent_id is not a string"),
    "tokens in text": (good(input_tokens="7"), "input_tokens is not a 64-bit integer"),
    "tokens with a fraction": (good(input_tokens=1.5), "input_tokens is not a 64-bit integer"),
    "tokens with a zero fraction": (good(input_tokens=1.0), "input_tokens is not a 64-bit integer"),
    "tokens true": (good(output_tokens=True), "output_tokens is not a 64-bit integer"),
    "tokens beyond int64": (good(output_tokens=1 << 63), "output_tokens is not a 64-bit integer"),
    "tokens beyond uint64": (raw('"input_tokens":99999999999999999999'), "input_tokens is not a 64-bit integer"),
    "duration in text": (good(duration_ms="1.5"), "duration_ms is not a number"),
    "duration true": (good(duration_ms=True), "duration_ms is not a number"),
    "duration overflows": (raw('"duration_ms":1e999'), "duration_ms is not a finite number"),
    "cost NaN": (raw('"cost_usd":NaN'), "cost_usd is not a finite number"),
    "cost infinite": (raw('"cost_usd":-Infinity'), "cost_usd is not a finite number"),
    "metadata an object": (good(metadata={"a": 1}), "metadata is not a string"),
    "metadata cut short": (good(metadata='{"a":'), "metadata is not a JSON object"),
    "metadata an array": (good(metadata="[1]"), "metadata is not a JSON object"),
    "metadata empty": (good(metadata=""), "metadata is not a JSON object"),
    "metadata with a lone surrogate": (good(metadata='{"a":"\\ud800"}'), "metadata is not a JSON object"),
    "id no UUID": (good(event_id="x"), "event_id is not a UUID"),
    "id empty": (good(event_id=""), "event_id is not a UUID"),
    "invalid UTF-8": (raw('"content":"?"').replace(b"?", b"\xff"), ""),
    "half a character": (raw('"content":"?"').replace(b"?", b"\xc3"), ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_line_is_rejected_alone(con: Connection, name: str) -> None:
    line, reason = HOSTILE[name]
    blocks = [
        block([event(content="before"), line, event(content="after ü", input_tokens=3)], number=2, seq_first=5),
        block([event(content="next")], number=3, seq_first=8),
        block([event(content="other")], number=4, conversation_id="d"),
    ]
    rows, rejected = parsed(con, blocks)
    assert [(row["seq"], row["content"]) for row in rows] == [(5, "before"), (7, "after ü"), (8, "next"), (1, "other")]
    [found] = rejected
    assert (found.position, found.ordinal, found.conversation_id, found.events) == ("2-0", 1, "c", 1)
    assert found.reason.startswith(reason)
    assert found.line == line.decode(errors="backslashreplace")


def test_all_hostile_lines_in_one_block_leave_the_good_ones(con: Connection) -> None:
    lines: list[Any] = []
    for index, (line, _) in enumerate(HOSTILE.values()):
        lines += [line, event(index, content=f"good {index}")]
    rows, rejected = parsed(con, [block(lines)])
    assert [row["content"] for row in rows] == [f"good {index}" for index in range(len(HOSTILE))]
    assert [row["seq"] for row in rows] == list(range(2, 2 * len(HOSTILE) + 1, 2))
    assert [one.ordinal for one in rejected] == list(range(0, 2 * len(HOSTILE), 2))


def test_a_hostile_line_that_is_skipped_is_nobodys_loss(con: Connection) -> None:
    rows, rejected = parsed(con, [block([event(), b"garbage", event()], skip=[1], seq_first=3)])
    assert rejected == []
    assert [row["seq"] for row in rows] == [3, 4]


def test_what_makes_duckdb_raise_is_found_and_rejected_line_by_line(con: Connection) -> None:
    odd = block([event(), event()], number=40, conversation_id="odd", ingested_us=(1 << 63) - 1)
    others = [block([event(), event()], number=number, seq_first=2 * number - 1) for number in range(1, 30)]
    rows, rejected = parsed(con, [*others, odd])
    assert [row["seq"] for row in rows] == list(range(1, 59))
    assert [(one.position, one.ordinal) for one in rejected] == [("40-0", 0), ("40-0", 1)]
    assert all(one.reason.startswith("cannot be read: ") for one in rejected)


def test_what_makes_duckdb_raise_and_is_skipped_is_nobodys_loss(con: Connection) -> None:
    odd = block([event(), event(), event()], number=40, skip=[1], ingested_us=(1 << 63) - 1)
    rows, rejected = parsed(con, [block([event()]), odd])
    assert len(rows) == 1
    assert [(one.position, one.ordinal) for one in rejected] == [("40-0", 0), ("40-0", 2)]


def test_a_block_with_a_fault_is_rejected_whole(con: Connection) -> None:
    odd = block([event()], number=2, fault="checksum x differs", payload="AAAA", events=3, sizes=[])
    rows, rejected = parsed(con, [block([event()]), odd])
    assert len(rows) == 1
    assert rejected == [
        Rejected(
            shard=odd["shard"],
            position="2-0",
            ordinal=-1,
            conversation_id="c",
            reason="checksum x differs",
            line="AAAA",
            events=3,
        )
    ]


WRONG_HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "content bytes": ({"sizes": [99, *sizes_of([event()] * 2)[1:]]}, "99 content bytes, there are 0"),
    "NULL counts": ({"sizes": [*sizes_of([event()] * 2)[:-1], 1]}, "1 lines without metadata, there are 2"),
    "too few sizes": ({"sizes": [0, 0]}, "2 sizes, not 14"),
    "more events than lines": ({"events": 3}, "it holds 2 lines, its header says 3 events"),
    "fewer events than lines": ({"events": 1}, "it holds 2 lines, its header says 1 events"),
    "a huge number of events": ({"events": 1 << 60}, "it holds 2 lines"),
    "skips beyond its lines": ({"skip": [5], "events": 1}, "skips lines it does not have"),
    "skips a line twice": ({"skip": [0, 0], "events": 0}, "skips lines it does not have"),
}


@pytest.mark.parametrize("name", WRONG_HEADERS)
def test_a_block_that_is_not_what_its_header_says_is_rejected_whole(con: Connection, name: str) -> None:
    changes, reason = WRONG_HEADERS[name]
    odd = block([event(), event()], number=2, **changes)
    rows, rejected = parsed(con, [block([event(content="x")]), odd, block([event(content="y")], number=3, seq_first=4)])
    assert [row["content"] for row in rows] == ["x", "y"]
    [found] = rejected
    assert (found.position, found.ordinal, found.events) == ("2-0", -1, odd["events"])
    assert reason in found.reason
    assert found.line == odd["payload"].decode()


def test_two_wrong_headers_that_make_up_for_each_other_in_number_only_are_both_found(con: Connection) -> None:
    one = block([event(content="abc")], number=1, sizes=[2, *sizes_of([event(content="abc")])[1:]])
    other = block([event(content="abc", agent_id="a")], number=2, sizes=[4, *sizes_of([event(content="abc")])[1:]])
    rows, rejected = parsed(con, [one, other])
    assert rows == []
    assert [found.position for found in rejected] == ["1-0", "2-0"]


def test_rejected_lines_do_not_excuse_a_header_that_states_too_little(con: Connection) -> None:
    lines: list[Any] = [event(content="abcdef"), b"garbage"]
    rows, rejected = parsed(con, [block(lines, sizes=[3, *sizes_of(lines)[1:]])])
    assert rows == []
    assert [(one.ordinal, one.events) for one in rejected] == [(-1, 2)]
    assert "3 content bytes, there are 6 among its 1 good lines" in rejected[0].reason


def test_a_block_id_that_is_no_uuid_costs_the_lines_that_need_it(con: Connection) -> None:
    rows, rejected = parsed(con, [block([event(), event(event_id=GIVEN_ID)], block_id="nonsense")])
    assert [row["event_id"] for row in rows] == [GIVEN_ID]
    assert [one.reason for one in rejected] == ["the id of its block is not a UUID"]


def test_what_is_rejected_comes_in_log_order(con: Connection) -> None:
    blocks = [
        block([b"x", event()], number=number, conversation_id=f"c{number % 3}", shard=number % 2) for number in (2, 10, 9, 1)
    ]
    _, rejected = parsed(con, blocks)
    assert [(one.shard, one.position) for one in rejected] == [(0, "2-0"), (0, "10-0"), (1, "1-0"), (1, "9-0")]


def test_chunks_of_any_cut_give_the_same_rows(con: Connection) -> None:
    blocks = table([block([event(content="é" * 3)] * 5, number=number, seq_first=5 * number) for number in range(40)])
    pieces = pa.concat_tables([blocks.slice(0, 1), blocks.slice(1, 0), blocks.slice(1, 22), blocks.slice(23)])
    for name, given in (("whole", blocks), ("cut", pieces), ("sliced", blocks.slice(3, 9))):
        assert parse_blocks(con, given, name) == []
        assert con.execute(f"SELECT count(*), min(seq) FROM {name}").fetchall() == [
            (5 * given.num_rows, given["seq_first"][0].as_py())
        ]
