"""A line of NDJSON becomes the event it says, or an error that says what is wrong with it."""

from __future__ import annotations

import msgspec
import pytest

from thermocline.errors import InvalidEvent
from thermocline.event import EVENT_BYTES_MAX, Event
from thermocline.ingest.line import line_of
from thermocline.ingest.validate import fields_of
from thermocline.ndjson import LINE_BYTES_MAX, parse_line

START = b'{"conversation_id":"c","event_type":"t"'


def test_every_field_of_an_event_is_taken() -> None:
    given = {
        "conversation_id": "c",
        "event_type": "t",
        "content": "hé",
        "task_id": "a",
        "agent_id": "b",
        "correlation_id": "d",
        "parent_id": "e",
        "model": "f",
        "tool_name": "g",
        "status": "h",
        "duration_ms": 1.5,
        "cost_usd": 0.25,
        "input_tokens": 3,
        "output_tokens": 4,
        "timestamp": 1_794_265_200_000_000,
        "event_id": "01970000-0000-7000-8000-000000000000",
    }
    assert parse_line(msgspec.json.encode(given)) == Event(**given)
    assert given.keys() | {"metadata"} == set(Event.__struct_fields__)


def test_metadata_keeps_its_bytes() -> None:
    event = parse_line(START + b',"metadata":{"a": 1.00, "b":[ 1 ],"\\u00e9":null}}')
    assert bytes(event.metadata) == b'{"a": 1.00, "b":[ 1 ],"\\u00e9":null}'  # type: ignore[arg-type]


def test_metadata_given_as_text_is_that_text() -> None:
    assert parse_line(START + b',"metadata":"{\\"a\\": 1.00}"}').metadata == '{"a": 1.00}'


@pytest.mark.parametrize("line", [START + b"}", START + b',"metadata":null}'])
def test_metadata_that_is_absent_or_null_is_none(line: bytes) -> None:
    assert parse_line(line).metadata is None


def test_null_content_is_told_from_absent_content() -> None:
    assert parse_line(START + b',"content":null}').content is None
    assert parse_line(START + b"}").content == ""


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"", "not valid JSON"),
        (b"nope", "not valid JSON"),
        (b"{", "not valid JSON"),
        (START, "not valid JSON"),
        (START + b"} x", "not valid JSON"),
        (START + b',"content":"\xff"}', "not valid JSON"),
        (START + b',"content":"\\ud800"}', "not valid JSON: no low surrogate"),
        (START + b',"content":' + b"[" * 100_000, "not valid JSON"),
        (START + b',"duration_ms":1e999}', "number out of range"),
        (START + b',"duration_ms":NaN}', "not valid JSON"),
        (b"[1]", "expected `object`, got `array`"),
        (b'{"event_type":"t"}', "missing required field `conversation_id`"),
        (START + b',"colour":1}', "unknown field `colour`"),
        (START + b',"content":"' + b"x" * LINE_BYTES_MAX + b'"}', "is longer than"),
    ],
)
def test_what_is_no_event_is_refused_with_the_reason(line: bytes, problem: str) -> None:
    with pytest.raises(InvalidEvent, match=problem) as caught:
        parse_line(line)
    assert caught.value.field == "line"
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("character", "stored_bytes"), [("x", 1), ("é", 2), ("😀", 4), ("\x01", 6)])
def test_an_event_as_long_as_allowed_may_have_every_character_escaped(character: str, stored_bytes: int) -> None:
    content = character * ((EVENT_BYTES_MAX - 200) // stored_bytes)
    units = memoryview(content.encode("utf-16-le")).cast("H")
    escaped = "".join(f"\\u{unit:04x}" for unit in units)
    event = parse_line(START + b',"content":"' + escaped.encode() + b'"}')
    assert event.content == content
    assert EVENT_BYTES_MAX - 300 < len(line_of(fields_of(event), 0).payload) <= EVENT_BYTES_MAX
