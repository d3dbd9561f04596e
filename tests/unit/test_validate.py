"""Validation: every rule of docs/formats.md "Event", each refusal naming field, limit and way out."""

from __future__ import annotations

import dataclasses
import enum
import math
import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import pytest
import uuid_utils

from thermocline.errors import InvalidEvent
from thermocline.event import COLUMNS, METADATA_BYTES_MAX, TIMESTAMP_MIN_US, Event
from thermocline.ingest.line import line_of
from thermocline.ingest.validate import (
    FIELDS,
    TIMESTAMP_MAX_US,
    check_conversation_id,
    check_expected_seq,
    checked,
    event_of,
    fields_of,
)

NOW_US = 1_780_000_000_000_000
NAMES = ("agent_id", "task_id", "correlation_id", "parent_id", "model", "tool_name", "status")


class Kind(enum.StrEnum):
    CALL = "tool.call"


class Level(enum.IntEnum):
    THREE = 3


@dataclasses.dataclass
class Point:
    x: int = 1


def values(**given: Any) -> dict[str, Any]:
    """What `checked` makes of an event that is otherwise fine."""
    return checked(fields_of(Event(**{"conversation_id": "c", "event_type": "t", **given})), NOW_US)


def refusal(**given: Any) -> str:
    """The problem that `checked` finds; asserts that it names the field given."""
    with pytest.raises(InvalidEvent) as caught:
        values(**given)
    (field,) = given
    assert caught.value.field == field
    assert str(caught.value) == f"{field}: {caught.value.problem}"
    return caught.value.problem


def nested(depth: int) -> bytes:
    """A JSON object so many containers deep."""
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def test_a_line_has_the_columns_that_are_there_in_column_order() -> None:
    line = values(content="hi", metadata={"a": 1}, output_tokens=3, agent_id="me", event_id="0" * 32, duration_ms=1)
    assert list(line) == [
        "event_id",
        "event_type",
        "timestamp",
        "agent_id",
        "duration_ms",
        "output_tokens",
        "content",
        "metadata",
    ]
    assert list(line) == [column.name for column in COLUMNS if column.name in line]


def test_the_order_of_fields_is_that_of_a_line_columns() -> None:
    assert tuple(column.name for column in COLUMNS if column.in_line) == FIELDS
    assert set(FIELDS) == set(Event.__struct_fields__) - {"conversation_id"}


def test_what_is_absent_makes_no_key() -> None:
    assert values() == {"event_type": "t", "timestamp": NOW_US}


@pytest.mark.parametrize("good", ["c", "chat 1", "é" * 128, "x" * 256, "a#", "日本", "a/b:c{d}"])
def test_good_conversation_ids_pass_unchanged(good: str) -> None:
    assert check_conversation_id(good) == good


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("", "is empty: give the conversation a name of 1 to 256 bytes"),
        ("x" * 257, "has 257 bytes"),
        ("é" * 129, "has 258 bytes"),
        ("#1", "starts with '#'"),
        ("a\nb", "U+000A"),
        ("a\x00", "U+0000"),
        ("a\u200b", "U+200B"),
        ("a\ud800", "lone surrogate (U+D800 at 1)"),
        (b"chat", "must be text (str), not bytes: decode it first"),
        (7, "must be text (str), not int"),
        (None, "must be text (str), not NoneType"),
    ],
)
def test_bad_conversation_ids_are_refused(bad: Any, problem: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        check_conversation_id(bad)
    assert caught.value.field == "conversation_id"
    assert problem in caught.value.problem


def test_text_of_an_enum_becomes_plain_text() -> None:
    line = values(event_type=Kind.CALL, tool_name=Kind.CALL, content=Kind.CALL)
    assert [type(line[name]) for name in ("event_type", "tool_name", "content")] == [str, str, str]
    assert line["event_type"] == "tool.call"
    assert type(check_conversation_id(Kind.CALL)) is str


@pytest.mark.parametrize("good", ["t", "tool.call", "a-b_c.D9", "x" * 256])
def test_good_event_types_pass(good: str) -> None:
    assert values(event_type=good)["event_type"] == good
    assert values(event_type=good)["event_type"] == good


@pytest.mark.parametrize("bad", ["", ".", "a.", ".a", "a..b", "a b", "é", "a\n", "x" * 257, "a\ud800"])
def test_bad_event_types_are_refused(bad: str) -> None:
    assert "must be a dotted name of 1 to 256 bytes" in refusal(event_type=bad)


def test_a_missing_event_type_is_named() -> None:
    assert "is missing" in refusal(event_type=None)
    assert "must be text" in refusal(event_type=5)


@pytest.mark.parametrize("field", NAMES)
def test_names_are_short_text_without_control_characters(field: str) -> None:
    for good in ("", "x" * 256, "é" * 128, "a b\u200b\u2028", "\U0010ffff"):
        assert values(**{field: good})[field] == good
    assert "has 257 bytes, at most 256" in refusal(**{field: "x" * 257})
    assert "has 258 bytes" in refusal(**{field: "é" * 129})
    for control in "\x00\x1f\x7f\x80\x9f\n\t":
        assert f"control character U+{ord(control):04X}" in refusal(**{field: f"a{control}"})
    assert "lone surrogate (U+DFFF at 0)" in refusal(**{field: "\udfff"})
    assert "must be text (str), not int" in refusal(**{field: 5})
    assert "decode it first" in refusal(**{field: b"x"})


@pytest.mark.parametrize("field", ["duration_ms", "cost_usd"])
def test_reals_are_finite_numbers(field: str) -> None:
    for good in (0.0, -0.0, 1.5, 5e-324, 1.7976931348623157e308, 3, -(2**70), np.float64(2.5)):
        line = values(**{field: good})
        assert line[field] == good
        assert type(line[field]) is float
    for bad in (math.nan, math.inf, -math.inf):
        assert "must be finite" in refusal(**{field: bad})
    assert "beyond the largest float" in refusal(**{field: 10**400})
    for bad in (True, "1", Decimal(1), np.float32(1), np.int64(1), b"1"):
        problem = refusal(**{field: bad})
        assert "must be a number, not" in problem
        assert "float()" in problem
    assert "numpy.int64" in refusal(**{field: np.int64(1)})


@pytest.mark.parametrize("field", ["duration_ms", "cost_usd"])
def test_minus_zero_is_zero_as_it_would_be_in_a_segment_some_of_the_time(field: str) -> None:
    for zero in (0.0, -0.0, np.float64(-0.0)):
        assert repr(values(**{field: zero})[field]) == "0.0"
        made = line_of(fields_of(Event(conversation_id="c", event_type="t", **{field: zero})), NOW_US)
        assert b"-0.0" not in made.payload


@pytest.mark.parametrize("field", ["input_tokens", "output_tokens"])
def test_counts_are_64_bit_integers(field: str) -> None:
    for good in (0, -1, 2**63 - 1, -(2**63), Level.THREE):
        assert values(**{field: good})[field] == good
        assert type(values(**{field: good})[field]) is int
    for bad in (2**63, -(2**63) - 1):
        assert "within 64 bits" in refusal(**{field: bad})
    for bad in (True, 1.0, "1", np.int64(1)):
        assert "must be an integer, not" in refusal(**{field: bad})


@pytest.mark.parametrize("good", ["x", "\x00\x1f\x7f", "😀", "\u2028\ufeff", '"\\\n', " "])
def test_content_is_any_utf8_text(good: str) -> None:
    assert values(content=good)["content"] == good


def test_empty_content_makes_no_key() -> None:
    assert "content" not in values(content="")


def test_content_that_is_not_text_is_refused() -> None:
    assert "lone surrogate (U+D83D at 2)" in refusal(content="ab\ud83d")
    assert "must be text (str), not bytes: decode it first" in refusal(content=b"x")
    for bad in (0, False, [], {}, np.array([1])):
        assert "must be text (str), not" in refusal(content=bad)


@pytest.mark.parametrize(
    ("given", "us"),
    [
        (datetime(2026, 11, 13, 9, 30, 0, 250_001, tzinfo=UTC), 1_794_562_200_250_001),
        (datetime(2026, 11, 13, 9, 30, tzinfo=timezone(timedelta(hours=2))), 1_794_555_000_000_000),
        ("2026-11-13T09:30:00.250001Z", 1_794_562_200_250_001),
        ("2026-11-13 09:30:00+02:00", 1_794_555_000_000_000),
        ("2026-11-13t09:30:00z", 1_794_562_200_000_000),
        ("2026-11-13T09:30:00.1234567Z", 1_794_562_200_123_457),
        (TIMESTAMP_MIN_US, TIMESTAMP_MIN_US),
        (TIMESTAMP_MAX_US, TIMESTAMP_MAX_US),
        ("9999-12-31T23:59:59.999999Z", TIMESTAMP_MAX_US),
        (None, NOW_US),
    ],
)
def test_timestamps_become_microseconds(given: Any, us: int) -> None:
    assert values(timestamp=given)["timestamp"] == us


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (datetime(2026, 11, 13), "without time zone"),
        ("2026-11-13T09:30:00", "must be RFC 3339 with an offset"),
        ("2026-11-13", "must be RFC 3339"),
        ("1794562200", "must be RFC 3339"),
        ("\ud800", "must be RFC 3339"),
        (1_794_562_200, "before 2000-01-01: give µs since the epoch, not seconds"),
        (1_794_562_200_000, "not seconds or milliseconds"),
        (1_794_562_200_000_000_000, "after the year 9999: give µs since the epoch, not nanoseconds"),
        ("9999-12-31T23:59:59.999999-01:00", "after the year 9999"),
        ("0001-01-01T00:00:00+23:59", "before 2000-01-01"),
        (1_794_562_200.5, "must be an aware datetime, integer µs since the epoch, or RFC 3339 text, not float"),
        (True, "not bool"),
        (date(2026, 11, 13), "not datetime.date"),
        (np.int64(NOW_US), "not numpy.int64"),
    ],
)
def test_timestamps_that_could_mean_something_else_are_refused(bad: Any, problem: str) -> None:
    assert problem in refusal(timestamp=bad)


@pytest.mark.parametrize(
    "given",
    [
        uuid.UUID("01a1fb68-3a43-7654-b3c4-4b98cde469b0"),
        uuid_utils.UUID("01a1fb68-3a43-7654-b3c4-4b98cde469b0"),
        "01a1fb68-3a43-7654-b3c4-4b98cde469b0",
        "01A1FB68-3A43-7654-B3C4-4B98CDE469B0",
        "01a1fb683a437654b3c44b98cde469b0",
    ],
)
def test_event_ids_take_one_form(given: Any) -> None:
    assert values(event_id=given)["event_id"] == "01a1fb68-3a43-7654-b3c4-4b98cde469b0"


@pytest.mark.parametrize(
    "bad", ["", "1", "01a1fb68-3a43-7654-b3c4-4b98cde469b", "{01a1fb68-3a43-7654-b3c4-4b98cde469b0}", "x" * 32, "0" * 32 + "\n"]
)
def test_event_ids_that_are_no_uuid_are_refused(bad: str) -> None:
    assert "must be a UUID" in refusal(event_id=bad)
    assert "must be a UUID, not bytes" in refusal(event_id=b"x" * 16)


@pytest.mark.parametrize(
    "given",
    [
        '{"a": 1.00}',
        b' {"b":\t[1, 2 ]}\n',
        '{"a":1,"a":2}',
        "{}",
        '{"\\u0000":"\\ud83d\\ude00 é😀"}',
        '{"a":18446744073709551615,"b":-9223372036854775808}',
        '{"a":1e308,"b":1e-400,"c":-0,"d":12345678901234567890.5}',
        '{"a":"99999999999999999999999"}',
        bytearray(b'{"a":null}'),
        msgspec.Raw(b'{"a": true}'),
        nested(64),
    ],
)
def test_metadata_given_as_text_is_kept_byte_for_byte(given: Any) -> None:
    text = given if isinstance(given, str) else bytes(given).decode()
    assert values(metadata=given)["metadata"] == text


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("", "is not valid JSON"),
        ("{'a':1}", "is not valid JSON"),
        ('{"a":1,}', "trailing comma"),
        ('{"a":NaN}', "is not valid JSON"),
        ('{"a":Infinity}', "is not valid JSON"),
        ('{"a":1e999}', "infinity"),
        ('{"a":-1e999}', "infinity"),
        ('{"a":18446744073709551616}', "an integer beyond 64 bits"),
        ('{"a":[{"b":-9223372036854775809}]}', "an integer beyond 64 bits"),
        ('{"a":' + "9" * 5000 + "}", "is not valid JSON"),
        ('{"a":"\\ud800"}', "surrogate"),
        ('{"\\udc00":1}', "surrogate"),
        ('{"a":"\ud800"}', "lone surrogate"),
        (b'{"a":"\xff"}', "UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "UTF-8"),
        (b'{"a":"\x00"}', "control character"),
        (b'\xef\xbb\xbf{"a":1}', "BOM"),
        (b"\xff\xfe", "is not valid JSON"),
        ('{"a":1} {}', "is not valid JSON"),
        ("[1]", "must be a JSON object, not an array"),
        ("1", "not a number"),
        ('"x"', "not a string"),
        ("true", "not a boolean"),
        ("null", "not null"),
        (nested(65), "is nested 65 deep, at most 64"),
        (nested(3000), "is nested deeper than 64"),
        ('{"a":"' + "x" * METADATA_BYTES_MAX + '"}', "has 65,544 bytes, at most 65,536"),
        ([1], "must be a dict, or a JSON object as text or bytes, not list"),
        (MappingProxyType({"a": 1}), "not mappingproxy"),
        (5, "not int"),
    ],
)
def test_metadata_that_any_reader_could_stumble_over_is_refused(bad: Any, problem: str) -> None:
    assert problem in refusal(metadata=bad)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "{}"),
        ({"a": 1.0, "b": None, "c": [True, "é"]}, '{"a":1.0,"b":null,"c":[true,"é"]}'),
        ({"at": datetime(2026, 1, 1, tzinfo=UTC)}, '{"at":"2026-01-01T00:00:00+00:00"}'),
        ({"kind": Kind.CALL, "none": None, "level": Level.THREE}, '{"kind":"tool.call","none":null,"level":3}'),
        ({"id": uuid.UUID(int=1)}, '{"id":"00000000-0000-0000-0000-000000000001"}'),
        ({"text": "null"}, '{"text":"null"}'),
        ({"big": 2**64 - 1}, '{"big":18446744073709551615}'),
        ({"t": (1, 2)}, '{"t":[1,2]}'),
    ],
)
def test_a_metadata_dict_is_written_once(given: dict[str, Any], text: str) -> None:
    assert values(metadata=given)["metadata"] == text


def deep(depth: int) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for _ in range(depth - 1):
        tree = {"a": tree}
    return tree


class NotANumber(enum.Enum):
    VALUE = math.nan


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"a": math.nan}, "cannot be stored as JSON: out of range float"),
        ({"a": [{"b": math.inf}]}, "out of range float"),
        ({"a": NotANumber.VALUE}, "out of range float"),
        ({1: "a"}, "dict key must be str"),
        ({"a": 2**64}, "exceeds 64-bit range"),
        ({"a": "\ud800"}, "surrogates not allowed"),
        ({"a": {1, 2}}, "set"),
        ({"a": b"x"}, "bytes"),
        ({"a": Point()}, "Point"),
        ({"a": np.float64(1)}, "numpy.float64"),
        (deep(65), "is nested 65 deep, at most 64"),
        (deep(500), "ecursion"),
        ({"a": "x" * METADATA_BYTES_MAX}, "has 65,544 bytes, at most 65,536"),
    ],
)
def test_a_metadata_dict_that_is_not_json_is_refused(bad: dict[Any, Any], problem: str) -> None:
    assert problem in refusal(metadata=bad)


def test_a_metadata_dict_as_deep_as_allowed_passes() -> None:
    assert values(metadata=deep(64))["metadata"].count("{") == 64


@pytest.mark.parametrize(
    ("metadata", "kept"),
    [
        (None, '{"content":null}'),
        ({}, '{"content":null}'),
        (" { } ", ' {"content":null } '),
        ('{"a": 1.00}', '{"content":null,"a": 1.00}'),
        ({"a": {"content": 1}}, '{"content":null,"a":{"content":1}}'),
        ('{"content":"mine"}', '{"content":"mine"}'),
        ('{"\\u0063ontent":1}', '{"\\u0063ontent":1}'),
    ],
)
def test_a_null_content_is_kept_in_the_metadata(metadata: Any, kept: str) -> None:
    line = values(content=None, metadata=metadata)
    assert "content" not in line
    assert line["metadata"] == kept


def test_a_null_content_must_fit_into_the_metadata() -> None:
    full = '{"a":"' + "x" * (METADATA_BYTES_MAX - 8) + '"}'
    assert values(metadata=full)["metadata"] == full
    with pytest.raises(InvalidEvent, match="may have at most 65,521 bytes when content is null"):
        values(content=None, metadata=full)


def test_expected_seq_is_a_number_from_0() -> None:
    assert check_expected_seq(0) == 0
    for bad in (-1, "1", True, 1.0, 2**63):
        with pytest.raises(InvalidEvent, match=r"^expected_seq: "):
            check_expected_seq(bad)


def test_a_mapping_becomes_an_event() -> None:
    event = Event(conversation_id="c", event_type="t", content="x")
    assert event_of({"conversation_id": "c", "event_type": "t", "content": "x"}) == event
    assert event_of(MappingProxyType({"conversation_id": "c", "event_type": "t", "content": "x"})) == event
    assert event_of(event) is event


@pytest.mark.parametrize(
    ("bad", "field", "problem"),
    [
        ({"conversation_id": "c", "event_type": "t", "seq": 1}, "seq", "is not a field of an event"),
        ({"conversation_id": "c", "event_type": "t", 1: 1}, "1", "is not a field of an event"),
        ({"event_type": "t"}, "conversation_id", "is missing"),
        ({"conversation_id": "c"}, "event_type", "is missing"),
        ("text", "event", "must be an Event or a mapping, not str"),
        (None, "event", "not NoneType"),
    ],
)
def test_a_mapping_that_is_no_event_is_refused(bad: Any, field: str, problem: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        event_of(bad)
    assert caught.value.field == field
    assert problem in caught.value.problem
