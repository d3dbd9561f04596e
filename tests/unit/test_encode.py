"""Lines and blocks: what docs/formats.md "Block" says, byte for byte."""

from __future__ import annotations

import json
from typing import Any

import pytest

from thermocline.errors import InvalidEvent
from thermocline.event import EVENT_BYTES_MAX, NULLABLE_COLUMNS, Event
from thermocline.ingest.encode import blocks_of, events_of, timestamps_of
from thermocline.ingest.line import Line, line_of
from thermocline.ingest.validate import fields_of
from thermocline.tiers.block import Block, payload_checksum, shard_of

NOW_US = 1_780_000_000_000_000


def line(**given: Any) -> Line:
    return line_of(fields_of(Event(**{"conversation_id": "c", "event_type": "t", **given})), NOW_US)


def blocks(lines: list[Line], *, events_max: int = 500, bytes_max: int = 1 << 20, conversation_id: str = "c") -> list[Block]:
    return list(blocks_of(conversation_id, lines, shards=16, events_max=events_max, bytes_max=bytes_max))


def test_a_line_is_one_json_object_and_its_sizes() -> None:
    made = line(content="é\n\x00", metadata='{"a": "ü"}', task_id="t1", input_tokens=5, timestamp=NOW_US + 1)
    assert b"\n" not in made.payload
    assert json.loads(made.payload) == {
        "event_type": "t",
        "timestamp": NOW_US + 1,
        "task_id": "t1",
        "input_tokens": 5,
        "content": "é\n\x00",
        "metadata": '{"a": "ü"}',
    }
    assert made.timestamp_us == NOW_US + 1
    assert made.content_bytes == len("é\n\x00".encode())
    assert made.metadata_bytes == len('{"a": "ü"}'.encode())
    missing = [name for bit, name in enumerate(NULLABLE_COLUMNS) if made.nulls >> bit & 1]
    assert missing == [name for name in NULLABLE_COLUMNS if name not in ("task_id", "input_tokens", "metadata")]


def test_a_line_has_at_most_one_mebibyte() -> None:
    overhead = len(line(content="x").payload) - 1
    longest = "x" * (EVENT_BYTES_MAX - overhead)
    assert len(line(content=longest).payload) == EVENT_BYTES_MAX
    with pytest.raises(InvalidEvent, match="content: makes the event 1,048,577 bytes as JSON, at most 1,048,576"):
        line(content=longest + "x")
    with pytest.raises(InvalidEvent, match="at most 1,048,576"):
        line(content="\x00" * (EVENT_BYTES_MAX // 5))


def test_a_block_states_what_its_lines_hold() -> None:
    lines = [
        line(content="abc", timestamp=NOW_US + 5, agent_id="me"),
        line(content="é", timestamp=NOW_US - 5, metadata={"a": 1}, agent_id="me"),
        line(timestamp=NOW_US, model="m"),
    ]
    (block,) = blocks(lines)
    assert block.payload == b"\n".join(made.payload for made in lines)
    assert block.lines == 3
    assert (block.timestamp_min_us, block.timestamp_max_us) == (NOW_US - 5, NOW_US + 5)
    counts = {"agent_id": 1, "model": 2, "metadata": 2}
    assert block.sizes == ",".join(str(number) for number in (5, 7, *(counts.get(name, 3) for name in NULLABLE_COLUMNS)))
    assert block.shard == shard_of("c", 16)
    assert block.checksum == payload_checksum("c", block.block_id, 3, NOW_US - 5, NOW_US + 5, block.sizes, block.payload)


def test_block_ids_are_uuid7_with_room_for_ordinals_and_never_repeat() -> None:
    made = [block.block_id for block in blocks([line()] * 1000, events_max=1)]
    assert len(set(made)) == 1000
    assert made == sorted(made)
    for block_id in made:
        assert len(block_id) == 36
        assert block_id[14] == "7"
        assert block_id.endswith("0000")


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [3]), (4, [3, 1]), (7, [3, 3, 1])])
def test_blocks_hold_at_most_so_many_events_in_order(count: int, sizes: list[int]) -> None:
    made = blocks([line(content=str(number)) for number in range(count)], events_max=3)
    assert [block.lines for block in made] == sizes
    assert [event.content for block in made for event in events_of(block)] == [str(number) for number in range(count)]


def test_blocks_hold_at_most_so_many_bytes_or_one_event() -> None:
    small, large = line(content="x" * 10), line(content="x" * 500)
    size = len(small.payload)
    assert [block.lines for block in blocks([small] * 4, bytes_max=2 * size + 1)] == [2, 2]
    assert [block.lines for block in blocks([small] * 4, bytes_max=2 * size)] == [1, 1, 1, 1]
    assert [block.lines for block in blocks([small, large, small, small], bytes_max=2 * size + 1)] == [1, 1, 2]


def test_no_lines_make_no_block() -> None:
    assert blocks([]) == []


def test_a_block_lists_the_ids_its_caller_gave() -> None:
    ids = [f"00000000-0000-0000-0000-00000000000{number}" for number in range(2)]
    (block,) = blocks([line(), line(event_id=ids[0]), line(), line(event_id=ids[1])])
    assert block.event_ids == ((1, ids[0]), (3, ids[1]))


def test_the_events_of_a_block_append_again_to_the_same_lines() -> None:
    lines = [
        line(content=None, metadata=b'{"a": 1.00}'),
        line(content="\ud7ff\x00", duration_ms=1.5, cost_usd=2, input_tokens=-1, event_id="0" * 32),
        line(metadata={"x": [None]}, status="", parent_id="p"),
    ]
    (block,) = blocks(lines, conversation_id="other")
    events = events_of(block)
    assert {event.conversation_id for event in events} == {"other"}
    assert [line_of(fields_of(event), 0) for event in events] == lines
    assert timestamps_of(block) == [NOW_US] * 3
