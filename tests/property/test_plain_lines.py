"""The short way to a line and the careful one: whatever an event holds, both make the same line or neither makes one."""

from __future__ import annotations

import enum
import math
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from thermocline.errors import InvalidEvent
from thermocline.ingest import line
from thermocline.ingest.line import Line, encoded, line_of
from thermocline.ingest.validate import Fields, checked

NOW_US = 1_763_000_000_000_000


class Text(str):
    pass


class Kind(enum.StrEnum):
    TOOL = "tool.call"


class Real(float):
    pass


names = st.one_of(
    st.none(),
    st.sampled_from(
        ["agent-1", "", "x" * 256, "x" * 257, "ä" * 128, "ä" * 129, "\x7f", "a\nb", "\ud800", Text("own"), Kind.TOOL, b"raw", 7]
    ),
    st.text(max_size=8),
)
reals = st.one_of(st.none(), st.floats(), st.integers(), st.sampled_from([True, Real(1.5), "1.5", 10**400, -0.0, 1e22, 5e-324]))
integers = st.one_of(
    st.none(), st.integers(), st.sampled_from([True, 1 << 63, (1 << 63) - 1, -(1 << 63), -(1 << 63) - 1, 1.0, "1"])
)
contents = st.one_of(
    st.none(),
    st.text(),
    st.sampled_from(["", "\ud800", "a\x00b", '\u2028"\\/', "😀", Text("own"), Kind.TOOL, b"raw", 7, "x" * 70_000]),
)
metadata = st.one_of(
    st.none(),
    st.dictionaries(st.text(max_size=4), st.one_of(st.integers(), st.text(), st.none())),
    st.sampled_from([{"a": math.nan}, '{"a":1.00}', "[1]", 3]),
)
timestamps = st.sampled_from(
    [None, NOW_US, 0, True, 1 << 70, datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1), "2026-11-13T09:30:00Z"]
)
event_types = st.sampled_from(["tool.call", "", "a b", None, Text("tool.call"), Kind.TOOL, 7, [], "x" * 257])
event_ids = st.one_of(st.none(), st.none(), st.uuids(), st.sampled_from(["0190AAAA-bbbb-7ccc-8ddd-eeeeffff0000", "nonsense", 7]))
events = st.tuples(
    event_ids, event_types, timestamps, *[names] * 7, reals, reals, integers, integers, contents, metadata
)  # fmt: skip


def outcome(make: Any, fields: Fields) -> Line | type[InvalidEvent]:
    try:
        made: Line = make(fields)
        return made
    except InvalidEvent:
        return InvalidEvent


@settings(max_examples=500)
@given(events)
def test_the_short_way_makes_what_the_careful_one_makes(fields: Fields) -> None:
    assert outcome(lambda values: line_of(values, NOW_US), fields) == outcome(
        lambda values: encoded(checked(values, NOW_US)), fields
    )


@settings(max_examples=300)
@given(st.sets(st.sampled_from(range(3, 16))))
def test_plain_events_go_the_short_way_whatever_they_leave_out(absent: set[int]) -> None:
    values: list[Any] = [None, "tool.call", NOW_US, "a", "b", "c", "d", "e", "f", "g", 1.5, 0.25, 3, 4, "text\n", {"k": 1}]
    for place in absent:
        values[place] = "" if place == 14 else None
    short = line._plain_line(tuple(values), NOW_US)
    assert short is not None
    assert short == encoded(checked(tuple(values), NOW_US))


def test_what_is_remembered_of_names_and_shapes_is_bounded() -> None:
    for number in range(2 * line._KNOWN_NAMES_MAX):
        line_of((None, "t", NOW_US, f"agent-{number}", *[None] * 10, "", None), NOW_US)
    assert len(line._known_names) <= line._KNOWN_NAMES_MAX
    assert len(line._shapes) <= line._SHAPES_MAX
